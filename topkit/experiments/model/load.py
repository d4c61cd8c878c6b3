"""A model and its tokenizer, whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch

from topkit.documents.digest import file_digest
from topkit.errors import InputError, extras_named
from topkit.experiments.model.gguf_file import load_gguf
from topkit.experiments.model.source import REFERENCE, Source, named, resolve, source_of

__all__ = ["REFERENCE", "load", "load_once", "named", "origin_of", "positions", "resolve"]

# Where the models that were loaded here are from.
_SOURCES: WeakKeyDictionary[Any, Source] = WeakKeyDictionary()


@extras_named()
def load(
    model: str | Path,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> tuple[Any, Any]:
    """A causal model in evaluation mode, and its tokenizer.

    model: `reference`, `smollm2`, a folder, a .gguf file, or an id of the hub as OWNER/NAME or
    OWNER/NAME@REVISION. device: by default the CPU. dtype: a torch dtype or its name; by default what the
    file holds (bfloat16 for a .gguf), but float32 on a CPU, where bf16 is slow.
    Raises: InputError when the name, the files, the device or the dtype do not do.
    """
    return _load(source_of(model), device, dtype)


def _load(
    source: Source, device: str | torch.device | None, dtype: str | torch.dtype | None
) -> tuple[Any, Any]:
    place = _device(device or "cpu")
    dtype = _dtype(dtype or "auto", place)
    with silence():
        try:
            read = load_gguf if source.is_gguf else _from_folder
            loaded, report, tokenizer = read(source.path, dtype)
        except InputError:
            raise
        except (
            Exception
        ) as error:  # what a folder can be wrong in has no end, and no class of its own
            why = str(error).split("Model type should be one of")[0].strip()  # two hundred names
            raise InputError(f"cannot load a causal model from {source.path}: {why}") from error
    lacking = sorted([*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])])
    if lacking:
        raise InputError(
            f"{source.path} lacks weights that its config asks for, or has them in other shapes: "
            f"{', '.join(lacking[:3])}{', ...' if len(lacking) > 3 else ''}"
        )
    if source.is_gguf or source.revision:
        loaded.config.name_or_path = source.name
    _SOURCES[loaded] = source
    return loaded.to(place).eval(), tokenizer


def _device(name: str | torch.device) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device must be cpu, cuda or cuda:N; got {name!r}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {name} was asked for, and torch finds no GPU; use --device cpu")
    return device


def _dtype(dtype: str | torch.dtype, device: torch.device) -> str | torch.dtype:
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else dtype
    if isinstance(dtype, str):
        named = getattr(torch, dtype, None)
        if named not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            raise InputError(f"dtype must be float32, bfloat16 or float16; got {dtype!r}")
        return named
    return dtype


def _from_folder(path: Path, dtype: str | torch.dtype) -> tuple[Any, Any, Any]:
    """The model of a folder, transformers' report of what it lacks, and its tokenizer."""
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoTokenizer,
    )

    config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    # Some with an indexer of their own also see pictures, and have no class of their text alone.
    indexed = getattr(config.get_text_config(), "index_n_heads", None) is not None
    whole = indexed and type(config) not in AutoModelForCausalLM._model_mapping
    auto = AutoModelForImageTextToText if whole else AutoModelForCausalLM
    # Never a pickle, and never the folder's own code. The caller refuses tensors that mismatch, as those that
    # are missing, by name.
    loading: Any = auto.from_pretrained(
        path,
        dtype=dtype,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    return *loading, tokenizer


@contextmanager
def silence() -> Iterator[None]:
    """transformers shows no progress and says nothing but errors."""
    from transformers.utils import logging

    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def load_once(model: str, device: str | None, dtype: str | None) -> tuple[Any, Any]:
    """As `load`; the same model again where the last call was for it, and its files are as they were."""
    source = source_of(model)
    source = replace(source, path=source.path.absolute())
    there = [source.path] if source.is_gguf else source.path.iterdir()
    files = sorted((path.name, path.stat()) for path in there if path.is_file())
    state = tuple((name, stat.st_mtime_ns, stat.st_size) for name, stat in files)
    return _loaded(source, device, dtype, state)


@lru_cache(maxsize=1)
def _loaded(
    source: Source, device: str | None, dtype: str | None, state: tuple[Any, ...]
) -> tuple[Any, Any]:
    return _load(source, device, dtype)


def origin_of(model: Any) -> dict[str, str]:
    """What tells a model's files from others of its name: the hub's commit, a .gguf file's sha256.

    Nothing for a folder, and for a model that was made elsewhere.
    """
    source = _SOURCES.get(model)
    commit = getattr(model.config, "_commit_hash", None) if source is None else source.revision
    if commit:
        return {"revision": str(commit)}
    return {"gguf": file_digest(source.path)} if source is not None and source.is_gguf else {}


def positions(model: Any) -> int | None:
    """The positions that a model was made for; None where its config does not say."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def require_positions(model: Any, length: int) -> None:
    """Refuse a length beyond the positions that a model was made for.

    Raises: InputError.
    """
    limit = positions(model)
    if limit is not None and length > limit:
        raise InputError(
            f"length {length:,} is beyond the {limit:,} positions of the model "
            "(max_position_embeddings of its config); ask for less, or for a model that is "
            "made for it"
        )

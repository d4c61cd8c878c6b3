"""Models by path, or `reference` for the one that comes with topkit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from topkit.documents import path_of, quote
from topkit.errors import InputError, extras_named

REFERENCE = Path(__file__).parents[2] / "data" / "reference"


def resolve(model: str | Path) -> Path:
    """The folder of a model; the name `reference` stands before a folder called so, `./reference`.

    Raises: InputError when there is none at that path: nothing is ever fetched.
    """
    if model == "reference":
        return REFERENCE
    path = path_of(model, "a model (a folder with config.json), or `reference`")
    try:
        if (path / "config.json").is_file():
            return path
    except OSError:  # longer than a path may be
        pass
    raise InputError(
        f"no model at {quote(str(model))}: expected a folder with config.json, or `reference`"
    )


def named(model: str | Path) -> str:
    """A model as a text that `resolve` takes back: a path stays one, whatever it is called."""
    return "./reference" if model == Path("reference") else str(model)


@extras_named()
def load(
    model: str | Path,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> tuple[Any, Any]:
    """A causal model in evaluation mode, and its tokenizer.

    device: by default the CPU. dtype: a torch dtype or its name; by default what the file holds, but
    float32 on a CPU, where bf16 is slow.
    Raises: InputError when the path, the files, the device or the dtype do not do.
    """
    path, place = resolve(model), _device(device or "cpu")
    dtype = _dtype(dtype or "auto", place)
    with _silence():
        try:
            loaded, lacking = _from_folder(path, dtype)
            tokenizer = _tokenizer(path)
        except (
            Exception
        ) as error:  # what a folder can be wrong in has no end, and no class of its own
            raise InputError(f"cannot load a causal model from {path}: {error}") from error
    if lacking:
        raise InputError(
            f"{path} lacks weights that its config.json asks for, or has them in other shapes: "
            f"{', '.join(lacking[:3])}{', ...' if len(lacking) > 3 else ''}"
        )
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


def _from_folder(path: Path, dtype: str | torch.dtype) -> tuple[Any, list[str]]:
    """The model of a folder, and the names of the weights that were drawn at random for it."""
    from transformers import AutoModelForCausalLM

    # Never a pickle, and never the folder's own code. What mismatches is refused by the caller, as what is missing: by name.
    loading: Any = AutoModelForCausalLM.from_pretrained(
        path,
        dtype=dtype,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    loaded, report = loading
    return loaded, sorted([*report["missing_keys"], *(n for n, *_ in report["mismatched_keys"])])


def _tokenizer(path: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)


@contextmanager
def _silence() -> Iterator[None]:
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
    folder = resolve(model).absolute()
    files = sorted((path.name, path.stat()) for path in folder.iterdir() if path.is_file())
    state = tuple((name, stat.st_mtime_ns, stat.st_size) for name, stat in files)
    return _loaded(str(model) if folder == REFERENCE else str(folder), device, dtype, state)


@lru_cache(maxsize=1)
def _loaded(
    model: str, device: str | None, dtype: str | None, state: tuple[Any, ...]
) -> tuple[Any, Any]:
    return load(model, device, dtype)


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
            "(max_position_embeddings of its config.json); ask for less, or for a model that is "
            "made for it"
        )

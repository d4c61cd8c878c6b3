"""Models by path, or `reference` for the one that comes with topkit."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from topkit.errors import InputError

REFERENCE = Path(__file__).parents[2] / "data" / "reference"


def resolve(model: str | Path) -> Path:
    """The folder of a model.

    Raises: InputError when there is none at that path: nothing is ever fetched.
    """
    if str(model) == "reference":
        return REFERENCE
    path = Path(model)
    if not (path / "config.json").is_file():
        raise InputError(
            f"no model at {str(model)!r}: expected a folder with config.json, or `reference`"
        )
    return path


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
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    path, device, dtype = resolve(model), device or "cpu", dtype or "auto"
    try:
        torch.device(device)
    except RuntimeError:
        raise InputError(f"device must be cpu, cuda or cuda:N; got {device!r}") from None
    if str(device).startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"device {device} was asked for, and torch finds no GPU; use --device cpu")
    if dtype == "auto" and torch.device(device).type == "cpu":
        dtype = torch.float32
    if isinstance(dtype, str) and dtype != "auto":
        named = getattr(torch, dtype, None)
        if named not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            raise InputError(f"dtype must be float32, bfloat16 or float16; got {dtype!r}")
        dtype = named
    shown, spoken = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        # Never a pickle. What mismatches is refused below, as what is missing: by name.
        loading: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except Exception as error:  # what a folder can be wrong in has no end, and no class of its own
        raise InputError(f"cannot load a causal model from {path}: {error}") from error
    finally:
        logging.set_verbosity(spoken)
        if shown:
            logging.enable_progress_bar()
    loaded, found = loading
    drawn = sorted([*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])])
    if drawn:
        raise InputError(
            f"{path} lacks weights that its config.json asks for, or has them in other shapes: "
            f"{', '.join(drawn[:3])}{', ...' if len(drawn) > 3 else ''}"
        )
    return loaded.to(torch.device(device)).eval(), tokenizer


@lru_cache(maxsize=1)
def load_once(model: str, device: str | None, dtype: str | None) -> tuple[Any, Any]:
    """As `load`, and the same again while nothing else is asked for."""
    return load(model, device, dtype)


def require_positions(model: Any, length: int) -> None:
    """Refuse a length beyond the positions that a model was made for.

    Raises: InputError.
    """
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and length > limit:
        raise InputError(
            f"length {length:,} is beyond the {limit:,} positions of the model "
            "(max_position_embeddings of its config.json); ask for less, or for a model that is "
            "made for it"
        )

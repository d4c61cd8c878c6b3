"""A model of one GGUF file: its blocks as plain floats, and the tokenizer within."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from topkit.documents import quote
from topkit.errors import InputError
from topkit.experiments.model.gguf_header import Header, read_header
from topkit.experiments.model.gguf_reader import read_once

# How a byte-level vocabulary's texts are cut, by the names of llama.cpp: as GPT-2's; or into single digits
# first, of which transformers does not know.
AS_GPT2 = ("default", "gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "roberta-bpe")
SINGLE_DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")


def load_gguf(path: Path, dtype: str | torch.dtype) -> tuple[Any, Any, Any]:
    """The model of a GGUF file, transformers' report of what it lacks, and its tokenizer.

    dtype: "auto" is bfloat16, since blocks have no dtype of their own.
    Raises: InputError for a file that is none, is truncated, or holds what transformers passes over.
    """
    if not (find_spec("gguf") and find_spec("accelerate")):
        raise InputError(
            "a GGUF file needs the packages gguf and accelerate; pip install 'topkit[gguf]'"
        )
    import transformers

    header = read_header(path)
    # Earlier versions know no other way than to unpack.
    blocks = getattr(transformers, "GgufConfig", None)
    unpacked = {} if blocks is None else {"quantization_config": blocks(dequantize=True)}
    with _architecture_named(path, header), _alone(path) as folder, read_once(path, header):
        place: Any = {"gguf_file": path.name, "local_files_only": True, "trust_remote_code": False}
        loading: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.bfloat16 if dtype == "auto" else dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **unpacked,
            **place,
        )
        loaded, report = loading
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **place)
    for unread in _unread(header, loaded.config.get_text_config()):
        raise InputError(f"{path} cannot be loaded rightly: transformers passes over {unread}")
    _plain(loaded)
    _cut_digits(header, tokenizer)
    return loaded, report, tokenizer


@contextmanager
def _architecture_named(path: Path, header: Header) -> Iterator[None]:
    """In here an architecture that transformers does not read is refused with those that it does."""
    from transformers import modeling_gguf_pytorch_utils as reading

    name = header.get("general.architecture")
    if not isinstance(name, str):
        raise InputError(f"{path} does not say its architecture (general.architecture)")
    try:
        yield
    except ValueError as error:
        if f"architecture {name}" not in str(error):
            raise
        known = set(reading.GGUF_SUPPORTED_ARCHITECTURES) - {"general", "tokenizer"}
        raise InputError(
            f"cannot load a causal model from {path}: its architecture {quote(name)} is not supported by this "
            f"transformers, which reads GGUF files of {', '.join(sorted(known))}; give the model's folder, or "
            "its id of the hub"
        ) from error


@contextmanager
def _alone(path: Path) -> Iterator[str]:
    """A folder with a link to the file alone: else a tokenizer.json beside it would be read instead."""
    with TemporaryDirectory() as folder:
        (Path(folder) / path.name).symlink_to(path.resolve())
        yield folder


def _unread(header: Header, config: Any) -> Iterator[str]:
    """What the file says of its attention that the loaded model ignores."""
    factors = [one.name for one in header.tensors if one.name.startswith("rope_f")]
    if factors:
        yield f"the frequencies of its RoPE ({factors[0]})"
    scaling, rope = header.own("rope.scaling.type"), getattr(config, "rope_parameters", None) or {}
    if scaling not in (None, "none") and scaling not in repr(rope):
        yield f"the scaling of its RoPE ({scaling})"
    cut = header.get("tokenizer.ggml.pre")
    if header.get("tokenizer.ggml.model") == "gpt2" and cut and not _is_known(cut):
        yield f"how its texts are cut into words ({cut})"
    window = header.own("attention.sliding_window")
    if window and getattr(config, "sliding_window", None) != window:
        yield f"its sliding window of {window} keys"


def _is_known(cut: str) -> bool:
    try:
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
    except ImportError:  # an earlier transformers, which has a class for each architecture
        return True
    return cut in (*AS_GPT2, *SINGLE_DIGITS, *GGUF_PRE_TOKENIZER_SPLITS)


def _plain(model: Any) -> None:
    """Forget that the weights came from blocks, so that the model can be saved."""
    for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
        if hasattr(config, "quantization_config"):
            del config.quantization_config
    model.hf_quantizer, model.is_quantized, model.quantization_method = None, False, None


def _cut_digits(header: Header, tokenizer: Any) -> None:
    """Split texts into digits first, as the vocabulary was learnt."""
    if header.get("tokenizer.ggml.pre") in SINGLE_DIGITS:
        from tokenizers import pre_tokenizers

        backend = tokenizer.backend_tokenizer
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])

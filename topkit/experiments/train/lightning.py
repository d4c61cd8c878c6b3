"""Files of index weights: written by their hash, and those of a DSA model's own indexer."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from topkit.errors import InputError
from topkit.experiments.model.digests import weights_digests
from topkit.experiments.runs.parts import write_whole

# How each family turns its index heads (facts of the models' own code in transformers).
_ROPE = {"deepseek_v32": "half", "glm_moe_dsa": "interleaved"}


def save_weights(folder: Path, name: str, tensors: dict[str, Tensor], **metadata: Any) -> Path:
    """Write index weights as `name-HASH.safetensors`; the hash is of the file's bytes."""
    content = _sorted(
        save(
            {key: tensor.detach().contiguous().cpu() for key, tensor in tensors.items()},
            {key: str(value) for key, value in metadata.items()},
        )
    )
    path = Path(folder) / f"{name}-{hashlib.sha256(content).hexdigest()[:12]}.safetensors"
    write_whole(path, lambda to: to.write_bytes(content))
    return path


def _sorted(content: bytes) -> bytes:
    """A safetensors file with its header's names in order: by themselves they come in any, and hash otherwise."""
    stop = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:stop]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[stop:]


def export_weights(model: Any, folder: Path | str) -> Path:
    """The index weights of a transformers deepseek_v32 or glm_moe_dsa model, as lightning reads them.

    Layers that share another's selection have none.
    Raises: InputError for any other model.
    """
    kind = model.config.model_type
    if kind not in _ROPE:
        raise InputError(
            f"{kind} has no lightning indexer that is known here; known: {sorted(_ROPE)}"
        )
    tensors = {}
    for number, layer in enumerate(model.model.layers):
        indexer = layer.self_attn.indexer
        if indexer is not None:
            tensors |= {
                f"{number}.wq": indexer.wq_b.weight,
                f"{number}.wk": indexer.wk.weight,
                f"{number}.norm": indexer.k_norm.weight,
                f"{number}.norm_bias": indexer.k_norm.bias,
                f"{number}.gates": indexer.weights_proj.weight,
            }
    return save_weights(
        Path(folder),
        kind,
        tensors,
        heads=model.config.index_n_heads,
        rope=_ROPE[kind],
        rope_at="first",
        reads="latent",
        model=" ".join(weights_digests(model)),
    )


def in_bytes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Index weights for a small file: matrices in int8 with a scale a row, `name.scale`; the rest in bfloat16."""
    small: dict[str, Tensor] = {}
    for name, x in tensors.items():
        if x.ndim < 2:
            small[name] = x.to(torch.bfloat16)
            continue
        scale = x.float().abs().amax(-1).clamp_min(torch.finfo(torch.float32).tiny) / 127
        small[name] = (x.float() / scale[:, None]).round().to(torch.int8)
        small[f"{name}.scale"] = scale
    return small

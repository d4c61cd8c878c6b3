"""Weights for the lightning indexer: a DSA model's own, or trained on a frozen dense model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from topkit.errors import InputError
from topkit.experiments.model.digests import weights_digests
from topkit.experiments.model.load import load
from topkit.experiments.runs.parts import write_whole
from topkit.experiments.train.prepared import drawn, prepared
from topkit.experiments.train.teacher import Teacher

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


def train_weights(
    model: Any,
    batches: Iterable[Tensor],
    folder: Path | str,
    *,
    name: str | None = None,
    heads: int = 8,
    dim: int = 64,
    steps: int = 1000,
    learning_rate: float = 1e-3,
    queries: int = 256,
    seed: int = 0,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> Path:
    """Train a lightning indexer for each layer of a frozen dense model (DSA's dense warm-up).

    The loss is that of `Teacher`, at `queries` random positions a batch.
    Shapes: batches of token ids [B, T]; RoPE must span at most `dim`. The file is named `name`-HASH.
    Raises: InputError for a model that it cannot learn from.
    """
    teacher = Teacher(model, heads, dim, queries, seed)
    optimizer = torch.optim.AdamW(teacher.parameters(), lr=learning_rate, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=steps, pct_start=0.05, anneal_strategy="cos"
    )
    for number, ids in zip(range(steps), batches, strict=False):
        loss = teacher.loss(ids.to(model.device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(teacher.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if number % 50 == 0 or number == steps - 1:
            report(number, loss.item())
    tensors = {f"{n}.{k}": t for n, w in teacher.layers.items() for k, t in w.tensors.items()}
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}
    described = {"heads": heads, "rope": "half", "rope_at": "first", "reads": "hidden"}
    described["model"] = " ".join(weights_digests(model))
    return save_weights(Path(folder), name or model.config.model_type, tensors, **described)


def train_for(
    name: str,
    corpus: Path | str,
    out: Path | str,
    *,
    heads: int = 4,
    dim: int = 64,
    steps: int = 1000,
    rows: int = 8,
    length: int = 4096,
    device: str = "cuda",
    workers: int = 8,
    seed: int = 0,
    report: Callable[[str], None] = print,
) -> Path:
    """Train a lightning indexer for the model `name` on what the reference model was trained on.

    Batches are other draws of the training mixture: books with facts and questions woven in.
    Files: out/NAME-HASH.safetensors, and out/text, the corpus as tokens.
    """
    model, tokenizer = load(name, device)
    mixture = prepared(name, tokenizer, corpus, out, seed)
    return train_weights(
        model,
        drawn(mixture, range(steps), rows, length, workers),
        out,
        name=Path(name).name,
        heads=heads,
        dim=dim,
        steps=steps,
        seed=seed,
        report=lambda step, loss: report(f"step {step} KL {loss:.4f}"),
    )

"""What attention of a real model sees, made as long and as wide as a benchmark needs.

The bundled model reads haystacks of niah-multikey, each with one of its questions; layers stand below
one another as rows of a batch. Haystacks follow one another, and repeat with a little noise where there
are not enough. Heads of 64 dimensions are turned into 128 by random orthonormal maps, one for each KV
head and its queries, so that every dot product stays what it was.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from topkit.experiments.bench.session import Session
from topkit.experiments.model.load import load
from topkit.experiments.model.record import record
from topkit.experiments.tasks import make_task
from topkit.indexers.lightning_weights import load as load_index

TASK = "niah-multikey"
# Of what repeats, in standard deviations: keys must not tie.
NOISE = 0.02


@dataclass(frozen=True)
class Recorded:
    """The model's own tensors, in layers x heads of its own.

    Shapes: queries [L, 6, 1, 64] of the first haystack's question; keys, values [L, 2, T, 64];
    index_queries [L, 4, 1, 64], index_keys [L, 1, T, 64] and gates [L, 1, 4] of its lightning indexer.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    index_queries: Tensor
    index_keys: Tensor
    gates: Tensor
    scaling: float


@dataclass(frozen=True)
class Tensors:
    """One decoding query a row, and all that it may read.

    Shapes: queries [L, Hq, 1, D]; keys, values [L, Hk, T, D]; index_keys [L, 1, T, d]; index_queries
    [L, H, 1, d] and gates [L, 1, H] in float32, as projections leave them.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    index_keys: Tensor
    index_queries: Tensor
    gates: Tensor
    scaling: float


def recorded(session: Session, samples: int | None = None) -> Recorded:
    """One pass of the model over each haystack, by default as many as the benchmark has."""
    s = session.scale
    model, tokenizer = load("reference", session.device)
    task, weights = make_task(TASK), load_index("reference", session.device)
    parts: dict[str, list[Tensor]] = {"keys": [], "values": [], "index_keys": []}
    first: dict[str, Tensor] = {}
    scaling = 1.0
    for sample in range(samples or s.samples):
        prompt = task.sample(tokenizer, s.sample_tokens, sample, seed=0)
        ids = torch.tensor([[*prompt.ids, *prompt.questions[0].ids]])
        last = torch.tensor([ids.shape[1] - 1])
        seen = record(model, ids, last, inputs=True)
        layers = [(weights.layer(layer), seen[layer]) for layer in sorted(seen)[: s.batch]]
        parts["keys"].append(torch.cat([one.keys for _, one in layers]))
        parts["values"].append(torch.cat([one.values for _, one in layers]))
        parts["index_keys"].append(torch.cat([w.keys(one.hidden, one.rope) for w, one in layers]))  # type: ignore[arg-type]
        if not first:
            scaling = layers[0][1].scaling
            first["queries"] = torch.cat([one.queries for _, one in layers])
            index_queries = [w.queries(one.hidden, one.rope)[:, :, -1:] for w, one in layers]  # type: ignore[arg-type]
            first["index_queries"] = torch.cat(index_queries)
            first["gates"] = torch.cat([w.gates(one.hidden[:, -1:]) for w, one in layers])  # type: ignore[index]
    whole = {name: torch.cat(pieces, 2).float() for name, pieces in parts.items()}
    return Recorded(**whole, **{name: x.float() for name, x in first.items()}, scaling=scaling)


def stretched(session: Session, of_model: Recorded, length: int) -> Tensors:
    """The recorded tensors with so many keys, in the heads and dimensions of the benchmark."""
    s = session.scale
    queries, keys, values = widened(
        session, of_model.queries, of_model.keys, length, of_model.values
    )
    layers = len(of_model.keys)
    turn = _orthonormal(session, of_model.index_keys.shape[3], s.dim)
    index_keys = torch.empty(layers, 1, length, s.dim, dtype=torch.bfloat16, device=session.device)
    for layer in range(layers):
        index_keys[layer, 0] = _repeated(session, of_model.index_keys[layer, 0], length) @ turn
    missing = s.index_heads - of_model.index_queries.shape[1]
    index_queries = torch.nn.functional.pad(of_model.index_queries @ turn, (0, 0, 0, 0, 0, missing))
    gates = torch.nn.functional.pad(of_model.gates, (0, missing))
    return Tensors(
        queries,
        keys,
        values,
        index_keys,
        index_queries,
        gates,
        of_model.scaling,
    )


def widened(
    session: Session, queries: Tensor, keys: Tensor, length: int, values: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, so many keys, and values, in the heads and dimensions of the benchmark; without values, the keys again.

    Shapes: queries [L, hq, 1, d], keys and values [L, hk, t, d], in float32.
    """
    s = session.scale
    layers, own = keys.shape[:2]
    share, heads = queries.shape[1] // own, s.heads // s.groups
    turns = [_orthonormal(session, keys.shape[3], s.dim) for _ in range(s.groups)]
    wide = torch.empty(layers, s.groups, length, s.dim, dtype=torch.bfloat16, device=session.device)
    worth = wide if values is None else torch.empty_like(wide)
    asking: list[Tensor] = []
    for group, turn in enumerate(turns):
        source = group * own // s.groups
        for layer in range(layers):
            wide[layer, group] = _repeated(session, keys[layer, source], length) @ turn
            if values is not None:
                worth[layer, group] = _repeated(session, values[layer, source], length) @ turn
        sharing = [source * share + head % share for head in range(heads)]
        asking.append(queries[:, sharing] @ turn)
    return torch.cat(asking, 1).to(torch.bfloat16), wide, worth


def random_weights(session: Session, folder: Path, layers: int) -> Path:
    """A file of a lightning indexer's projections, as wide as the benchmark's model and its index."""
    s = session.scale

    def drawn(*shape: int) -> Tensor:
        return (session.drawn(*shape) * shape[-1] ** -0.5).cpu()

    tensors = {}
    for layer in range(layers):
        tensors[f"{layer}.wq"] = drawn(s.index_heads * s.dim, s.hidden)
        tensors[f"{layer}.wk"] = drawn(s.dim, s.hidden)
        tensors[f"{layer}.norm"], tensors[f"{layer}.norm_bias"] = torch.ones(s.dim), drawn(s.dim)
        tensors[f"{layer}.gates"] = drawn(s.index_heads, s.hidden)
    metadata = {"heads": str(s.index_heads), "rope": "half", "rope_at": "first", "reads": "hidden"}
    path = folder / "weights.safetensors"
    save_file(tensors, path, metadata)
    return path


def _repeated(session: Session, rows: Tensor, length: int) -> Tensor:
    """Rows [T, D] again and again, [length, D]; all but the first time with noise."""
    times = math.ceil(length / len(rows))
    if times == 1:
        return rows[:length]
    out = rows.repeat(times, 1)[:length]
    noise = torch.empty_like(out[len(rows) :]).normal_(generator=session.generator)
    out[len(rows) :] += noise * (NOISE * rows.std())
    return out


def _orthonormal(session: Session, rows: int, columns: int) -> Tensor:
    """A map [rows, columns] that keeps every dot product."""
    drawn = torch.empty(columns, rows, device=session.device).normal_(generator=session.generator)
    return torch.linalg.qr(drawn).Q.T.contiguous()

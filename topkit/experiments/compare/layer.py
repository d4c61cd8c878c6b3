"""One job: the rows of one layer of one sequence, a list of the candidate's at one position each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from topkit.documents import quote
from topkit.errors import InputError
from topkit.experiments.capture import files
from topkit.experiments.capture.capture import Capture, LayerTensors
from topkit.experiments.compare.lists import Compared, compared, spread
from topkit.experiments.compare.noting import has_scores, noting
from topkit.experiments.measure.index_exact import IndexExact
from topkit.experiments.measure.replay import Replay, require_inputs
from topkit.experiments.runs.heap import freed_memory_kept
from topkit.fidelity.validity import require_valid
from topkit.indexers.base import Indexer, Selection
from topkit.indexers.budget import Budget
from topkit.indexers.noise import seed_of

Columns = dict[str, np.ndarray]


@dataclass(frozen=True)
class Question:
    """What all jobs have in common: two recipes at a budget."""

    baseline: Indexer
    candidate: Indexer
    budget: Budget
    seed: int
    device: str
    threads: int | None = None


@dataclass(frozen=True)
class LayerRows:
    """The rows of a layer of a sequence, those left out of which k covers all that the query sees.

    columns: list, position, own_keys and keys (of the baseline's list and the candidate's), recall, mass (the baseline's own)
    and lost (absent where nothing weighs keys), changed, tied (absent where the baseline has no scores); of the baseline on a second
    dump also rerun_recall, rerun_lost, rerun_changed.
    digest: of the tensors, the same for sequences that are copies. of: whose weights `lost` is of.
    """

    sample: int
    layer: int
    columns: Columns
    left_out: int
    digest: str
    of: str | None


@freed_memory_kept()
def compare_layer(
    question: Question, dump: Capture, rerun: Capture | None, sample: int, layer: int
) -> LayerRows:
    """The rows of one layer of one sequence.

    Raises: InputError for inputs that a recipe lacks, lists that are none, and a second dump of other queries.
    """
    if question.threads is not None:
        torch.set_num_threads(question.threads)
    replay = _replay(question, dump, sample, layer)
    t, k = replay.tensors, question.budget.at(replay.tensors.keys.shape[2])
    others = [replay.select(question.candidate, [k])[0][k]]
    if rerun is not None:
        again = _replay(question, rerun, sample, layer)
        _require_same(t, again.tensors)
        others.append(again.select(question.baseline, [k])[0][k])
    own, judged = _judged(replay, question, k, others)
    heads = max(x.recall.shape[1] for x in judged.compared)
    names = ("", "rerun_")[: len(others)]
    masses, of = _masses(replay, judged, [own, *others], k, heads)
    first = judged.compared[0]
    columns: dict[str, Tensor] = {"own_keys": first.own_keys, "keys": first.keys}
    columns |= {} if judged.tied is None else {"tied": judged.tied}
    for number, (name, one) in enumerate(zip(names, judged.compared, strict=True)):
        columns |= {f"{name}recall": one.recall, f"{name}changed": one.changed}
        if masses is not None:
            columns[f"{name}lost"] = masses[0] - masses[number + 1]
            columns["mass"] = masses[0]
    visible = (t.positions + 1)[None, None].expand(1, heads, -1)
    kept = (visible > k) & spread(first.recall, heads).isfinite().to(visible.device)
    columns |= {"position": t.positions[None, None], "list": torch.arange(heads)[None, :, None]}
    return LayerRows(
        sample,
        layer,
        {name: _flat(x, kept) for name, x in columns.items()},
        int((~kept).sum()),
        _digest(dump, sample, layer),
        of,
    )


@dataclass(frozen=True)
class _Lists:
    """What is compared of each of the other lists; and what scores say, where the baseline has any."""

    compared: tuple[Compared, ...]
    tied: Tensor | None = None
    mass: Tensor | None = None
    masses: tuple[Tensor, ...] = ()


def _replay(question: Question, dump: Capture, sample: int, layer: int) -> Replay:
    tensors = dump.load(sample, layer)
    for recipe in (question.baseline, question.candidate):
        require_inputs(recipe, tensors)
    k, seed = question.budget.at(tensors.keys.shape[2]), seed_of(question.seed, sample)
    return Replay(tensors, k, seed, torch.device(question.device), partial(dump.load, sample))


def _judged(
    replay: Replay, question: Question, k: int, others: list[Selection]
) -> tuple[Selection, _Lists]:
    """The baseline's own selection, and others compared with it."""
    start, lists = replay.stop.new_zeros(1), tuple(other.indices for other in others)
    names = (question.candidate, f"{question.baseline} on the second dump")
    for other, name in zip(lists, names, strict=False):
        require_valid(other, start, replay.stop, k, str(name))
    if not has_scores(question.baseline):
        own = replay.select(question.baseline, [k])[0][k]
        require_valid(own.indices, start, replay.stop, k, repr(question.baseline))
        return own, _Lists(tuple(compared(own.indices, other, None) for other in lists))
    recipe = noting(question.baseline, lists)
    own = replay.select(recipe, [k])[0][k]
    require_valid(own.indices, start, replay.stop, k, repr(recipe))
    note = recipe.noted()
    return own, _Lists(note.compared, note.tied, note.mass, note.masses)


def _masses(
    replay: Replay, judged: _Lists, selections: list[Selection], k: int, heads: int
) -> tuple[list[Tensor] | None, str | None]:
    """The mass of lists [1, heads, Tq], the baseline's own first; and whose weights these are.

    Attention's, where its queries and keys are there; else the softmax of the baseline's scores.
    """
    exact = replay.exact
    if not isinstance(exact, IndexExact):
        by_head = [exact.heads(selection, k).columns["mass"] for selection in selections]
        return [torch.unflatten(mass, 1, (heads, -1)).mean(2) for mass in by_head], "attention"
    if judged.mass is None:
        return None, None
    return [spread(mass, heads) for mass in (judged.mass, *judged.masses)], "index"


def _digest(dump: Capture, sample: int, layer: int) -> str:
    """Of the tensors, as a folder's manifest has it."""
    for entry in dump.manifest["files"]:
        if (entry["sample"], entry["layer"]) == (sample, layer) and "sha256" in entry:
            return entry["sha256"]
    return files.digest_blocks(files.file_blocks(dump.load(sample, layer).tensors()))


def _require_same(first: LayerTensors, second: LayerTensors) -> None:
    one, other = (
        (x.keys.shape[2], tuple(x.positions.tolist()), _heads(x)) for x in (first, second)
    )
    if one != other:
        raise InputError(
            f"sample {first.sample}, layer {first.layer}: the second dump must be of the same tokens, positions "
            f"and heads: {one[0]} keys, queries at {quote(list(one[1]))}, {one[2]} heads; got {other[0]}, "
            f"{quote(list(other[1]))}, {other[2]}"
        )


def _heads(x: LayerTensors) -> int:
    """Query heads, or those of an index alone."""
    of_index = x.index_queries if x.index_only else None
    return (x.queries if of_index is None else of_index).shape[1]


def _flat(x: Tensor, kept: Tensor) -> np.ndarray:
    """The rows of a column [1, H, Tq], or what is one of each list or position, that are kept."""
    if x.shape[1] not in (1, kept.shape[1]):
        x = spread(x, kept.shape[1])
    return x.to(kept.device).expand_as(kept)[kept].cpu().numpy()

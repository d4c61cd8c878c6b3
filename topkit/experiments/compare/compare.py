"""One recipe against another on the same dump: safe, unsafe or undecided."""

# pyright: strict
from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from topkit.documents import quote
from topkit.errors import InputError
from topkit.experiments.capture.capture import Capture, LayerTensors
from topkit.experiments.compare.comparison import Comparison
from topkit.experiments.compare.layer import Question
from topkit.experiments.compare.margins import DEFAULT, parse_margins
from topkit.experiments.compare.noting import has_scores
from topkit.experiments.compare.plan import plan_of
from topkit.experiments.measure.measure import opened
from topkit.experiments.measure.replay import require_inputs
from topkit.experiments.runs.cells import require_able
from topkit.experiments.runs.jobs import Runner
from topkit.experiments.runs.plan import Plan, planned
from topkit.experiments.runs.runners import crew
from topkit.indexers.base import Indexer
from topkit.indexers.budget import Budget, parse_budgets
from topkit.indexers.combinator import leaf
from topkit.indexers.native import native
from topkit.indexers.spec import parse
from topkit.indexers.upstream import without_source


@planned
def compare(
    dump: Capture | str | Path,
    rerun: Capture | str | Path | None = None,
    *,
    baseline: str | Indexer,
    candidate: str | Indexer,
    k: str | int | Budget,
    margin: str | Mapping[str, float] = DEFAULT,
    layers: Sequence[int] | None = None,
    seed: int = 0,
    device: str | None = None,
    jobs: int | None = None,
    runner: str | Runner | None = None,
    layout: str | None = None,
    scaling: float | None = None,
) -> Plan[Comparison]:
    """Judge a candidate by the baseline's own selections on the same tensors.

    rerun: a second dump of the same tokens by the baseline's engine: what the baseline changes by itself, which a
    candidate must exceed beside the margin to be unsafe. k: one budget, in tokens or per cent. margin: what may be
    lost of recall and of mass, on average over sequences; "recall=0.01,mass=0.002", or one of them. A sequence is a
    sample of the dump: one of them can be unsafe, and at least five are safe (docs/statistics.md). layout and scaling:
    of dumps that are files, as `measure` has them.
    Returns: a Comparison: .verdict, .sentence, .summary(), and .require() which raises unless it is safe.
    Raises: InputError for bad input, and for a second dump of other tokens.
    """
    dump = opened(dump, layout, scaling)
    again = None if rerun is None else opened(rerun, layout, scaling)
    recipes = [require_able(parse(recipe)) for recipe in (baseline, candidate)]
    margins, device = parse_margins(margin), _device(device)
    workers = crew(runner, jobs, device)
    question = Question(recipes[0], recipes[1], _one(k), seed, device, workers.threads)
    chosen = _layers(dump, layers)
    _require_alike(dump, again, chosen)
    for recipe in recipes:
        _require_listed(recipe, question.budget, dump)
    if "mass" in margins:
        _require_weights(recipes[0], dump.shape_of(dump.samples[0], chosen[0]))
    for recipe in recipes:
        for layer in chosen if "native" in recipe.needs else chosen[:1]:
            require_inputs(recipe, dump.shape_of(dump.samples[0], layer))
        _require_model(recipe, dump)
        if reason := without_source(recipe, chosen, dump.layers, "the dump"):
            raise InputError(reason)
    return plan_of(question, margins, dump, again, chosen, workers)


def _one(k: str | int | Budget) -> Budget:
    budgets = parse_budgets(k)
    if len(budgets) != 1:
        raise InputError(f"compare asks at one budget; got {quote(k)}; compare at each by itself")
    return budgets[0]


def _device(device: str | None) -> str:
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"device {device} was asked for, and torch finds no GPU; use --device cpu")
    return device


def _layers(dump: Capture, layers: Sequence[int] | None) -> list[int]:
    absent = sorted(set(layers or ()) - set(dump.layers))
    if absent:
        raise InputError(f"the dump has no layer {absent}; it has {dump.layers}")
    return sorted(set(layers)) if layers else dump.layers


def _require_alike(dump: Capture, rerun: Capture | None, layers: Sequence[int]) -> None:
    if rerun is None:
        return
    every = list(layers) == dump.layers  # those of a choice may be all that was dumped again
    alike = rerun.layers == dump.layers if every else set(layers) <= set(rerun.layers)
    if dump.samples != rerun.samples or not alike:
        raise InputError(
            f"the second dump must be of the same sequences and layers: {len(dump.samples)} sequences, layers "
            f"{quote(list(layers))}; got {len(rerun.samples)} sequences, layers {quote(rerun.layers)}"
        )


def _require_weights(baseline: Indexer, tensors: LayerTensors) -> None:
    if tensors.index_only and not has_scores(baseline):
        raise InputError(
            f"{baseline} has no score of every key, and the dump no queries and keys of attention: nothing weighs "
            "what is lost; give a margin of recall alone, recall=0.01"
        )


def _require_listed(recipe: Indexer, budget: Budget, dump: Capture) -> None:
    """Refuse more keys than a model's own indexer lists: its lists would be short, and look like a loss."""
    longest = max(record["tokens"] for record in dump.manifest["samples"])
    own_k = dump.manifest.get("own_k")
    if own_k is not None and isinstance(recipe, native) and budget.at(longest) > own_k:
        raise InputError(
            f"{recipe} has lists of {own_k:,} keys; got k = {budget}; give k = {own_k}"
        )


def _require_model(recipe: Indexer, dump: Capture) -> None:
    """Refuse a recipe that was made for another model than the dump's, where both are known."""
    own = dump.manifest["origin"].get("weights_sha256")
    if own is not None and recipe.models() and own not in recipe.models():
        raise InputError(
            f"{recipe} was made for another model than the dump's; {leaf(recipe).remedy}"
        )

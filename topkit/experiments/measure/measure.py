"""Capture + indexers -> fidelity rows."""

# pyright: strict
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from topkit.documents import path_of
from topkit.errors import InputError
from topkit.experiments.capture.capture import Capture
from topkit.experiments.measure.layer import Setting, recipes_of, require_all
from topkit.experiments.measure.measured import Measured
from topkit.experiments.measure.plan import plan_of
from topkit.experiments.measure.request import Request
from topkit.experiments.runs.cells import parse_cells, require_able, with_own_k
from topkit.experiments.runs.equal_cells import at_budgets, shape_of
from topkit.experiments.runs.jobs import Runner
from topkit.experiments.runs.plan import Plan, planned
from topkit.experiments.runs.runners import crew
from topkit.experiments.runs.shards import Shard, parse_shard
from topkit.indexers.base import Indexer
from topkit.indexers.budget import Budgets
from topkit.indexers.combinator import leaf
from topkit.indexers.equal_bytes import ByteBudgets, parse_byte_budgets
from topkit.indexers.spec import parse
from topkit.indexers.upstream import without_source


@planned
def measure(
    capture: Capture | str | Path,
    indexers: str | Indexer | Sequence[str | Indexer],
    k: Budgets,
    *,
    out: str | Path | None = None,
    layers: Sequence[int] | None = None,
    reference: str | Indexer | None = None,
    reduce: bool = False,
    seed: int = 0,
    device: str | None = None,
    jobs: int | None = None,
    force: bool = False,
    runner: str | Runner | None = None,
    shard: str | Shard | None = None,
    budget: ByteBudgets = None,
    layout: str | None = None,
    scaling: float | None = None,
) -> Plan[Measured]:
    """Judge indexers on captured tensors against exact Top-k, in every layer, head and position.

    Each is built on the prefix and appended to as decoding would. k in tokens, or per cent of the
    sample's length. `reference` names another indexer: rows whose recall is the overlap with its
    picks are added, and lead the summary. capture: a Capture, its folder, or a file of tensors (.safetensors, .npz,
    .pt) in `layout` bhtd, bthd or thd, with `scaling`; of a learned indexer's tensors alone, indexers are judged
    against the Top-k of its float32 scores. `reduce` keeps one row a head in place of one a head and position. With `out`,
    a Parquet part a sample and layer stands under out/fidelity, and a rerun computes what is missing.
    runner: serial, pool or ray, with jobs= at one time; shard: "0/4" is the first of four shares, which may
    write to `out` at the same time. budget: "bytes=0.06", of the keys' bytes, or "bytes=64", a token and
    layer, chooses at each k a parameter of each indexer by which choosing reads so much; or several (docs/cost.md).
    Returns: the rows, as Measured; of a shard, its own.
    Raises: InputError for bad input, for NaN (layer and head named), for a folder of another run.
    """
    capture = opened(capture, layout, scaling)
    cells = parse_cells(indexers, k, dense=False)
    setting = setting_of(out, reference, reduce, seed, device)
    workers = crew(runner, jobs, setting.device)
    setting = replace(setting, threads=workers.threads)
    chosen = _layers(capture, layers)
    longest = max(record["tokens"] for record in capture.manifest["samples"])
    cells = with_own_k(cells, capture.manifest.get("own_k"), longest)
    t = capture.shape_of(capture.samples[0], chosen[0])
    shape = shape_of(t.queries, t.keys, t.values, longest)
    equal = at_budgets(cells, parse_byte_budgets(budget), shape)
    cells = equal.cells
    recipes = recipes_of(cells, setting)
    # Of a model whose own indexer chooses in some layers, others have no list.
    seen = chosen if any("native" in recipe.needs for recipe in recipes) else chosen[:1]
    for layer in seen:
        require_all(cells, setting, capture.shape_of(capture.samples[0], layer))
    _require_model(recipes, capture)
    for recipe in recipes:
        if reason := without_source(recipe, chosen, capture.layers, "the capture"):
            raise InputError(reason)
    request = Request(capture, tuple(cells), tuple(chosen), setting, force, parse_shard(shard))
    return plan_of(request, workers, equal.notes)


def opened(
    capture: Capture | str | Path,
    layout: str | None = None,
    scaling: float | None = None,
    verify: bool = True,
) -> Capture:
    """The capture that is meant. Raises: InputError as `Capture.open`, and where a Capture is told its layout."""
    if not isinstance(capture, Capture):
        return Capture.open(capture, verify=verify, layout=layout, scaling=scaling)
    if (layout, scaling) != (None, None):
        raise InputError("layout and scaling are of files; give them to Capture.from_tensors")
    return capture


def _require_model(recipes: Iterable[Indexer], capture: Capture) -> None:
    """Refuse recipes that were made for another model than the capture's, where both are known."""
    own = capture.manifest["origin"].get("weights_sha256")
    for recipe in recipes:
        if own is not None and recipe.models() and own not in recipe.models():
            raise InputError(
                f"{recipe} was made for another model than the capture's; {leaf(recipe).remedy}"
            )


def setting_of(
    out: str | Path | None,
    reference: str | Indexer | None,
    reduce: bool,
    seed: int,
    device: str | None,
) -> Setting:
    """What all jobs of a measurement have in common. Raises: InputError where there is no such device."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"device {device} was asked for, and torch finds no GPU; use --device cpu")
    return Setting(
        seed,
        device,
        None if reference is None else require_able(parse(reference)),
        reduce,
        None if out is None else path_of(out, "a folder for the run"),
    )


def _layers(capture: Capture, layers: Sequence[int] | None) -> list[int]:
    absent = sorted(set(layers or ()) - set(capture.layers))
    if absent:
        raise InputError(f"the capture has no layer {absent}; it has {capture.layers}")
    return sorted(set(layers)) if layers else capture.layers

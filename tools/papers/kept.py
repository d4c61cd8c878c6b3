"""What recipes keep of SmolLM2's attention: rows of `measure`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

import topkit
from papers.data import LENGTH, Data, as_queries
from papers.ours import Ours, mean_of, share_of
from topkit import Capture
from topkit.indexers.spec import parse

ALL = "100%"
EPSILONS = (0.05, 0.1, 0.2, 0.3, 0.4)
PROBES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
NEAR = 1e-5  # what float32 may be off by


@dataclass(frozen=True)
class Rows:
    """Columns of the rows of heads, of one recipe and budget."""

    columns: Mapping[str, np.ndarray]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]

    def by_layer(self, values: np.ndarray) -> np.ndarray:
        layers = self["layer"]
        return np.array([values[layers == layer].mean() for layer in np.unique(layers)])

    def where(self, there: np.ndarray) -> Rows:
        return Rows({name: x[there] for name, x in self.columns.items()})


def rows(
    capture: Capture,
    recipe: str,
    k: int | str,
    reference: str | None = None,
) -> Rows:
    """The rows of a recipe at a budget, against each head's exact Top-k, or another recipe's choice."""
    table = topkit.measure(capture, recipe, k, reference=reference, device="cpu").table
    named = "head" if reference is None else repr(parse(reference))
    columns = {name: np.array(table[name].to_pylist(), dtype=object) for name in table.column_names}
    there = (columns["reference"] == named) & (
        (columns["level"] == "head") | (reference is not None)
    )
    if not there.any():
        raise SystemExit(f"{recipe} has no rows against {named}; found {set(columns['reference'])}")
    numbers = ("layer", "position", "visible", "kept", "recall", "mass", "mass_estimate",
               "output_error", "keys_scored")  # fmt: skip
    return Rows({name: columns[name][there].astype(float) for name in numbers})


def top_p_mass(data: Data) -> Ours:
    kept = rows(data.some, "top_p(mass=0.9)", ALL)["mass"] >= 0.9 - NEAR
    return share_of(int(kept.sum()), len(kept))


def vattention_bound(data: Data) -> Ours:
    found = rows(data.some, "vattention(epsilon=0.05, delta=0.05, sink=4, window=4)", ALL)
    return mean_of(found.by_layer(np.abs(found["mass_estimate"] - 1) > 0.05))


def vattention_linear(data: Data) -> Ours:
    recipe = "vattention(epsilon={}, delta=0.05, sink=4, window=4)"
    found = [rows(data.some, recipe.format(epsilon), ALL) for epsilon in EPSILONS]
    errors = np.array([one.by_layer(one["output_error"]) for one in found])
    value = float(np.corrcoef(EPSILONS, errors.mean(1))[0, 1])
    own = [float(np.corrcoef(EPSILONS, layer)[0, 1]) for layer in errors.T]
    return Ours(value, min(*own, value), max(*own, value))


def retroinfer_jensen(data: Data) -> Ours:
    kept = rows(data.some, "retroinfer(estimate=1.0)", 142)["mass_estimate"] <= 1 + NEAR
    return share_of(int(kept.sum()), len(kept))


def adakv_allocation(data: Data) -> Ours:
    adaptive, even = rows(data.some, "adakv()", 164), rows(data.some, "exact()", 82)
    places = [(row, at) for row, at in zip(even["layer"], even["position"], strict=True)]
    sums: dict[tuple[float, float], float] = {}
    for place, more, less in zip(places, adaptive["mass"], even["mass"], strict=True):
        sums[place] = sums.get(place, 0.0) + more - less
    return share_of(sum(gain >= -NEAR for gain in sums.values()), len(sums))


def tactic_target(data: Data) -> Ours:
    found = rows(data.some, "tactic(mass=0.9)", ALL)
    return mean_of(found.by_layer(found["mass"]))


def twilight_int4(data: Data) -> Ours:
    by_codes = rows(data.some, "twilight(exact(), mass=0.85, candidates=1.0)", ALL)
    truly = rows(data.some, "top_p(exact(), mass=0.85)", ALL)
    return mean_of(by_codes.by_layer(by_codes["mass"]) / truly.by_layer(truly["mass"]))


def exact_recovery(data: Data) -> Ours:
    found = rows(data.every, "exact()", LENGTH // 100)
    return mean_of(found.by_layer(found["mass"]))


def hisa_iou(data: Data) -> Ours:
    found = rows(data.some, "hisa(page_size=16, pages=64)", 256)
    return mean_of(found.by_layer(found["recall"] / (2 - found["recall"])))


def rabitq_bound(data: Data) -> Ours:
    found = rows(data.tensors, "rabitq(rerank=True)", 100)
    return mean_of(found.by_layer(found["recall"]))


def _sampled(data: Data, center: bool) -> Ours:
    found = rows(data.some, f"magicpig(bits=10, tables=150, center={center})", ALL)
    ends = 4 + 64
    return mean_of(found.by_layer((found["kept"] - ends) / (found["visible"] - ends)))


def magicpig_cost(data: Data) -> Ours:
    return _sampled(data, True)


def magicpig_centre(data: Data) -> Ours:
    return _sampled(data, False)


def previous_overlap(data: Data) -> Ours:
    found = rows(data.steps, "previous(exact(), every=2, factor=1)", round(0.016 * LENGTH))
    # The others look at all keys.
    reused = found.where(found["keys_scored"] < found["visible"] / 2)
    return mean_of(reused.by_layer(reused["recall"]))


def tidaldecode_recall(data: Data) -> Ours:
    found = rows(data.every, "tidaldecode(layers=(2, 12))", 10)
    reused = found.where((found["layer"] > 2) & (found["layer"] != 12))
    return mean_of(reused.by_layer(reused["recall"]))


def _scanned(capture: Capture) -> Ours:
    """The least share of keys scanned for a recall of 0.95; its low end: of fewer lists, which fall short."""
    before = 0.0
    for probes in PROBES:
        found = rows(capture, f"faiss_ivf(nlist=64, nprobe={probes})", 4)
        # What is scored are the centroids of the lists, and the keys of those probed.
        share = float(((found["keys_scored"] - 64) / found["visible"]).mean())
        if found["recall"].mean() >= 0.95:
            return Ours(share, before, share)
        before = share
    return Ours(1.0, before, 1.0)


def faiss_ivf_queries(data: Data) -> Ours:
    return _scanned(data.some)


def faiss_ivf_keys(data: Data) -> Ours:
    return _scanned(as_queries(data.some))


CLAIMS = {
    "top_p-mass": top_p_mass,
    "vattention-bound": vattention_bound,
    "vattention-linear": vattention_linear,
    "retroinfer-jensen": retroinfer_jensen,
    "adakv-allocation": adakv_allocation,
    "tactic-target": tactic_target,
    "twilight-int4": twilight_int4,
    "exact-recovery": exact_recovery,
    "hisa-iou": hisa_iou,
    "rabitq-bound": rabitq_bound,
    "magicpig-cost": magicpig_cost,
    "magicpig-centre": magicpig_centre,
    "previous-overlap": previous_overlap,
    "tidaldecode-recall": tidaldecode_recall,
    "faiss_ivf-queries": faiss_ivf_queries,
    "faiss_ivf-keys": faiss_ivf_keys,
}

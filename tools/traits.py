"""Whether the gain of a remedy correlates with a trait of the keys: joins a survey's CSV with runs of `topkit measure`.

    python tools/traits.py FOLDER CAPTURE=RUN [CAPTURE=RUN ...]

FOLDER/traits.csv is that of `topkit survey --csv`. Writes FOLDER/fidelity.csv, a row a capture and indexer
(means over samples, layers, heads and positions), and FOLDER/remedies.csv: what each remedy adds to the mass
ratio, and Spearman's correlation of that with each trait over layers and groups.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from scipy.stats import spearmanr

from topkit.experiments.measure.survey import write_csv
from topkit.grammar import short
from topkit.indexers.spec import recorded

METRICS = ("recall", "mass", "mass_ratio", "output_error")
TRAITS = ("first_weight", "entropy", "offset", "outliers", "outliers_centred", "sink_cosine")
INT2 = "quantized(dtype='int2'"
# What is added -> to what, and with what.
REMEDIES = {
    "centre int2": (f"{INT2})", f"{INT2},center=True)"),
    "rotate int2": (f"{INT2})", f"{INT2},hadamard=True)"),
    "centre sign": ("sign()", "sign(center=True)"),
    "keep the sink of sign": ("sign()", "keep(sign(),sink=4)"),
    "keep the sink of centred sign": ("sign(center=True)", "keep(sign(center=True),sink=4)"),
    "keep the sink of quest": ("quest(page_size=16)", "keep(quest(page_size=16),sink=4)"),
    "share exact scores": ("exact()", "shared(exact())"),
}
Place = tuple[int, int]


def by_place(run: Path, heads: int) -> dict[str, dict[Place, dict[str, float]]]:
    """Means of each indexer, by layer and group of so many heads."""
    table = pq.read_table(run / "fidelity").to_pydict()
    sums: dict[tuple[str, Place], list[Any]] = {}
    for row, head in enumerate(table["head"]):
        if table["level"][row] != "head" or table["trivial"][row]:
            continue
        place = table["layer"][row], head // heads
        values = np.array([table[name][row] for name in METRICS], dtype=float)
        sums.setdefault((table["indexer"][row], place), []).append(values)
    means: dict[str, dict[Place, dict[str, float]]] = {}
    for (indexer, place), values in sums.items():
        mean = np.nanmean(values, axis=0).tolist()
        name = short(recorded(indexer)).replace(" ", "")
        means.setdefault(name, {})[place] = dict(zip(METRICS, mean, strict=True))
    return means


def correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's."""
    return float(spearmanr(one, other).statistic)  # pyright: ignore[reportAttributeAccessIssue]


def fidelity(capture: str, kept: Mapping[str, Mapping[Place, Mapping[str, float]]]) -> list[Any]:
    """A row an indexer."""
    return [
        {
            "capture": capture,
            "indexer": indexer,
            **{m: round(float(np.mean([one[m] for one in its.values()])), 4) for m in METRICS},
        }
        for indexer, its in sorted(kept.items())
    ]


def remedies(
    capture: str,
    kept: Mapping[str, Mapping[Place, Mapping[str, float]]],
    traits: Mapping[Place, Mapping[str, float]],
) -> list[Any]:
    """A row a remedy: what it adds to the mass ratio, and what that goes with."""
    rows = []
    for name, specs in REMEDIES.items():
        plain, with_it = (kept[short(recorded(spec)).replace(" ", "")] for spec in specs)
        gain = [with_it[place]["mass_ratio"] - plain[place]["mass_ratio"] for place in traits]
        against = {
            f"with_{t}": round(correlation(gain, [x[t] for x in traits.values()]), 3)
            for t in TRAITS
        }
        rows.append({
            "capture": capture, "remedy": name, "places": len(gain),
            "added": round(float(np.mean(gain)), 4), **against,
        })  # fmt: skip
    return rows


def main(folder: Path, runs: Mapping[str, Path]) -> None:
    with open(folder / "traits.csv") as file:
        surveyed = list(csv.DictReader(file))
    means, added = [], []
    for capture, run in runs.items():
        own = [row for row in surveyed if row["capture"] == capture]
        traits = {
            (int(row["layer"]), int(row["group"])): {t: float(row[t]) for t in TRAITS}
            for row in own
        }
        kept = by_place(run, int(own[0]["heads"]))
        means += fidelity(capture, kept)
        added += remedies(capture, kept, traits)
    write_csv(means, folder / "fidelity.csv")
    write_csv(added, folder / "remedies.csv")


if __name__ == "__main__":
    pairs = (word.partition("=") for word in sys.argv[2:])
    main(Path(sys.argv[1]), {name: Path(run) for name, _, run in pairs})

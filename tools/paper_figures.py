"""Measure what papers state of their methods, and write results/papers/figures.csv: a row a claim of claims.yaml.

    python tools/paper_figures.py [CLAIM ...]

Without names all claims are measured; with names these alone, and the other rows stay.
"""

from __future__ import annotations

import csv
import shlex
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from papers import answers, attention, kept, laws, trained
from papers.data import Data
from papers.ours import Ours

from topkit.experiments.bench.machine import machine

FOLDER = Path(__file__).parents[1] / "results" / "papers"
OUT = FOLDER / "figures.csv"
MEASURED = {
    **laws.CLAIMS,
    **kept.CLAIMS,
    **attention.CLAIMS,
    **answers.CLAIMS,
    **trained.CLAIMS,
}
PACKAGES = ("transformers", "faiss-cpu")


def claims() -> dict[str, dict[str, Any]]:
    """What was claimed, by name, in the order of the file."""
    held = yaml.safe_load((FOLDER / "claims.yaml").read_text())
    if held.keys() != MEASURED.keys():
        raise SystemExit(f"claimed or measured alone: {sorted(held.keys() ^ MEASURED.keys())}")
    return held


def row(name: str, claim: dict[str, Any], ours: Ours) -> dict[str, Any]:
    """A line of the table."""
    low, high = claim["accept"]
    where = machine(torch.device("cpu"))
    where = {key: where[key] for key in ("device", "cores", "python", "torch")}
    return {
        "claim": name,
        **{key: claim[key] for key in ("method", "source", "read", "says", "paper", "ours")},
        "least": low,
        "greatest": high,
        "value": round(ours.value, 5),
        "low": round(ours.low, 5),
        "high": round(ours.high, 5),
        "met": low <= ours.value <= high,
        "data": claim["data"],
        "command": f"python tools/paper_figures.py {shlex.quote(name)}",
        **where,
        **{package: version(package) for package in PACKAGES},
        "topkit": version("topkit"),
    }


def kept_rows() -> dict[str, dict[str, Any]]:
    """The rows that stand already."""
    if not OUT.exists():
        return {}
    with open(OUT) as file:
        return {line["claim"]: line for line in csv.DictReader(file)}


def write(rows: dict[str, dict[str, Any]], order: list[str]) -> None:
    lines = [rows[name] for name in order if name in rows]
    with open(OUT, "w", newline="") as file:
        writer = csv.DictWriter(file, lines[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


def main(names: list[str]) -> None:
    claimed = claims()
    if unknown := set(names) - claimed.keys():
        raise SystemExit(f"no such claim: {sorted(unknown)}; there are {list(claimed)}")
    rows = kept_rows() if names else {}
    with tempfile.TemporaryDirectory() as folder:
        data = Data(Path(folder))
        for name in names or claimed:
            begun = time.process_time()
            rows[name] = row(name, claimed[name], MEASURED[name](data))
            took = time.process_time() - begun
            print(
                f"{name}: {rows[name]['value']} met={rows[name]['met']} ({took:.0f} s of CPU)",
                flush=True,
            )
            write(rows, list(claimed))


if __name__ == "__main__":
    main(sys.argv[1:])

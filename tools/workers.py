"""How many times as fast several of Ray's workers are as one: the same evaluation, in turns, by the wall.

    python tools/workers.py [--workers 2] [--haystacks 24] [--turns 3] [--model reference] [--at-least 1.6]

Each worker has one thread. A turn runs the same haystacks with one worker and then with several, each in a
folder of its own; what a run begins and ends with (Ray's start, the workers' imports, the model) is taken out
by a shorter run of each, so that what is compared is jobs a second. Prints a line a turn and the median; exit 1
below --at-least. For a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1]))
# Workers import the same checkout.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
)

import torch

import topkit

TASK = "niah-multikey:wording=trained"
INDEXERS = ("exact", "sign", "quantized:dtype=int4", "quest:page_size=4")
# Haystacks of a run that shows what beginning and ending cost.
SHORT = 2


def seconds(given: argparse.Namespace, workers: int, haystacks: int) -> float:
    """The wall time of a run into an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        plan = topkit.evaluate.plan(
            given.model,
            TASK,
            given.length,
            haystacks,
            INDEXERS,
            16,
            out=folder,
            runner="ray",
            jobs=workers,
        )
        begun = time.perf_counter()
        topkit.run(plan)
        return time.perf_counter() - begun


def speed(given: argparse.Namespace, workers: int) -> float:
    """Haystacks a second beyond a short run of as many workers."""
    short, long = SHORT * workers, SHORT * workers + given.haystacks
    return given.haystacks / (seconds(given, workers, long) - seconds(given, workers, short))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--haystacks", type=int, default=24)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--model", default="reference")
    parser.add_argument("--at-least", type=float, default=0.0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    ratios = []
    for turn in range(given.turns):
        one, several = speed(given, 1), speed(given, given.workers)
        ratios.append(several / one)
        print(
            f"turn {turn + 1}: one worker {one:.3f} haystacks a second, {given.workers} workers "
            f"{several:.3f}: {ratios[-1]:.2f} times",
            flush=True,
        )
    print(f"{given.workers} workers of one thread: {median(ratios):.2f} times one")
    sys.exit(median(ratios) < given.at_least)


if __name__ == "__main__":
    main()

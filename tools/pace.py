"""How long the haystacks of a run took: seconds between one part and the next, by task and length.

    python tools/pace.py RUN...

By the times at which parts were written, all workers together; the first eighth of a setting, in which workers
prepare, is left out. Prints, of each setting, its haystacks, the mean of the seconds between them, and the interval
of that mean (a normal one, of the gaps). For a run of one go, in the folder where it was written.
"""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev

import pyarrow.parquet as pq

# The share of a setting in which its workers make what later haystacks find.
PREPARING = 1 / 8


def paces(run: Path) -> dict[tuple[str, int], list[float]]:
    """The seconds between the parts of each task and length, in the order in which they were written."""
    written: dict[tuple[str, int], list[float]] = defaultdict(list)
    for path in sorted((run / "accuracy").glob("*.parquet")):
        row = pq.read_table(path, columns=["task", "length"]).slice(0, 1).to_pylist()[0]
        written[row["task"], row["length"]].append(path.stat().st_mtime)
    gaps = dict[tuple[str, int], list[float]]()
    for setting, times in written.items():
        times.sort()
        later = times[math.ceil(PREPARING * len(times)) :]
        gaps[setting] = [b - a for a, b in pairwise(later)]
    return gaps


def main() -> None:
    for run in map(Path, sys.argv[1:]):
        for (task, length), gaps in sorted(paces(run).items()):
            if len(gaps) < 2:
                print(f"{run}: {task}, {length} tokens: too few haystacks to tell")
                continue
            off = 1.96 * stdev(gaps) / math.sqrt(len(gaps))
            each = f"{mean(gaps):.2f} [{mean(gaps) - off:.2f}, {mean(gaps) + off:.2f}] s a haystack"
            print(f"{run}: {task}, {length} tokens: {each}, of {len(gaps)}")


if __name__ == "__main__":
    main()

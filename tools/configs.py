"""Configurations of the kernel that scores codes, tried on a GPU: microseconds and shares of copy bandwidth.

    python tools/configs.py "lightning mxfp4" [--length 1M] [--batch 8] [--select] [--tiny]

The best stand first, the present one among them. KIND: what `topkit.kernels.score.triton_impl.CONFIGS` names,
all of it that is scored like it. --select times scoring and selecting at once. The best belongs into that table,
with its figure in benchmarks/LOG.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch

from topkit.experiments.bench import formulas
from topkit.experiments.bench.codes import best, random_codes, random_queries, scores
from topkit.experiments.bench.formulas import LIGHTNING
from topkit.experiments.bench.scale import Scale
from topkit.experiments.bench.session import Session
from topkit.kernels import score
from topkit.kernels.backend import interpreted
from topkit.kernels.score.layout import Config
from topkit.kernels.score.triton_impl import CONFIGS

# Tiles are no matter of compiling, which takes seconds for each of the others.
GRID = {
    "rows": (64, 128),
    "tiles": (8, 16, 32),
    "warps": (4, 8),
    "stages": (3, 4),
    "registers": (None, 128),
}
SMALL = {"rows": (128,), "tiles": (2,), "warps": (4,), "stages": (1,), "registers": (None, 128)}
NOW = dict(CONFIGS)
UNITS = {"K": 1 << 10, "M": 1 << 20}


def main() -> None:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("kind", choices=CONFIGS)
    parser.add_argument("--length", default="1M")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--select", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="small, also in Triton's interpreter")
    given = parser.parse_args()
    if not torch.cuda.is_available() and not interpreted():
        raise SystemExit("needs a GPU, or TRITON_INTERPRET=1 with --tiny")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    scale = Scale.tiny() if given.tiny else replace(Scale(), batch=given.batch)
    length = scale.lengths[0] if given.tiny else tokens(given.length)
    tried = list(sorted(trials(given, Session(device, scale), length)))
    for microseconds, rate, share, config in tried:
        now = "  (now)" if config == NOW[given.kind] else ""
        print(f"{microseconds:9.1f} us  {rate:6.0f} GB/s  {share:6.1%} of copy  {config}{now}")


def tokens(text: str) -> int:
    """128K, 1M, or a number."""
    return int(text[:-1]) * UNITS[text[-1]] if text[-1] in UNITS else int(text)


def trials(
    given: argparse.Namespace, session: Session, length: int
) -> Iterator[tuple[float, float, float, Config]]:
    s = session.scale
    kind = next(
        (name for name, code in LIGHTNING.items() if given.kind == f"lightning {code}"), given.kind
    )
    moved = formulas.index(kind, s.batch, length, s.groups, s.dim)
    sets = [
        random_codes(session, kind, s.batch, length) for _ in range(session.sets(moved.counted))
    ]
    queries = random_queries(session, kind, s.batch)
    if given.select:
        calls = [lambda one=one: best(one, queries, s.k, "triton") for one in sets]
    else:
        moved += formulas.scores(s.batch, length, sets[0].codes.shape[1])
        calls = [lambda one=one: scores(one, queries, "triton") for one in sets]
    score.has_gluon = lambda device: False  # the table is that of the other kernel
    now = NOW[given.kind]
    others = (Config(*values) for values in product(*(SMALL if given.tiny else GRID).values()))
    for config in [now, *(one for one in others if one != now)]:
        CONFIGS[given.kind] = config
        try:
            microseconds = float(np.median(session.timed(calls)))
        except Exception as error:  # what does not fit, whatever the compiler or the driver raises
            print(f"{config}: {str(error).splitlines()[0][:90]}", file=sys.stderr)
            continue
        rate = moved.counted / microseconds / 1e3
        yield microseconds, rate, rate / session.copy, config


if __name__ == "__main__":
    main()

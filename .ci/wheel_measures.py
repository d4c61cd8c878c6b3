"""Measures with the topkit that is installed, and saves a capture for the console script.

python wheel_measures.py FOLDER
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import torch

import topkit
from topkit.errors import EXTRA_OF
from topkit.testing import assert_selects, check_indexer, real_tensors

HERE = Path(__file__).resolve().parents[1]

assert HERE not in Path(topkit.__file__).resolve().parents, f"{topkit.__file__} is the checkout's"
# torch itself wants jinja2.
there = [n for n in EXTRA_OF if n not in ("jinja2", "markupsafe") and find_spec(n)]
assert not there, f"{there} are extras, and the environment is to have none"

generator = torch.Generator().manual_seed(0)
queries, keys, values = (torch.randn(1, n, 64, 32, generator=generator) for n in (4, 2, 2))
capture = topkit.Capture.from_tensors(queries, keys, values)
recall = {
    row["indexer"]: row["recall"]
    for row in topkit.measure(capture, ["exact", "random", "sign"], 8).summary()
}
assert recall["exact()"] == 1 > recall["sign()"] > recall["random()"], recall
check_indexer("sign")
assert_selects((queries @ keys.repeat_interleave(2, 1).mT)[:, :, -1:].topk(8).indices,
               queries=queries[:, :, -1:], keys=keys)  # fmt: skip
real = real_tensors(15, "ties")
assert_selects(real.scores.topk(8).indices, real.scores)
capture.save(sys.argv[1])

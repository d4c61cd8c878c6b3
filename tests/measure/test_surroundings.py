"""The rows are the same whatever the process is set to."""

import functools

import pytest
import torch

import topkit
from surroundings import SURROUNDINGS
from topkit.experiments.capture.capture import Capture

SPECS = (
    "exact",
    "sign",
    "quantized",
    "quantized(dtype='int4')",
    "quest(page_size=4)",
    "degraded(0.6, persist='stream', per='layer')",
    "sampled",
    "top_p(mass=0.5)",
    "keep(refine(sign(), factor=2), sink=2, window=3)",
    "shared(exact(), per='group')",
    "shared(sign(), per='layer')",
    "random",
)
G = torch.Generator().manual_seed(0)
QUERIES, KEYS, VALUES = (
    torch.randn(shape, generator=G) for shape in ((2, 4, 3, 64), (2, 2, 120, 64), (2, 2, 120, 64))
)


def rows():
    capture = Capture.from_tensors(QUERIES, KEYS, VALUES)
    measured = topkit.measure(capture, SPECS, "16,10%,100%", device="cpu", reference="sign")
    return measured.table.to_pylist(), measured.summary()


plain = functools.cache(rows)


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_measured_rows(name):
    table, summary = plain()
    with SURROUNDINGS[name]():
        ours, its_summary = rows()
    assert ours == table
    assert its_summary == summary


def test_a_capture_in_a_folder(tmp_path):
    Capture.from_tensors(QUERIES, KEYS, VALUES).save(tmp_path)
    _, summary = plain()
    for surroundings in SURROUNDINGS.values():
        with surroundings():
            measured = topkit.measure(tmp_path, "sign", 16, device="cpu")
        assert measured.summary()[0]["recall"] == next(
            row["exact_recall"]
            for row in summary
            if (row["indexer"], row["budget"]) == ("sign()", "16")
        )

"""Measuring at a budget of bytes: what all indexers read is the same, in the table too."""

import pytest
import torch

import topkit
from topkit.errors import InputError
from topkit.experiments.capture.capture import Capture


def made(length=256, width=16):
    g = torch.Generator().manual_seed(0)
    shapes = ((1, 4, 2, width), (1, 2, length, width), (1, 2, length, width))
    queries, keys, values = (torch.randn(*shape, generator=g) for shape in shapes)
    return Capture.from_tensors(queries, keys, values)


INDEXERS = ["exact", "quest", "moba", "keep(quest(), sink=2)", "refine(quest(page_size=64))"]


def test_all_indexers_read_the_budget_and_keep_their_k():
    plan = topkit.measure.plan(made(), INDEXERS, "4,8", budget="bytes=0.25")
    rows = topkit.run(plan).summary()
    assert {row["budget"] for row in rows} == {"4", "8"} and len(rows) == 10
    for row in rows:
        # 2 heads of 16 numbers in 4 bytes are 128 bytes a token.
        wanted = 128 if row["indexer"].startswith("exact") else 32
        assert row["bytes_read_per_key"] == pytest.approx(wanted, rel=0.1), row["indexer"]
    assert plan.notes == (
        "bytes=0.25: 32 bytes a token and layer at 256 tokens",
        "keep(quest(page_size=16), sink=2) as keep(quest(page_size=8), sink=2), at k 4, 8",
        "moba(page_size=16) as moba(page_size=4), at k 4, 8",
        "quest(page_size=16) as quest(page_size=8), at k 4, 8",
        "refine(quest(page_size=64)) as refine(quest(page_size=64), factor=7), at k 4",
        "refine(quest(page_size=64)) as refine(quest(page_size=256)), at k 8",
        "exact() is an oracle, and stays as it is",
    )


def test_a_share_and_bytes_that_are_one_choose_alike():
    by_share = topkit.measure(made(), ["quest"], 4, budget="bytes=0.25").table
    by_bytes = topkit.measure(made(), ["quest"], 4, budget={"bytes": 32}).table
    assert by_share.equals(by_bytes)


@pytest.mark.parametrize(
    ("indexers", "budget", "said"),
    [
        (["quest", "top_p"], "bytes=0.2", r"cannot be met: top_p\(exact\(\)\) reads 128 bytes"),
        (["exact", "random"], "bytes=0.2", "no indexer reads bytes=0.2: exact.. is an oracle"),
        (["sign"], "bytes=0.2", "no indexer reads bytes=0.2: sign.. reads 4 bytes a token, of 25.6"),
        (["quest"], "0.2", "budget must be bytes=0.06"),
    ],
)  # fmt: skip
def test_what_cannot_be_met_is_refused_by_name(indexers, budget, said):
    with pytest.raises(InputError, match=said):
        topkit.measure.plan(made(), indexers, 4, budget=budget)

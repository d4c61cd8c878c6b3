"""Figures of papers: laws that they prove hold, and the table says of each claim what became of it."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from topkit.experiments.decode.driver import Driver
from topkit.indexers import INDEXERS
from topkit.indexers.base import Cache, Indexer
from topkit.indexers.spec import parse

FOLDER = Path(__file__).parents[1] / "results" / "papers"
CLAIMS: dict[str, dict[str, Any]] = yaml.safe_load((FOLDER / "claims.yaml").read_text())
NOTES: dict[str, str] = yaml.safe_load((FOLDER / "notes.yaml").read_text())
with open(FOLDER / "figures.csv") as _file:
    ROWS = {row["claim"]: row for row in csv.DictReader(_file)}


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def built(recipe: Indexer, keys: Tensor):
    """An index of keys, and the step of a query behind them."""
    driver, cache = Driver(recipe, 0, 1.0, keys.shape[1]), Cache(keys, keys)
    return driver.build(cache, {}), driver.step({"cache": cache})


# The table


def test_each_claim_has_its_row_in_its_own_words():
    assert list(ROWS) == list(CLAIMS)
    for name, claim in CLAIMS.items():
        row = ROWS[name]
        assert row["command"] == f"python tools/paper_figures.py {name}"
        for key in ("method", "source", "read", "says", "ours", "data"):
            assert row[key] == claim[key], name
        assert row["paper"] == str(claim["paper"])
        assert [float(row["least"]), float(row["greatest"])] == claim["accept"]


def test_a_claim_is_met_where_its_value_lies_within_what_was_accepted():
    for name, row in ROWS.items():
        low, high = CLAIMS[name]["accept"]
        assert (low <= float(row["value"]) <= high) == {"True": True, "False": False}[row["met"]]
        assert float(row["low"]) <= float(row["value"]) <= float(row["high"])
        assert (row["met"] == "False") == (name in NOTES), name


def test_claims_name_methods_papers_and_where_they_were_read():
    for name, claim in CLAIMS.items():
        assert claim["method"] in INDEXERS and name.startswith(claim["method"])
        assert claim["source"].startswith("arXiv ") and claim["says"] and claim["ours"]
        assert claim["read"] in ("paper", "summary", "facts")
        assert claim["data"] in ("Gaussian", "smollm2", "smollm2 tensors", "reference")


def test_at_least_twelve_methods_meet_a_figure_that_their_paper_states():
    met = {row["method"] for row in ROWS.values() if row["met"] == "True"}
    read = {
        row["method"] for row in ROWS.values() if row["met"] == "True" and row["read"] == "paper"
    }
    assert len(met) >= 12 and len(read) >= 12


# Laws


@pytest.mark.parametrize("width", [16, 100, 128])
def test_rabitqs_codes_lie_at_the_angle_that_the_paper_proves(width: int):
    # arXiv 2405.12497, footnote 5: (D / pi)^1/2 2 gamma(D / 2) / ((D - 1) gamma((D - 1) / 2)).
    proved = math.exp(math.lgamma(width / 2) - math.lgamma((width - 1) / 2))
    proved *= math.sqrt(width / math.pi) * 2 / (width - 1)
    keys = torch.nn.functional.normalize(gaussian(1, 1, 4000, width), dim=-1)
    index, step = built(parse("rabitq(seed=3)"), keys)
    # A key's code is what axes read of it, at a length of its own.
    code = index.score(torch.eye(width)[None, None], step)[0, 0].T
    mean = keys[0, 0].mean(0)
    cosine = torch.nn.functional.cosine_similarity(code, keys[0, 0] - mean)
    assert float(cosine.mean()) == pytest.approx(proved, abs=4 * float(cosine.std()) / 60)
    assert (0.797 < proved < 0.801) == (width >= 100)


def test_rabitqs_estimates_lie_on_the_line_of_true_values():
    keys, queries = gaussian(1, 1, 4000, 64), gaussian(1, 1, 8, 64, seed=1)
    index, step = built(parse("rabitq()"), keys)
    true = (queries @ (keys - keys.mean(2, keepdim=True)).mT).flatten()
    estimate = index.score(queries, step).flatten()
    slope = float((true @ estimate) / (true @ true))
    # The error's deviation is 0.75 of the values', over 32,000 pairs.
    assert slope == pytest.approx(1, abs=4 * 0.75 / math.sqrt(32_000))


@pytest.mark.parametrize(("bits", "tables"), [(10, 150), (4, 6)])
def test_magicpig_samples_as_equation_10_says(bits: int, tables: int):
    count = 600
    query = torch.nn.functional.normalize(gaussian(8, 1, 1, 32), dim=-1)
    side = gaussian(8, 1, count, 32, seed=1)
    side = torch.nn.functional.normalize(side - (side @ query.mT) * query, dim=-1)
    for cosine in (0.0, 0.4, 0.8):
        keys = cosine * query + math.sqrt(1 - cosine**2) * side
        spec = f"magicpig(bits={bits}, tables={tables}, sink=0, window=0, center=False)"
        index, step = built(parse(spec), keys)
        drawn = (index.select(query, count, step).indices >= 0).double().mean((1, 2, 3))
        same = (1 - math.acos(cosine) / math.pi) ** bits
        chance = 1 - (1 - same) ** tables - tables * same * (1 - same) ** (tables - 1)
        # Tables are the same for all keys of a query, so that queries are the units.
        apart = float(drawn.std()) / math.sqrt(8) + math.sqrt(chance / (8 * count))
        assert float(drawn.mean()) == pytest.approx(chance, abs=4 * apart)


def test_fp4_errs_on_gaussian_keys_as_quartet_says():
    keys = gaussian(1, 1, 2048, 64)
    errors = {}
    for dtype in ("mxfp4", "nvfp4"):
        index, step = built(parse(f"quantized(dtype={dtype!r})"), keys)
        read = index.score(torch.eye(64)[None, None], step).mT
        errors[dtype] = float((read - keys).square().mean() / keys.square().mean())
    # arXiv 2505.14669, table 2: 1.37e-2 of mxfp4; blocks of 16 with finer scales err less.
    assert errors["mxfp4"] == pytest.approx(1.37e-2, rel=0.05)
    assert errors["nvfp4"] < 0.9 * errors["mxfp4"]


def test_vattentions_softmax_sum_is_off_by_epsilon_no_oftener_than_delta_says():
    epsilon, delta = 0.2, 0.1
    keys, query = gaussian(200, 1, 600, 16), gaussian(200, 1, 1, 16, seed=1)
    recipe = (
        f"vattention(epsilon={epsilon}, delta={delta}, heavy=0.1, sample=0.1, sink=2, window=2)"
    )
    index, step = built(parse(recipe), keys)
    chosen = index.select(query, 600, step)
    weights = (query @ keys.mT).double().exp()[:, :, 0]
    assert chosen.log_weights is not None
    slots, log_weights = chosen.indices[:, :, 0], chosen.log_weights[:, :, 0].double()
    drawn = weights.gather(-1, slots.clamp_min(0)) * log_weights.exp()
    off = (drawn.masked_fill(slots < 0, 0).sum(-1) / weights.sum(-1) - 1).abs() > epsilon
    assert float(off.double().mean()) <= delta + 3 * math.sqrt(delta * (1 - delta) / 200)
    assert (slots >= 0).sum(-1).double().mean() < 500  # of an estimate that is one

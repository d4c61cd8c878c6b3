"""Candidates against baselines on dumps: by hand, alike, wrong, from run to run; bad input."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import topkit
from topkit import Capture
from topkit.cli.commands import app
from topkit.cli.exits import run
from topkit.errors import GateFailed, InputError, Undecided
from topkit.indexers import INDEXERS, lightning
from topkit.indexers.base import Step
from topkit.indexers.scored import Codes

FP32, FP8 = "lightning:weights=given,dtype=fp32", "lightning:weights=given,dtype=fp8"


def dump(samples: int = 6, length: int = 200, seed: int = 0, noise: float = 0.0) -> Capture:
    """Sequences whose attention follows the index, as a trained one's does; noise makes another run of it."""
    g, h = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 1)

    def drawn(*shape: int) -> Tensor:
        x = torch.randn(*shape, generator=g)
        return x + noise * torch.randn(*shape, generator=h)

    keys = drawn(samples, 1, length, 32) * (0.5 * drawn(samples, 1, length, 1)).exp()
    queries = drawn(samples, 4, 8, 32)
    return Capture.from_tensors(
        queries,
        keys,
        index_queries=queries,
        index_keys=keys,
        index_weights=drawn(samples, 8, 4).abs() / 8,
    )


def two_layers() -> Capture:
    t = torch.randn(2, 3, 1, 8, 32), torch.randn(2, 3, 1, 80, 32)
    return Capture.from_tensors(
        *t, index_queries=t[0], index_keys=t[1], index_weights=t[0][:, :, 0, :, :1]
    )


@dataclass(frozen=True)
class neighbours(lightning):
    """Index keys whose scale is their neighbour's, as a kernel that is off by one reads it."""

    weights: str = "given"
    dtype: str = "fp8"

    def encode(self, keys: Tensor, step: Step) -> Codes:
        codes = super().encode(keys, step)
        return {**codes, "scale": codes["scale"].roll(1, 2)}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("samples", [2, 6])
def test_keys_scored_with_their_neighbours_scales_are_unsafe(samples: int, seed: int) -> None:
    tensors = dump(samples, seed=seed)
    said = topkit.compare(tensors, baseline=FP8, candidate=neighbours(), k=16)
    assert said.verdict.word == "unsafe"
    rerun = dump(samples, seed=seed, noise=1e-4)
    assert (
        topkit.compare(tensors, rerun, baseline=FP8, candidate=neighbours(), k=16).verdict.word
        == "unsafe"
    )


@pytest.mark.parametrize("seed", range(4))
def test_a_recipe_is_safe_beside_itself_also_where_it_changes_from_run_to_run(seed: int) -> None:
    tensors, rerun = dump(seed=seed), dump(seed=seed, noise=0.02)
    said = topkit.compare(tensors, rerun, baseline=FP8, candidate=FP8, k=16)
    summary = said.summary()
    assert said.verdict.word == "safe" and summary["rows_changed"] == 0
    assert summary["recall"]["mean"] == 1 and summary["mass"]["lost"] == 0
    assert summary["rerun"]["recall"] < 0.99 and summary["rerun"]["rows_changed"] > 0.2
    said.require()


@dataclass(frozen=True)
class another_run(lightning):
    """fp32 keys of an engine that does not repeat itself: noise of a run's own, in as many sequences as it likes."""

    weights: str = "given"
    run: int = 0
    noise: float = 0.05

    def encode(self, keys: Tensor, step: Step) -> Codes:
        vectors = super().encode(keys, step)["vectors"]
        own = int(vectors.double().abs().sum() * 1e3) % 2**31  # of the sequence
        g = torch.Generator().manual_seed(own + 7919 * self.run)
        return {"vectors": vectors + self.noise * torch.randn(vectors.shape, generator=g)}


def test_runs_alike_are_unsafe_in_five_per_cent_at_most() -> None:
    """Two runs of one engine, whose lists differ by about the margin: 40 dumps of 1 to 6 sequences."""
    words, losts = list[str](), list[float]()
    for seed in range(40):
        tensors = dump(1 + seed % 6, length=60, seed=100 * seed)
        runs = (another_run(run=1), another_run(run=2))
        how: dict[str, Any] = dict(baseline=runs[0], candidate=runs[1], k=12)
        said = topkit.compare(tensors, margin="recall=0.03,mass=0.006", **how)
        words.append(said.verdict.word)
        losts.append(1 - said.summary()["recall"]["mean"])
    assert 0.02 < np.mean(losts) < 0.04  # they do differ
    assert words.count("unsafe") <= 2


def test_what_the_baseline_changes_by_itself_is_no_fault_of_the_candidate() -> None:
    """The engine's rerun differs as the candidate does, by more than the margin; a rerun shows it."""
    alone = beside = 0
    for seed in range(8):
        tensors = dump(6, length=60, seed=100 * seed)
        t = [tensors.load(n, 0) for n in range(6)]
        keys = [
            another_run(run=3).encode(x.keys, Step(inputs={"index_keys": x.index_keys})) for x in t
        ]
        rerun = Capture.from_tensors(
            torch.cat([x.queries for x in t]),
            torch.cat([x.keys for x in t]),
            index_queries=torch.cat([x.index_queries for x in t if x.index_queries is not None]),
            index_keys=torch.cat([x["vectors"] for x in keys]),
            index_weights=torch.cat([x.index_weights for x in t if x.index_weights is not None]),
        )
        how: dict[str, Any] = dict(baseline=FP32, candidate=another_run(run=4), k=12)
        how["margin"] = "recall=0.002"
        alone += topkit.compare(tensors, **how).verdict.word == "unsafe"
        beside += topkit.compare(tensors, rerun, **how).verdict.word == "unsafe"
    assert alone == 8 and beside == 0


def test_a_dump_of_one_sequence_is_never_safe() -> None:
    said = topkit.compare(dump(1), baseline=FP32, candidate=FP32, k=16)
    assert said.verdict.word == "undecided" and said.verdict.sequences == 5
    with pytest.raises(Undecided, match="5 sequences like these would decide, 4 more"):
        said.require()


def test_copies_of_a_sequence_are_one() -> None:
    t = dump(1).load(0, 0)
    assert t.index_queries is not None and t.index_keys is not None and t.index_weights is not None
    eight = Capture.from_tensors(
        t.queries.repeat(8, 1, 1, 1),
        t.keys.repeat(8, 1, 1, 1),
        index_queries=t.index_queries.repeat(8, 1, 1, 1),
        index_keys=t.index_keys.repeat(8, 1, 1, 1),
        index_weights=t.index_weights.repeat(8, 1, 1),
    )
    said = topkit.compare(eight, baseline=FP32, candidate=FP32, k=16)
    assert said.verdict.word == "undecided"
    assert said.summary()["sequences"] == 1 and said.summary()["copies"] == 7


def by_hand(tensors: Capture, sample: int, k: int) -> tuple[list[float], list[float], list[bool]]:
    """Recall, mass lost and change of fp8 keys without rotation, a query at a time."""
    t = tensors.load(sample, 0)
    recalls, losts, changes = [], [], []
    for row, at in enumerate(t.positions.tolist()):
        lists = []
        for dtype in ("fp32", "fp8"):
            recipe = topkit.indexer(f"lightning:weights=given,dtype={dtype}")
            assert t.index_keys is not None and t.index_queries is not None
            assert t.index_weights is not None
            step = Step(
                kv_heads=1,
                reader=recipe,
                inputs={
                    "index_keys": t.index_keys[:, :, : at + 1],
                    "index_queries": t.index_queries[:, :, row : row + 1],
                    "index_weights": t.index_weights[:, row : row + 1],
                },
            )
            index = recipe.build(t.keys[:, :, : at + 1], step)
            chosen = index.select(t.queries[:, :, row : row + 1], k, step)
            lists.append(set(chosen.indices[0, 0, 0].tolist()))
        one, other = lists
        shares = (t.queries[0, :, row] @ t.keys[0, 0, : at + 1].T * t.scaling).softmax(-1).mean(0)
        recalls.append(len(one & other) / k)
        losts.append(float(shares[sorted(one)].sum() - shares[sorted(other)].sum()))
        changes.append(one != other)
    return recalls, losts, changes


def test_the_numbers_are_those_made_by_hand() -> None:
    tensors, k = dump(3, length=120), 12
    summary = topkit.compare(tensors, baseline=FP32, candidate=FP8, k=k).summary()
    each = [by_hand(tensors, sample, k) for sample in range(3)]
    recalls, losts = np.array([x[0] for x in each]), np.array([x[1] for x in each])
    assert summary["recall"]["mean"] == pytest.approx(recalls.mean(), abs=1e-6)
    assert summary["recall"]["worst"] == pytest.approx(recalls.min(), abs=1e-6)
    assert summary["recall"]["p1"] == pytest.approx(np.percentile(recalls, 1), abs=1e-6)
    assert summary["mass"]["lost"] == pytest.approx(losts.mean(1).clip(0).mean(), abs=1e-5)
    assert summary["mass"]["worst"] == pytest.approx(losts.max(), abs=1e-5)
    assert summary["rows_changed"] == pytest.approx(np.mean([x[2] for x in each]))
    place = summary["recall"]["worst_row"]
    row = list(range(112, 120)).index(place["position"])
    assert recalls[place["sample"], row] == recalls.min() and place["layer"] == place["list"] == 0
    for one in summary["by_sequence"]:
        assert one["recall"] == pytest.approx(recalls[one["sample"]].mean(), abs=1e-6)


def test_zeros_that_a_relu_makes_are_ties_and_forgiven() -> None:
    g = torch.Generator().manual_seed(0)
    keys, queries = torch.randn(6, 1, 100, 16, generator=g), torch.randn(6, 2, 4, 16, generator=g)
    weights = torch.ones(6, 4, 2)
    # No product is above 0 but those of a few keys.
    index_keys = -queries.mean((1, 2))[:, None, None].expand(-1, -1, 100, -1) * keys.norm(
        dim=-1, keepdim=True
    )
    index_queries = queries.mean((1, 2))[:, None, None].expand(-1, 2, 4, -1).contiguous()
    tensors = Capture.from_tensors(
        queries,
        keys,
        index_queries=index_queries,
        index_keys=index_keys.contiguous(),
        index_weights=weights,
    )

    @dataclass(frozen=True)
    class latest(lightning):
        """Takes the latest of equal keys, not the first."""

        weights: str = "given"

        def score(self, queries: Tensor, codes: Codes, step: Step) -> Tensor:
            scores = super().score(queries, codes, step)
            return scores + 1e-9 * torch.arange(scores.shape[-1])

        def pick(
            self, queries: Tensor, codes: Codes, k: int, step: Step, pool: str | None = None
        ) -> Tensor:
            return super(lightning, self).pick(queries, codes, k, step, pool)

    summary = topkit.compare(
        tensors, baseline=FP32, candidate=latest(), k=10, margin="recall=0.01"
    ).summary()
    assert summary["ties_at_boundary"] == summary["rows_changed"] == summary["changed_by_ties"] == 1
    assert summary["recall"]["mean"] == 1 and summary["verdict"] == "safe"


def test_lists_of_heads_and_lists_of_layers_are_compared() -> None:
    g = torch.Generator().manual_seed(1)
    tensors = Capture.from_tensors(
        torch.randn(5, 4, 3, 16, generator=g), torch.randn(5, 2, 90, 16, generator=g)
    )
    for baseline, candidate in [
        ("exact", "shared(exact(), per='layer')"),
        ("shared(exact(), per='group')", "exact"),
        ("keep(exact(), sink=2)", "quest(page_size=4)"),
        ("refine(sign(), factor=2)", "sign"),
    ]:
        summary = topkit.compare(tensors, baseline=baseline, candidate=candidate, k=8).summary()
        assert summary["rows"] == 5 * 3 * 4 and 0.05 < summary["recall"]["mean"] < 1
        known = not baseline.startswith(("keep", "refine"))
        assert (summary["ties_at_boundary"] is not None) == known


def test_rows_that_k_covers_are_left_out() -> None:
    g = torch.Generator().manual_seed(1)
    tensors = Capture.from_tensors(
        torch.randn(5, 2, 4, 16, generator=g), torch.randn(5, 2, 20, 16, generator=g)
    )
    summary = topkit.compare(tensors, baseline="exact", candidate="sign", k=18).summary()
    assert summary["rows"] == 5 * 2 * 2 and summary["left_out"] == 5 * 2 * 2
    with pytest.raises(InputError, match="k = 20 covers all that each of 40 rows sees"):
        topkit.compare(tensors, baseline="exact", candidate="sign", k=20)


@pytest.mark.slow
def test_more_keys_than_a_model_lists_are_refused_and_shorter_lists_told() -> None:
    g = torch.Generator().manual_seed(1)
    q, keys = torch.randn(5, 2, 3, 16, generator=g), torch.randn(5, 1, 50, 16, generator=g)
    lists = torch.stack([torch.randperm(40, generator=g)[:8] for _ in range(15)]).view(5, 3, 8)
    tensors = Capture.from_tensors(q, keys, native=lists)
    how: dict[str, Any] = dict(baseline="exact", candidate="native")
    summary = topkit.compare(tensors, k=8, **how).summary()
    assert summary["keys"] == {"baseline": 8, "candidate": 8}
    with pytest.raises(InputError, match="has lists of 8 keys; got k = 9; give k = 8"):
        topkit.compare(tensors, k=9, **how)
    short = dict(how, candidate="top_p(exact(), mass=0.3)")
    keys_kept = topkit.compare(tensors, k=8, **short).summary()["keys"]
    assert keys_kept["baseline"] == 8 and keys_kept["candidate"] < 6


@pytest.mark.slow
def test_another_process_counts_the_same() -> None:
    tensors = dump(3, length=80)
    how: dict[str, Any] = dict(baseline=FP32, candidate=FP8, k=8)
    one = topkit.compare(tensors, **how).summary()
    assert topkit.compare(tensors, jobs=2, **how).summary() == one


def test_the_console_script_leaves_with_the_verdict(tmp_path: Path, capsys: Any) -> None:
    tensors, folder = dump(6), tmp_path / "dump"
    tensors.save(folder)
    dump(6, noise=0.02).save(tmp_path / "rerun")
    dump(1).save(tmp_path / "one")
    words = ["compare", str(folder), "--baseline", FP32, "-k", "16"]
    assert run(app, [*words, "--candidate", FP32]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[-1].startswith("safe over 6 sequences: ") and "recall" in said.out
    mass = "recall=0.5,mass=0.3"
    assert run(app, [*words, "--candidate", FP8, "--margin", mass, str(tmp_path / "rerun")]) == 0
    assert "baseline's rerun" in capsys.readouterr().out
    assert run(app, [*words, "--candidate", "random"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("topkit: unsafe over 6 sequences")
    one = ["compare", str(tmp_path / "one"), *words[2:], "--candidate", FP8, "--json"]
    assert run(app, one) == 3
    said = capsys.readouterr()
    summary = json.loads(said.out)
    assert summary["verdict"] == "undecided" and summary["sequences_to_decide"] >= 2
    assert said.err.splitlines()[-1] == f"topkit: {summary['sentence']}"
    assert run(app, [*one, "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["reads"] > 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(k="8,16"), "compare asks at one budget; got '8,16'"),
        (dict(candidate="lightning"), "made for|needs hidden, rope"),
        (dict(layers=[3]), r"the dump has no layer \[3\]; it has \[0\]"),
        (dict(margin="recall=2"), "margin must be recall=0.01,mass=0.002"),
        (dict(candidate="lightnin:weights=given"), "lightning"),
        (dict(rerun=lambda: two_layers()), r"layers \[0\]; got 3 sequences, layers \[0, 1\]"),
        (
            dict(rerun=lambda: dump(2)),
            "the second dump must be of the same sequences and layers: 3 ",
        ),
        (dict(rerun=lambda: dump(3, length=70)), "the second dump must be of the same tokens"),
    ],
)
def test_bad_input_is_refused(changes: dict[str, Any], said: str) -> None:
    how: dict[str, Any] = dict(baseline=FP32, candidate=FP8, k=8, margin="recall=0.01")
    how |= {name: x() if callable(x) else x for name, x in changes.items()}
    with pytest.raises(InputError, match=said):
        topkit.compare(dump(3, length=80), **how)


def test_a_second_dump_of_other_index_heads_is_refused() -> None:
    alone = [
        Capture.from_tensors(
            index_queries=torch.randn(3, heads, 2, 32),
            index_keys=torch.randn(3, 1, 80, 32),
            index_weights=torch.rand(3, 2, heads),
        )
        for heads in (4, 8)
    ]
    with pytest.raises(InputError, match=r"same tokens, .* 4 heads; got 80, .*, 8"):
        topkit.compare(*alone, baseline=FP32, candidate=FP8, k=8)


def test_a_gate_is_an_error_in_python() -> None:
    with pytest.raises(GateFailed, match="unsafe over 3 sequences: mean loss of recall at least"):
        topkit.compare(dump(3), baseline=FP32, candidate="random", k=8).require()


def test_an_index_alone_is_weighed_by_its_own_scores() -> None:
    """Of a dump without attention: mass is that of the softmax of the baseline's scores, by hand."""
    whole, k = dump(6, length=90), 12
    t = [whole.load(n, 0) for n in range(6)]
    alone = Capture.from_tensors(
        index_queries=torch.cat([x.index_queries for x in t if x.index_queries is not None]),
        index_keys=torch.cat([x.index_keys for x in t if x.index_keys is not None]),
        index_weights=torch.cat([x.index_weights for x in t if x.index_weights is not None]),
    )
    summary = topkit.compare(alone, baseline=FP32, candidate="random", k=k).summary()
    masses, chances = [], []
    for x in t:
        assert x.index_queries is not None and x.index_keys is not None
        assert x.index_weights is not None
        alike = (x.index_queries[0] @ x.index_keys[0, 0].T).relu()
        for row, at in enumerate(x.positions.tolist()):
            weights = x.index_weights[0, row, :, None] * (4 * 32) ** -0.5
            shares = (weights * alike[:, row]).sum(0)[: at + 1].softmax(0)
            masses.append(float(shares.topk(k).values.sum()))
            chances.append(k / (at + 1))
    mass = summary["mass"]
    assert mass["of"] == "index" and mass["baseline"] == pytest.approx(np.mean(masses), abs=1e-5)
    assert mass["chance"] == pytest.approx(np.mean(chances))
    # random() takes each key as likely as any.
    assert mass["lost"] == pytest.approx(np.mean(masses) - np.mean(chances), abs=0.03)
    same = [topkit.compare(x, baseline=FP32, candidate=FP8, k=k).summary() for x in (alone, whole)]
    assert same[0]["recall"] == same[1]["recall"] and same[1]["mass"]["of"] == "attention"
    wrong = topkit.compare(alone, baseline=FP8, candidate=neighbours(), k=k)
    assert wrong.verdict.word == "unsafe"
    with pytest.raises(InputError, match=r"random\(\) has no score of every key, and the dump no"):
        topkit.compare(alone, baseline="random", candidate=FP8, k=k)
    said = topkit.compare(alone, baseline="random", candidate=FP8, k=k, margin="recall=0.5")
    assert said.summary()["mass"] is None and said.verdict.word == "unsafe"


def test_a_file_in_an_engines_layout_is_compared(tmp_path: Path, capsys: Any) -> None:
    g = torch.Generator().manual_seed(0)
    q, keys = torch.randn(6, 70, 4, 16, generator=g), torch.randn(6, 70, 2, 16, generator=g)
    np.savez(tmp_path / "dump.npz", q=q.numpy(), k=keys.numpy())
    words = ["compare", str(tmp_path / "dump.npz"), "--baseline", "exact", "-k", "8", "--json"]
    code = run(app, [*words, "--layout", "bthd", "--candidate", "sign"])
    summary = json.loads(capsys.readouterr().out)
    assert code == 1 and summary["rows"] == 6 * 4 * (70 - 8)
    same = topkit.compare(
        Capture.from_tensors(q.transpose(1, 2), keys.transpose(1, 2)),
        baseline="exact",
        candidate="sign",
        k=8,
    ).summary()
    assert same["recall"]["mean"] == pytest.approx(summary["recall"]["mean"], abs=1e-6)


def test_the_page_names_what_the_summary_has() -> None:
    page = (Path(__file__).parents[2] / "docs" / "compare.md").read_text()
    summary = topkit.compare(
        dump(2), dump(2, noise=0.02), baseline=FP32, candidate=FP8, k=16
    ).summary()
    inner = [name for part in ("recall", "mass", "rerun") for name in summary[part]]
    for name in [*summary, *inner]:
        assert f"`{name}`" in page or name in ("baseline", "candidate", "k", "error"), name


@pytest.mark.slow
def test_every_recipe_is_safe_beside_itself() -> None:
    g, tried = torch.Generator().manual_seed(0), 0

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    tensors = Capture.from_tensors(
        drawn(5, 4, 3, 16),
        drawn(5, 2, 70, 16),
        drawn(5, 2, 70, 16),
        index_queries=drawn(5, 4, 3, 16),
        index_keys=drawn(5, 1, 70, 16),
        index_weights=drawn(5, 3, 4),
        prefill_queries=drawn(5, 4, 20, 16),
    )
    offered = {"cache", "values", "prefill_queries", "index_queries", "index_keys", "index_weights"}
    for recipe in INDEXERS.values():
        for spec in recipe.examples:
            if not topkit.indexer(spec).needs <= offered or recipe.__name__ == "projected":
                continue
            summary = topkit.compare(tensors, baseline=spec, candidate=spec, k=8).summary()
            assert summary["verdict"] == "safe" and summary["rows_changed"] == 0, spec
            tried += 1
    assert tried > 80

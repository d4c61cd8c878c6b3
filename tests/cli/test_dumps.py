"""Dumps at the console: the number comes from the words alone, bad input is one line and exit code 2."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from topkit.cli.commands import app
from topkit.cli.exits import run

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    def _call(*words: object) -> tuple[int, str, str]:
        code = run(app, ["measure", *(str(word) for word in words)])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return _call


def test_a_file_in_an_engines_layout_is_measured(call: Call, tmp_path: Path) -> None:
    make = torch.Generator().manual_seed(0)
    q, k = (torch.randn(60, heads, 8, generator=make) for heads in (4, 2))
    np.savez(tmp_path / "a.npz", q=q.numpy(), k=k.numpy())
    words = (tmp_path / "a.npz", "--layout", "thd", "-k", 8, "--json", "--out")
    code, out, err = call(*words, tmp_path / "one", "--indexer", "exact", "--indexer", "sign")
    exact, sign = json.loads(out)
    assert code == 0 and exact["recall"] == 1 and exact["against"] == "the exact Top-k"
    assert err.startswith("a.npz: ") and "less than a minute" in err
    reference = ("--reference", "exact", "--indexer", "sign")
    (same,) = json.loads(call(*words, tmp_path / "two", *reference)[1])
    assert same["against"] == "exact()" and same["exact_recall"] == sign["recall"]
    assert same["recall"] == pytest.approx(sign["recall"], abs=0.01)
    (own,) = json.loads(call(*words, tmp_path / "three", "--reference", "sign", *reference[2:])[1])
    assert own["recall"] == own["worst"] == 1 and own["exact_recall"] == sign["recall"]
    text = call(*words[:-2], "--out", tmp_path / "three", "--reference", "sign", *reference[2:])[1]
    assert "against" in text and "recall of exact" in text and "1.000" in text
    saved = call(*words, tmp_path / "four", "--indexer", "sign", "--scaling", "0.5")
    assert saved[0] == 0


def test_keys_of_a_cache_may_be_rotated_already(
    call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    codes = torch.randint(0, 120, (4, 64 * 128), dtype=torch.uint8)
    scales = torch.ones(4, 64).view(torch.uint8)
    dump = {"index_q": torch.randn(1, 4, 128), "weights": torch.rand(1, 4)}
    dump |= {"index_k_cache": torch.cat([codes, scales], 1), "seq_lens": torch.tensor([200])}
    torch.save(dump | {"block_table": torch.tensor([[2, 0, 1, 3]])}, tmp_path / "step.pt")
    for number, (dtype, said) in enumerate(
        [("fp32", False), ("mxfp4", True), ("mxfp4,hadamard=false", False)]
    ):
        recipe = f"lightning:weights=given,dtype={dtype}"
        words = ("--indexer", recipe, "-k", 8, "--out", tmp_path / str(number))
        code, _, err = call(tmp_path / "step.pt", *words)
        assert code == 0 and ("say hadamard=false" in err) == said
        beside = ["--baseline", "lightning:weights=given", "--candidate", recipe, "-k", "8"]
        plan = run(app, ["compare", str(tmp_path / "step.pt"), *beside, "--dry-run"])
        err = capsys.readouterr().err
        assert plan == 0 and ("say hadamard=false" in err) == said and "float32 scores" not in err


def test_bad_dumps_are_one_line_and_exit_2(call: Call, tmp_path: Path) -> None:
    q, k = torch.randn(40, 12, 8), torch.randn(40, 2, 8)
    torch.save({"q": q, "k": k}, tmp_path / "a.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "a.pt").read_bytes()[:900])
    torch.save({"q": q, "k": k, "cu_seqlens": torch.tensor([0, 30])}, tmp_path / "sums.pt")
    torch.save({"q": q, "k": torch.full_like(k, torch.nan)}, tmp_path / "nan.pt")
    wide = {"q": torch.randn(40, 12, 576), "k": torch.randn(40, 1, 576)}
    torch.save(wide, tmp_path / "mla.pt")
    for name, layout, says in (
        ("a.pt", None, "say layout=thd (--layout thd)"),
        ("a.pt", "hdt", "layout must be bhtd, bthd, thd"),
        ("cut.pt", "thd", "write it again"),
        ("sums.pt", "thd", "add up to 30"),
        ("mla.pt", "thd", "give scaling="),
        ("none.pt", "thd", "no capture at"),
    ):
        how = () if layout is None else ("--layout", layout)
        words = (tmp_path / name, *how, "--indexer", "sign", "-k", 4, "--out", tmp_path / "out")
        code, out, err = call(*words)
        assert (code, out, err.count("\n")) == (2, "", 1) and says in err, err
    # What only numbers show comes behind the plan, and leaves nothing either.
    words = (tmp_path / "nan.pt", "--layout", "thd", "--indexer", "sign", "-k", 4)
    code, out, err = call(*words, "--out", tmp_path / "out")
    assert (code, out) == (2, "") and "keys hold NaN" in err.splitlines()[-1]
    assert err.startswith("nan.pt: ") and not (tmp_path / "out").exists()

"""Responses of engines that hold index selections, written here as the engines write them."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import topkit
from topkit import Capture
from topkit.errors import InputError
from topkit.indexers.indices_file import read

LAYERS, K = 2, 3


def lists(tokens: int, seed: int = 0) -> np.ndarray:
    """[tokens, layers, k]: distinct earlier slots in no order, -1 where there are fewer."""
    draw = np.random.default_rng(seed)
    made = np.full((tokens, LAYERS, K), -1, np.int32)
    for t in range(tokens):
        for layer in range(LAYERS):
            own = draw.permutation(t + 1)[:K]
            made[t, layer, : len(own)] = own
    return made


def sglang(x: np.ndarray, **changes: Any) -> dict[str, Any]:
    text = base64.b64encode(x.tobytes()).decode()
    meta = {"indexer_topk": text, "indexer_topk_num_layers": LAYERS}
    meta |= {"prompt_tokens": len(x) - 4, "completion_tokens": 5, "id": "a"}
    return {"text": "so", "meta_info": meta | changes}


def vllm(x: np.ndarray, **changes: Any) -> dict[str, Any]:
    raw = io.BytesIO()
    np.save(raw, x)
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "indexer_topk": base64.b64encode(raw.getvalue()).decode(),
    }
    usage = {"prompt_tokens": len(x) - 4, "completion_tokens": 5}
    return {"choices": [choice | changes], "usage": usage}


def written(folder: Path, response: Any) -> str:
    (folder / "response.json").write_text(json.dumps(response))
    return str(folder / "response.json")


@pytest.mark.parametrize("engine", ["sglang", "vllm", "npy", "openai"])
def test_each_token_has_the_list_of_its_layer(tmp_path: Path, engine: str) -> None:
    x = lists(20)
    if engine == "npy":
        np.save(tmp_path / "lists.npy", x)
        path = str(tmp_path / "lists.npy")
    elif engine == "openai":
        meta = sglang(x)["meta_info"]
        usage = {"prompt_tokens": meta.pop("prompt_tokens")}
        path = written(tmp_path, {"choices": [{"index": 0, "meta_info": meta}], "usage": usage})
    else:
        path = written(tmp_path, {"sglang": sglang, "vllm": vllm}[engine](x))
    file = read(path)
    assert sorted(file.layers) == [0, 1]
    for layer in (0, 1):
        for t in (0, 1, 7, 19):
            got = file.lists(layer, 0, torch.tensor([t]), 21)
            assert got.tolist() == [[x[t, layer].tolist()]]


def test_several_responses_are_samples_and_a_reference(tmp_path: Path) -> None:
    both = [lists(20), lists(12, 1)]
    path = written(tmp_path, [sglang(x) for x in both])
    make = torch.Generator().manual_seed(0)
    # A capture of the whole text: the last token asked nothing.
    queries, keys = (torch.randn(2, h, n, 8, generator=make) for h, n in ((2, 3), (1, 21)))
    at = [[5, 9, 19], [2, 7, 11]]
    tensors = {0: queries, 1: 2 * queries}, {0: keys, 1: keys}
    capture = Capture.from_tensors(*tensors, lengths=[21, 13], positions=at)
    table = topkit.measure(capture, "exact", K, reference=f"indices:file={path}").table.to_pylist()
    judged = [row for row in table if row["reference"].startswith("indices")]
    assert len(judged) == 2 * 2 * 3 * 2
    for row in judged:
        sample, layer = row["sample"], row["layer"]
        place = at[sample].index(row["position"])
        scores = queries[sample, row["head"], place] @ keys[sample, 0, : row["position"] + 1].T
        best = set(scores.topk(min(K, len(scores))).indices.tolist())
        theirs = {slot for slot in both[sample][row["position"], layer].tolist() if slot >= 0}
        assert row["recall"] == pytest.approx(len(best & theirs) / len(theirs))
    summary = topkit.measure(capture, "exact", K, reference=f"indices:file={path}").summary()[0]
    assert summary["recall"] == pytest.approx(
        np.mean([r["recall"] for r in judged if not r["trivial"]])
    )
    assert summary["exact_recall"] == 1 and summary["against"].startswith("indices")


@pytest.mark.parametrize(
    ("response", "says"),
    [
        ({"text": "so", "meta_info": {}}, "has no indexer_topk: ask for it"),
        (sglang(lists(20), indexer_topk_num_layers=None), "wants indexer_topk_num_layers"),
        (sglang(lists(20), prompt_tokens=17), "are not k of 21 tokens"),
        (sglang(lists(20), indexer_topk="no!"), "must be base64"),
        (
            sglang(lists(20), indexer_topk=sglang(lists(20))["meta_info"]["indexer_topk"][:-8]),
            "cut off",
        ),
        (vllm(lists(20), indexer_topk="AAAA"), "is no .npy"),
        (vllm(lists(20)[:, 0]), "whole numbers"),
        (vllm(lists(20).astype(np.float32)), "whole numbers"),
        (
            {**vllm(lists(20)), "usage": {"prompt_tokens": 90, "completion_tokens": 5}},
            "of 20 tokens",
        ),
        ([sglang(lists(20)), vllm(lists(20)[:, :1])], r"\[2, 1\] layers"),
        (3, "must be a mapping"),
    ],
)
def test_what_is_no_selection_is_one_line(tmp_path: Path, response: Any, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        read(written(tmp_path, response))
    assert "\n" not in str(caught.value) and "response.json" in str(caught.value)

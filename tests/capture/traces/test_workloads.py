"""Workload traces that flashinfer-bench wrote (tools/workload_traces.py), read here by loops of their own."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import topkit
from topkit import Capture
from topkit.errors import InputError

ROOT = Path(__file__).parent
NAMES = {path.parent.name: path for path in sorted(ROOT.glob("workloads/*/*.jsonl"))}


def inputs(path: Path, root: Path = ROOT) -> Iterator[dict[str, Tensor]]:
    for line in path.read_text().splitlines():
        said = json.loads(line)["workload"]["inputs"]
        yield {
            name: load_file(root / one["path"])[one["tensor_key"]]
            for name, one in said.items()
            if one["type"] == "safetensors"
        }


def test_each_sequence_of_an_indexers_workload_is_a_sample() -> None:
    capture, sample = Capture.open(NAMES["dsa_paged"]), 0
    for x in inputs(NAMES["dsa_paged"]):
        raw = x["k_index_cache_fp8"].view(torch.uint8).flatten(1).tolist()
        for row, length in enumerate(x["seq_lens"].tolist()):
            one = capture.load(sample, 0)
            assert one.index_only and one.positions.tolist() == [length - 1]
            for t in range(length):
                page, at = raw[int(x["block_table"][row, t // 4])], t % 4
                codes = torch.tensor(page[128 * at : 128 * at + 128], dtype=torch.uint8)
                (scale,) = struct.unpack("<f", bytes(page[512 + 4 * at : 516 + 4 * at]))
                wanted = codes.view(torch.float8_e4m3fn).float() * scale
                assert one.index_keys is not None and torch.equal(one.index_keys[0, 0, t], wanted)
            assert one.index_queries is not None and one.index_weights is not None
            assert torch.equal(one.index_queries[0, :, 0], x["q_index_fp8"][row].float())
            assert torch.equal(one.index_weights[0, 0], x["weights"][row])
            sample += 1
    assert capture.samples == list(range(sample)) and sample == 4
    rows = topkit.measure(NAMES["dsa_paged"], "lightning:weights=given,dtype=fp32", 8).summary()
    assert rows[0]["recall"] == 1 and rows[0]["rows"] == 4


@pytest.mark.parametrize("name", ["gqa_paged", "mla_paged"])
def test_pages_of_attention_are_put_end_to_end(name: str) -> None:
    capture = Capture.open(NAMES[name], scaling=0.125)
    x = next(inputs(NAMES[name]))
    indptr = x["kv_indptr"].tolist()
    for row in (0, 1):
        one = capture.load(row, 0)
        pages = x["kv_indices"][indptr[row] : indptr[row + 1]].tolist()
        assert one.keys.shape[2] == len(pages) and one.scaling == 0.125
        for t, page in enumerate(pages):
            if name == "gqa_paged":
                key, value = x["k_cache"][page, 0], x["v_cache"][page, 0]
            else:
                value = x["ckv_cache"][page]
                key = torch.cat([value, x["kpe_cache"][page]], -1)
            assert torch.equal(one.keys[0, :, t], key)
            assert one.values is not None and torch.equal(one.values[0, :, t], value)
        asked = x["q"] if name == "gqa_paged" else torch.cat([x["q_nope"], x["q_pe"]], -1)
        assert torch.equal(one.queries[0, :, 0], asked[row])


def test_ragged_prefill_asks_for_the_last_tokens() -> None:
    capture, x = Capture.open(NAMES["gqa_ragged"]), next(inputs(NAMES["gqa_ragged"]))
    assert capture.load(0, 0).positions.tolist() == [12, 13, 14, 15, 16]
    assert torch.equal(capture.load(1, 0).queries[0].transpose(0, 1), x["q"][5:18])
    assert torch.equal(capture.load(1, 0).keys[0].transpose(0, 1), x["k"][17:30])


def test_mla_without_its_scale_is_refused() -> None:
    with pytest.raises(InputError, match="give scaling="):
        Capture.open(NAMES["mla_paged"])


def test_a_blob_that_changed_is_another_capture(tmp_path: Path) -> None:
    shutil.copytree(ROOT, tmp_path / "traces")
    path = tmp_path / NAMES["gqa_ragged"].relative_to(ROOT.parent)
    before = Capture.open(path).fingerprint
    assert before == Capture.open(NAMES["gqa_ragged"]).fingerprint
    blob = next((tmp_path / "traces/blob/workloads/gqa_ragged").rglob("*.safetensors"))
    save_file({n: 2 * y if n == "q" else y for n, y in load_file(blob).items()}, blob)
    assert Capture.open(path).fingerprint != before


def changed(said: dict[str, Any], how: str) -> None:
    given = said["workload"]["inputs"]
    if how == "random":
        given["k"] = {"type": "random"}
    elif how == "key":
        given["k"]["tensor_key"] = "keys"
    elif how == "blob":
        given["k"]["path"] = "blob/nowhere.safetensors"
    elif how == "type":
        given["k"]["type"] = "hdf5"
    elif how == "inputs":
        said["workload"]["inputs"] = {"x": {"type": "scalar", "value": 1}}
    elif how == "version":
        said["workload"] = [1]


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("random", "k of 'gqa_ragged.*' is random"),
        ("key", "has no tensor 'keys'"),
        ("blob", "is in no folder above"),
        ("type", "safetensors, scalar or random"),
        ("inputs", "are read"),
        ("version", "workload must be a mapping"),
    ],
)
def test_a_trace_of_another_form_is_one_line(tmp_path: Path, how: str, says: str) -> None:
    shutil.copytree(ROOT, tmp_path / "traces")
    path = tmp_path / NAMES["gqa_ragged"].relative_to(ROOT.parent)
    said = json.loads(path.read_text())
    changed(said, how)
    path.write_text(json.dumps(said) + "\n")
    with pytest.raises(InputError, match=says) as caught:
        Capture.open(path)
    assert "\n" not in str(caught.value) and path.name in str(caught.value)


def test_cut_and_mixed_traces_are_one_line(tmp_path: Path) -> None:
    shutil.copytree(ROOT, tmp_path / "traces")
    paths = [
        tmp_path / NAMES[name].relative_to(ROOT.parent) for name in ("gqa_ragged", "gqa_paged")
    ]
    one, other = (path.read_text() for path in paths)
    for text, says in (
        (one[:300], "JSON"),
        ("", "no workload"),
        (one + other, "give a file of one"),
    ):
        paths[0].write_text(text)
        with pytest.raises(InputError, match=says) as caught:
            Capture.open(paths[0])
        assert "\n" not in str(caught.value)


def test_the_folder_of_a_trace_names_its_files() -> None:
    with pytest.raises(InputError, match="give one of its workloads"):
        Capture.open(ROOT)

"""Dumps that are odd in what they hold: names twice, tensors without numbers, slots of another sequence, empty batches."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import Tensor

import topkit
from topkit import Capture
from topkit.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore:Duplicate name", "ignore:The PyTorch API of nested")
Q, K = (torch.randn(1, heads, count, 8) for heads, count in ((4, 3), (2, 40)))


def npy(x: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, x)
    return file.getvalue()


def refused(says: str, source: Any, **how: Any) -> None:
    with pytest.raises(InputError, match=says) as caught:
        Capture.from_tensors(source, **how)
    assert "\n" not in str(caught.value)


def test_a_name_that_stands_twice_is_refused(tmp_path: Path) -> None:
    for member in ("k.npy", "k"):
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            for name, x in (("q.npy", Q), ("k.npy", K), (member, 5 * K)):
                archive.writestr(name, npy(x.numpy()))
        refused("a.npz.* holds 'k' twice", tmp_path / "a.npz")
    raw = save({"q": Q, "k": K})
    length = int.from_bytes(raw[:8], "little")
    header = raw[8 : 8 + length].decode().rstrip()
    header = f'{header[:-1]},"k":{json.dumps(json.loads(header)["q"])}}}'.encode()
    header += b" " * (-len(header) % 8)
    twice = len(header).to_bytes(8, "little") + header + raw[8 + length :]
    (tmp_path / "a.safetensors").write_bytes(twice)
    refused("a.safetensors.* holds 'k' twice", tmp_path / "a.safetensors")


def test_a_shape_below_zero_is_not_the_rest_of_the_file(tmp_path: Path) -> None:
    raw = npy(K.numpy()).replace(b"(1, 2, 40, 8)", b"(-1,)        ")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("q.npy", npy(Q.numpy()))
        archive.writestr("k.npy", raw)
    refused("k.npy has the shape", tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (K.to_sparse(), "keys must be an ordinary tensor; got one that is sparse_coo"),
        (K.to("meta"), "without numbers"),
        (torch.nested.nested_tensor([K[0]]), "nested"),
        (K.to(torch.complex64), "floating-point"),
        (3.0, "got float"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_without_numbers_at_their_places_are_refused(
    tmp_path: Path, x: Any, says: str
) -> None:
    refused(says, {"q": Q, "k": x})
    torch.save({"q": Q, "k": x}, tmp_path / "a.pt")
    refused(says, tmp_path / "a.pt")
    if isinstance(x, Tensor) and not x.is_complex():
        refused("scales of keys", {"q": Q, "k": K.to(torch.float8_e4m3fn), "k_scale": x})


def test_what_is_no_plain_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.npz")
    refused("no plain file", tmp_path / "a.npz", lengths=[3])
    refused("no capture at", tmp_path / "a.npz")
    recipe = f"indices:file={tmp_path / 'a.npz'}"
    with pytest.raises(InputError, match="no plain file"):
        topkit.measure(Capture.from_tensors(Q, K), recipe, 4)


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"q": Q[:0], "k": K[:0]}, "no sample"),
        ({"q": [], "k": []}, "no sample"),
        ({"q": Q, "k": K[:, :, :0]}, "keys have no tokens"),
        ({"q": Q[:, :, :0], "k": K}, "Tq > 0"),
        ({"q": Q[:, :0], "k": K}, "Hq > 0"),
        ({"q": Q[..., :0], "k": K[..., :0]}, "D > 0"),
        (
            {"index_q": Q, "index_k": K, "weights": torch.ones(1, 3, 4)},
            r"index_keys \[1, 1, T, Di\] must have 1 where",
        ),
    ],
)
def test_empty_dimensions_are_named(tensors: dict[str, Any], says: str) -> None:
    refused(says, tensors)


def test_layers_may_stand_behind_their_tensors_and_repeat_what_is_of_all(tmp_path: Path) -> None:
    wanted = Capture.from_tensors({2: Q, 7: 2 * Q}, {2: K, 7: 3 * K}, scaling=0.5)
    one = {"sm_scale": 0.5, "seq_lens": torch.tensor([40])}
    for number, tensors in enumerate(
        (
            {"q": {2: Q, 7: 2 * Q}, "k": {2: K, 7: 3 * K}, "scaling": 0.5},
            {"q.2": Q, "q.7": 2 * Q, "k_2": K, "k_7": 3 * K, "scaling": 0.5},
            {"layers": {2: {"q": Q, "k": K} | one, 7: {"q": 2 * Q, "k": 3 * K} | one}},
        )
    ):
        path = tmp_path / f"{number}.pt"
        torch.save(tensors, path)
        capture = Capture.open(path)
        assert capture.layers == [2, 7]
        for layer in (2, 7):
            a, b = capture.load(0, layer), wanted.load(0, layer)
            assert torch.equal(a.keys, b.keys) and torch.equal(a.queries, b.queries)
            assert a.scaling == b.scaling
    other = one | {"seq_lens": torch.tensor([39])}
    layers = [{"q": Q, "k": K} | one, {"q": Q, "k": K} | other]
    refused("lengths must be the same for all layers", {f"{n}.{a}": x for n, own in enumerate(layers) for a, x in own.items()})  # fmt: skip


def test_lists_of_an_engine_are_slots_that_their_queries_see() -> None:
    right = torch.arange(4).expand(1, 3, 4)

    def native(lists: Tensor, says: str, **more: Any) -> None:
        with pytest.raises(InputError, match=says):
            Capture.from_tensors(Q, K, native=lists, **more)

    native(right + 2**32, "slots from 0 on")  # int32 would wrap
    native(right - 3, "got -3 to 0")
    native(right + 40, "slots of the 40 keys.*got 43")
    native(right + 36, "position 37 holds slot 38, which it does not see")
    # An early query has fewer keys than places: what fills the others is no fault.
    early = Capture.from_tensors(Q, K, native=right, positions=[1, 2, 3])
    rows = topkit.measure(early, "native", 4).summary()
    assert rows[0]["kept"] == 3  # 2, 3 and 4 keys


@pytest.mark.parametrize("of_index", [True, False])
def test_lists_of_one_step_need_no_dimension_of_tokens(of_index: bool) -> None:
    lists = torch.stack([torch.randperm(40)[:8] for _ in range(2)])
    step = {"queries": torch.randn(2, 4, 8), "keys": torch.randn(2, 1, 40, 8)}
    if of_index:
        step = {f"index_{name}": x for name, x in step.items()} | {
            "index_weights": torch.ones(2, 4)
        }
    for native in (lists, lists[:, None]):
        capture = Capture.from_tensors(step | {"native": native})
        for row in (0, 1):
            own = capture.load(row, 0).native
            assert own is not None and own.tolist() == [[lists[row].tolist()]]


def test_a_host_without_memory_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    from topkit.cli.exits import exit_code

    assert exit_code(lambda: torch.empty(1 << 60, dtype=torch.uint8)) == 2
    assert "out of memory" in capsys.readouterr().err

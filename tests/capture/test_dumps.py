"""Dumps as people have them: files, names, the order of dimensions, lengths, scales; and what is refused."""

from __future__ import annotations

import json
import pickle
import random
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

import topkit
from topkit import Capture
from topkit.errors import InputError
from topkit.experiments.capture.tensors import LayerTensors

SHORT = {
    "queries": "q",
    "keys": "k",
    "values": "v",
    "index_queries": "index_q",
    "index_keys": "index_k",
}


def made(rows: int = 2, tokens: int = 21, heads: int = 4, kv_heads: int = 2) -> dict[str, Any]:
    """A batch [B, H, T, D], its queries those of every token."""
    make = torch.Generator().manual_seed(tokens)
    sizes = {"queries": heads, "keys": kv_heads, "values": kv_heads}
    sizes |= {"index_queries": 3, "index_keys": 1}
    tensors = {n: torch.randn(rows, h, tokens, 8, generator=make) for n, h in sizes.items()}
    return tensors | {"index_weights": torch.randn(rows, tokens, 3, generator=make)}


def same(a: LayerTensors, b: LayerTensors) -> bool:
    x, y = a.tensors(), b.tensors()
    return x.keys() == y.keys() and all(torch.equal(x[n].double(), y[n].double()) for n in x)


def bthd(x: dict[str, Tensor]) -> dict[str, Any]:
    return {n: y.transpose(1, 2) if y.ndim == 4 else y for n, y in x.items()}


def end_to_end(x: dict[str, Tensor], lengths: list[int]) -> dict[str, Any]:
    """Each row's first tokens, one row after the other, [tokens, heads, D]."""
    return {
        n: torch.cat([row[:length] for row, length in zip(y, lengths, strict=True)])
        for n, y in bthd(x).items()
    }


def numpy(x: dict[str, Any]) -> dict[str, Any]:
    return {name: y.numpy() for name, y in x.items()}


WRITERS: dict[str, Callable[[Path, dict[str, Tensor]], object]] = {
    "a.npz": lambda path, x: np.savez(path, **numpy(x)),
    "b.npz": lambda path, x: np.savez_compressed(path, **numpy(x)),
    "a.pt": lambda path, x: torch.save(x, path),
    "b.pth": lambda path, x: torch.save(x, path, _use_new_zipfile_serialization=False),
    "a.safetensors": lambda path, x: save_file({n: y.contiguous() for n, y in x.items()}, path),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("layout", ["bhtd", "bthd", "thd"])
def test_every_file_name_and_layout_reads_the_same(tmp_path: Path, name: str, layout: str) -> None:
    x = made()
    wanted = Capture.from_tensors(**x)
    written = {"bhtd": x, "bthd": bthd(x), "thd": end_to_end(x, [21, 21])}[layout]
    written = {SHORT.get(n, "weights"): y for n, y in written.items()}
    if layout == "thd":
        written["cu_seqlens"] = torch.tensor([0, 21, 42])
    WRITERS[name](tmp_path / name, written)
    opened = Capture.open(tmp_path / name, layout=layout)
    assert opened.samples == [0, 1] and opened.layers == [0]
    assert all(same(opened.load(n, 0), wanted.load(n, 0)) for n in (0, 1))
    stated = opened.manifest["files"][0]
    saved = opened.save(tmp_path / "folder")
    assert saved.manifest["files"][0]["tensors"] == stated["tensors"]
    assert all(same(saved.load(n, 0), wanted.load(n, 0)) for n in (0, 1))


@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4), as_edges=st.booleans())
def test_sequences_end_to_end_are_samples(lengths: list[int], as_edges: bool) -> None:
    x = made(len(lengths), max(lengths))
    edges = [sum(lengths[:n]) for n in range(len(lengths) + 1)]
    how: dict[str, Any] = {"cu_seqlens": edges} if as_edges else {"lengths": lengths}
    capture = Capture.from_tensors(**end_to_end(x, lengths), layout="thd", **how)
    assert capture.samples == list(range(len(lengths)))
    for n, length in enumerate(lengths):
        own = {name: y[n : n + 1] for name, y in x.items()}
        own = {name: y[:, :length] if y.ndim == 3 else y[:, :, :length] for name, y in own.items()}
        assert same_but_number(capture.load(n, 0), Capture.from_tensors(**own).load(0, 0))


def same_but_number(a: LayerTensors, b: LayerTensors) -> bool:
    return a.positions.tolist() == b.positions.tolist() and same(a, b)


def test_queries_of_one_step_or_of_their_own_lengths() -> None:
    x, lengths = made(3, 20), [20, 7, 12]
    packed = end_to_end(x, lengths)
    last = torch.stack([x["queries"][n, :, length - 1] for n, length in enumerate(lengths)])
    step = Capture.from_tensors(last, packed["keys"], layout="thd", lengths=lengths)
    padded = Capture.from_tensors(last, bthd(x)["keys"], layout="bthd", lengths=lengths)
    for n, length in enumerate(lengths):
        for capture in (step, padded):
            one = capture.load(n, 0)
            assert one.positions.tolist() == [length - 1] and one.keys.shape[2] == length
            assert torch.equal(one.queries[0, :, 0], last[n])
    counts, edges = [3, 1, 5], [0, 3, 4, 9]
    some = torch.cat(
        [bthd(x)["queries"][n, lengths[n] - c : lengths[n]] for n, c in enumerate(counts)]
    )
    drafts = Capture.from_tensors(
        some, packed["keys"], layout="thd", lengths=lengths, cu_seqlens_q=edges
    )
    for n, count in enumerate(counts):
        assert drafts.load(n, 0).positions.tolist() == list(range(lengths[n] - count, lengths[n]))
        assert torch.equal(
            drafts.load(n, 0).queries[0].transpose(0, 1), some[edges[n] : edges[n + 1]]
        )
    at = [17, 18, 19, 6, 2, 3, 4, 5, 11]
    placed = Capture.from_tensors(
        some, packed["keys"], layout="thd", lengths=lengths, cu_seqlens_q=edges, positions=at
    )
    assert placed.load(2, 0).positions.tolist() == at[4:]


def test_padding_at_the_right_goes_with_its_queries() -> None:
    x, lengths = made(2, 21), [21, 13]
    for tensors, layout in ((x, None), (bthd(x), "bthd")):
        capture = Capture.from_tensors(**tensors, lengths=lengths, layout=layout)
        own = {n: y[1:2, :13] if y.ndim == 3 else y[1:2, :, :13] for n, y in x.items()}
        assert same_but_number(capture.load(1, 0), Capture.from_tensors(**own).load(0, 0))


def test_a_file_or_names_with_what_they_do_not_say(tmp_path: Path) -> None:
    x = end_to_end(made(2, 21), [21, 13])
    named = {"q": x["queries"], "k": x["keys"]}
    torch.save(named, tmp_path / "a.pt")
    how: dict[str, Any] = {"layout": "thd", "lengths": [21, 13], "scaling": 0.5}
    wanted = Capture.from_tensors(x["queries"], x["keys"], **how)
    for source in (named, tmp_path / "a.pt", str(tmp_path / "a.pt")):
        capture = Capture.from_tensors(source, **how)
        assert capture.fingerprint == wanted.fingerprint
        with pytest.raises(InputError, match="stands for all tensors"):
            Capture.from_tensors(source, x["keys"], **how)
    scale = {"sm_scale": np.array([0.5])}
    assert Capture.from_tensors(named | scale, layout="thd").load(0, 0).scaling == 0.5
    one = Capture.from_tensors(tmp_path / "a.pt", layout="thd", positions=list(range(34)))
    assert one.samples == [0] and one.dump is None
    pages = {
        "k_cache": x["keys"][:, None],
        "v_cache": x["values"][:, None],
        "q": x["queries"][[20, 33]],
    }
    pages |= {"kv_indptr": torch.tensor([0, 21, 34]), "kv_indices": torch.arange(34)}
    paged = Capture.from_tensors(pages)
    assert torch.equal(paged.load(1, 0).keys, wanted.load(1, 0).keys)


def test_layers_of_several_texts_are_mixed() -> None:
    q, k = torch.randn(4, 3, 8), torch.randn(2, 20, 8)
    with pytest.raises(InputError, match="of several texts or steps"):
        Capture.from_tensors({0: q, 1: q}, {0: k, 1: k[:, :19]})
    with pytest.raises(InputError, match="several numbers of samples"):
        Capture.from_tensors(
            {0: q[None], 1: q[None].repeat(2, 1, 1, 1)}, {0: k[None], 1: k[None].repeat(2, 1, 1, 1)}
        )


def test_layers_by_name_nested_or_flat(tmp_path: Path) -> None:
    x = {
        n: y.transpose(0, 1) for n, y in {k: v[0] for k, v in made().items() if v.ndim == 4}.items()
    }
    q, k = x["queries"], x["keys"]
    flat = {"model.layers.3.self_attn.q": q, "layers.3.k": k, "layers.11.q": 2 * q, "11.key": 2 * k}
    nested = {"layers": {3: {"q": q, "k": k}, 11: {"q": 2 * q, "k": 2 * k}}, "sm_scale": 0.5}
    listed = [{"Q": q, "K": k}, {"Q": 2 * q, "K": 2 * k}]
    torch.save(nested, tmp_path / "nested.pt")
    torch.save({"layers": listed, "scaling": 0.5}, tmp_path / "listed.pt")
    wanted = Capture.from_tensors(q, k, layout="thd", scaling=0.5).load(0, 0)
    captures = {
        "flat": Capture.from_tensors(flat, layout="thd", scaling=0.5),
        "nested": Capture.open(tmp_path / "nested.pt", layout="thd"),
        "listed": Capture.open(tmp_path / "listed.pt", layout="thd"),
    }
    for name, capture in captures.items():
        layers = [0, 1] if name == "listed" else [3, 11]
        assert capture.layers == layers
        assert same_but_number(capture.load(0, layers[0]), wanted)
        assert torch.equal(capture.load(0, layers[1]).keys, 2 * wanted.keys)


def test_scales_are_multiplied_by_whatever_their_shape() -> None:
    x = made(1, 20)
    q, k = (bthd(x)[n][0] for n in ("queries", "keys"))
    codes = k.to(torch.float8_e4m3fn)
    make = torch.Generator().manual_seed(0)
    for shape in ((), (1,), (20, 2), (20, 2, 1), (20, 2, 4)):
        scale = torch.rand(shape, generator=make) + 0.1
        each = (
            scale
            if scale.ndim == 3
            else scale.reshape(-1, 1, 1)
            if scale.numel() == 1
            else scale[..., None]
        )
        wanted = codes.float() * each.expand(20, 2, max(1, each.shape[-1])).repeat_interleave(
            8 // max(1, each.shape[-1]), -1
        )
        for kind in (codes, codes.view(torch.uint8)):
            got = Capture.from_tensors({"q": q, "k": kind, "k_scale": scale}, layout="thd")
            assert torch.equal(got.load(0, 0).keys[0].transpose(0, 1), wanted)
    powers = torch.randint(120, 130, (20, 2), generator=make)
    got = Capture.from_tensors({"q": q, "k": codes, "k_sf": powers.to(torch.uint8)}, layout="thd")
    wanted = codes.float() * 2.0 ** (powers - 127)[..., None]
    assert torch.equal(got.load(0, 0).keys[0].transpose(0, 1), wanted)
    numbers = torch.randint(-127, 128, (20, 2, 8), generator=make, dtype=torch.int8)
    got = Capture.from_tensors({"q": q, "k": numbers, "k_scale": torch.tensor(0.25)}, layout="thd")
    assert torch.equal(got.load(0, 0).keys[0].transpose(0, 1), numbers * 0.25)


def test_a_file_is_read_when_it_is_loaded_and_no_sooner(tmp_path: Path) -> None:
    x = bthd(made(2, 30))
    x["keys"][1, 4, 0, 0] = torch.nan
    torch.save({"q": x["queries"], "k": x["keys"]}, tmp_path / "a.pt")
    capture = Capture.open(tmp_path / "a.pt", layout="bthd")
    capture.load(0, 0)
    with pytest.raises(InputError, match=r"a.pt: sample 1, layer 0, head 0: keys hold NaN"):
        capture.load(1, 0)
    torch.save({"q": x["queries"], "k": x["keys"].nan_to_num()}, tmp_path / "a.pt")
    with pytest.raises(InputError, match="changed since it was opened"):
        capture.load(0, 0)


def test_another_process_opens_the_file_itself(tmp_path: Path) -> None:
    x = bthd(made(2, 900))
    save_file({n: x[n].contiguous() for n in ("queries", "keys")}, tmp_path / "a.safetensors")
    capture = Capture.open(tmp_path / "a.safetensors", layout="bthd")
    sent = pickle.dumps(capture.only(1, 0))
    assert len(sent) < 20_000
    assert same(pickle.loads(sent).load(1, 0), capture.load(1, 0))
    how: dict[str, Any] = {"layout": "bthd", "out": tmp_path / "out"}
    topkit.measure(tmp_path / "a.safetensors", "sign", "4,9", **how)
    done = topkit.measure.plan(tmp_path / "a.safetensors", "sign", "4,9", **how)
    assert done.jobs == () and done.done == 2


Q, K = torch.randn(300, 8, 64), torch.randn(300, 2, 64)
INDEX = {"index_queries": torch.randn(300, 40, 16), "index_keys": torch.randn(300, 16)}


@pytest.mark.parametrize(
    ("tensors", "remedy"),
    [
        ({"queries": Q, "keys": K}, "layout=thd"),
        ({"queries": Q, "keys": Q, "values": Q}, "layout=thd"),
        ({"queries": Q[None], "keys": K[None]}, "layout=bthd"),
        ({"queries": Q[:1], "keys": K}, "layout=thd"),
        ({"queries": Q[:1], "keys": K[:, :1]}, "layout=thd"),
        ({**INDEX, "index_weights": torch.randn(300, 40)}, "layout=thd"),
        ({"index_queries": torch.randn(16, 40, 8), "index_keys": torch.randn(99, 8),
          "index_weights": torch.randn(16, 40)}, "layout=thd"),
        ({"queries": Q.mT.mT.transpose(0, 1), "keys": K.transpose(0, 1), "layout": "thd"}, "layout=bhtd"),
        ({"queries": Q.transpose(0, 1)[None], "keys": K.transpose(0, 1)[None], "layout": "bthd"},
         "layout=bhtd"),
        ({"queries": torch.randn(16, 12, 8), "keys": torch.randn(16, 12, 8)}, "layout=thd"),
    ],
)  # fmt: skip
def test_another_order_of_dimensions_is_refused_with_its_remedy(tensors: Any, remedy: str) -> None:
    with pytest.raises(InputError, match=f"{remedy} .--layout"):
        Capture.from_tensors(**tensors)


def test_what_looks_right_is_taken() -> None:
    for heads, kv_heads, asked, tokens in ((32, 8, 1, 4096), (128, 1, 4, 33), (64, 8, 64, 64)):
        Capture.from_tensors(torch.randn(heads, asked, 4), torch.randn(kv_heads, tokens, 4))
    # Said, it is believed.
    x = torch.randn(16, 12, 8)
    Capture.from_tensors(x, x, layout="bhtd")


@pytest.mark.parametrize(
    ("width", "own", "heads"), [(576, 512, 1), (192, 128, 4), (576, None, 1), (320, 256, 1)]
)
def test_widths_of_mla_without_a_scaling_are_refused(
    width: int, own: int | None, heads: int
) -> None:
    q, k = torch.randn(4, 5, width), torch.randn(heads, 40, width)
    v = None if own is None else torch.randn(heads, 40, own)
    with pytest.raises(InputError, match="give scaling="):
        Capture.from_tensors(q, k, v)
    assert Capture.from_tensors(q, k, v, scaling=0.1).load(0, 0).scaling == 0.1


def test_lengths_that_do_not_add_up_are_named() -> None:
    def refused(says: str, **how: Any) -> None:
        asked = how.pop("queries", Q)
        with pytest.raises(InputError, match=says):
            Capture.from_tensors(asked, K, **{"layout": "thd", **how})

    refused("add up to 290 tokens, and the tensors have 300", cu_seqlens=[0, 100, 290])
    refused("add up to 310", lengths=[100, 210])
    refused("ascend", cu_seqlens=[0, 100, 90, 300])
    refused("ascend", cu_seqlens=[5, 300])
    refused("ascend", lengths=[300, 0])
    refused("say other sequences", cu_seqlens=[0, 100, 300], lengths=[200, 100])
    refused("neither all of them nor one each", lengths=[100, 200], queries=Q[:7])
    refused("of 1 sequences, the keys of 2", lengths=[100, 200], cu_seqlens_q=[0, 300])
    refused("add up to 8", lengths=[100, 200], cu_seqlens_q=[0, 3, 8], queries=Q[:7])
    refused("give cu_seqlens too", cu_seqlens_q=[0, 3, 7], queries=Q[:7])
    assert Capture.from_tensors(Q, K, layout="thd", cu_seqlens_q=[0, 100, 300]).samples == [0, 1]
    refused("must be whole numbers", lengths=[100.5, 199.5])
    refused("layout=thd", cu_seqlens=[0, 300], layout="bthd")
    refused("layout must be", layout="hdt")


def test_bad_names_scales_and_files_are_one_line(tmp_path: Path) -> None:
    def refused(tensors: dict[str, Any], says: str) -> None:
        with pytest.raises(InputError, match=says) as caught:
            Capture.from_tensors(tensors, layout="thd")
        assert "\n" not in str(caught.value)

    codes = K.to(torch.float8_e4m3fn)
    refused({"q": Q, "kk": K}, "did you mean 'k'")
    refused({"q": Q, "k": K, "keys": K}, "holds keys twice, as 'k' too")
    refused({"q": Q, "layers.0.k": K, "k": K}, "holds keys twice")
    refused({"q": Q, "k": codes}, "give keys_scale")
    refused({"q": Q, "k": codes, "k_scale": torch.ones(3, 2)}, "scales of keys must be")
    refused({"q": Q, "k": codes, "k_scale": torch.zeros(300, 2)}, "got 0.0 at")
    refused({"q": Q, "k": codes, "k_scale": torch.full((300, 2), torch.nan)}, "got nan at")
    refused({"q": Q, "k": K, "v_scale": torch.ones(())}, "scales of values, and no values")
    refused({"layers.0.q": Q, "layers.1.k": K}, r"layers \[0\], keys of layers \[1\]")
    refused({"v": K}, "queries must be a tensor")
    whole = tmp_path / "whole.npz"
    np.savez(whole, q=Q.numpy(), k=K.numpy())
    torch.save({"q": Q, "k": K}, tmp_path / "whole.pt")
    for path in (whole, tmp_path / "whole.pt"):
        raw = path.read_bytes()
        for size in (0, 30, len(raw) // 2, len(raw) - 5):
            cut = path.with_stem("cut")
            cut.write_bytes(raw[:size])
            with pytest.raises(InputError, match=r"cut.*write it again"):
                Capture.open(cut, layout="thd")
    np.savez(tmp_path / "objects.npz", q=np.array([{}], dtype=object))
    np.save(tmp_path / "one.npy", Q.numpy())
    torch.save([Q], tmp_path / "bare.pt")
    torch.save({"q": Path("x")}, tmp_path / "code.pt")
    for name in ("objects.npz", "one.npy", "bare.pt", "code.pt"):
        with pytest.raises(InputError, match=name) as caught:
            Capture.open(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_capture_is_one_line(tmp_path: Path) -> None:
    capture = Capture.from_tensors(**made(), lengths=[21, 21])
    line = "2 samples of 21 tokens, 21 queries, layer 0, 4 query and 2 KV heads of 8, f32, values, index tensors"
    assert repr(capture) == f"Capture({line})"
    assert repr(capture.save(tmp_path)) == f"Capture({line} in {tmp_path})"


def test_fifty_gigabytes_are_read_a_layer_at_a_time(tmp_path: Path) -> None:
    """A file of zeros that takes no room on the disk, larger than the machine's memory."""
    tokens, layers, entries, at = 98_304, 250, {}, 0
    for layer in range(layers):
        for name, count in (("q", 8), ("k", tokens)):
            size = count * 512 * 4
            place = {"shape": [count, 1, 512], "data_offsets": [at, at + size]}
            entries[f"layers.{layer}.{name}"] = {"dtype": "F32", **place}
            at += size
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    path = tmp_path / "large.safetensors"
    with open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + at)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    plan = topkit.measure.plan(
        path, "sign", 64, layout="thd", layers=[3, 200], out=tmp_path / "out"
    )
    assert plan.rows == 16
    read = "large.safetensors: 50.3 GB, of which 402.7 MB are read, a layer"
    assert plan.notes[0].startswith(read) and "less than a minute" in plan.notes[0]
    whole = topkit.measure.plan(path, "sign", 64, layout="thd", out=tmp_path / "out")
    assert ": 50.3 GB, read a layer" in whole.notes[0]
    capture = Capture.open(path, layout="thd")
    assert capture.layers == list(range(layers))
    assert capture.load(0, 200).keys.shape == (1, 1, tokens, 512)
    # Kilobytes: some layers of 200 MB, where the file has 250.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_500_000
    first = capture.fingerprint
    with open(path, "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\1")
    assert Capture.open(path, layout="thd").fingerprint != first
    with open(path, "r+b") as file:
        file.write((len(header) - 1).to_bytes(8, "little"))
        file.truncate(7 + len(header) + at)
    with pytest.raises(InputError, match="too large to copy"):
        Capture.open(path, layout="thd")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("name", WRITERS)
def test_flipped_and_missing_bytes_are_one_line_or_numbers(tmp_path: Path, name: str) -> None:
    path, draw = tmp_path / name, random.Random(0)
    WRITERS[name](path, {"q": torch.randn(12, 4, 8), "k": torch.randn(12, 2, 8)})
    whole, said = path.read_bytes(), list[str]()
    for _ in range(60):
        raw = bytearray(whole)
        if draw.random() < 0.3:
            del raw[draw.randrange(len(raw)) :]
        else:
            raw[draw.randrange(min(len(raw), draw.choice([400, len(raw)])))] = draw.randrange(256)
        path.write_bytes(raw)
        try:
            capture = Capture.open(path, layout="thd")
            assert capture.load(0, 0).queries.isfinite().all()
        except InputError as error:
            said.append(str(error))
    assert said and all("\n" not in line and name in line for line in said)
    path.write_bytes(whole)
    capture = Capture.open(path, layout="thd")
    path.unlink()
    with pytest.raises(InputError, match="changed since"):
        capture.load(0, 0)

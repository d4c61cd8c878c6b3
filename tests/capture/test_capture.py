"""Captures of one's own tensors: shapes, rows, files, and what must not open."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from topkit.errors import InputError
from topkit.experiments.capture import files
from topkit.experiments.capture.capture import Capture, LayerTensors, estimate_bytes
from topkit.experiments.capture.manifest import MANIFEST
from topkit.experiments.capture.writer import Writer
from topkit.experiments.runs import parts


def made(rows=2, heads=4, kv_heads=2, keys=9, queries=3, dim=8, dtype=torch.float32) -> Any:
    make = torch.Generator().manual_seed(rows + keys)
    shape = {"queries": (heads, queries), "keys": (kv_heads, keys), "values": (kv_heads, keys)}
    return {
        name: torch.randn(rows, *hs, dim, generator=make).to(dtype) for name, hs in shape.items()
    }


def same(a: LayerTensors, b: LayerTensors) -> bool:
    x, y = a.tensors(), b.tensors()
    return x.keys() == y.keys() and all(
        x[n].dtype == y[n].dtype and torch.equal(x[n], y[n]) for n in x
    )


def test_each_row_is_a_sample_and_each_query_one_of_the_last_real_tokens():
    capture = Capture.from_tensors(**made(), lengths=[9, 5])
    assert capture.samples == [0, 1]
    assert capture.layers == [0]
    whole, short = capture.load(0, 0), capture.load(1, 0)
    assert whole.positions.tolist() == [6, 7, 8]
    assert short.positions.tolist() == [2, 3, 4]
    assert torch.equal(short.keys[0], made()["keys"][1, :, :5])
    assert whole.scaling == 8**-0.5


def each(x: dict[str, Any], change) -> Any:
    return {name: change(y) for name, y in x.items()}


def test_numpy_without_a_batch_and_several_layers():
    x = each(made(rows=3), lambda y: y.numpy())
    assert Capture.from_tensors(**each(x, lambda y: y[0])).samples == [0]
    stacked = Capture.from_tensors(**each(x, lambda y: np.stack([y, 2 * y])))
    listed = Capture.from_tensors(**each(x, lambda y: [y, 2 * y]))
    mapped = Capture.from_tensors(**each(x, lambda y: {5: 2 * y, 3: y}))
    assert (stacked.layers, mapped.layers) == ([0, 1], [3, 5])
    assert stacked.fingerprint == listed.fingerprint
    assert same_tensors(stacked.load(2, 1), mapped.load(2, 5))
    readonly = x["keys"].copy()
    readonly.flags.writeable = False
    flipped = Capture.from_tensors(x["queries"].astype(np.float64), readonly[:, ::-1])
    assert flipped.load(0, 0).queries.dtype == torch.float32
    assert torch.equal(flipped.load(0, 0).keys[0], torch.tensor(x["keys"][0, ::-1].copy()))


def same_tensors(a: LayerTensors, b: LayerTensors) -> bool:
    return all(torch.equal(x, b.tensors()[name]) for name, x in a.tensors().items())


def test_absorbed_mla_and_learned_index_tensors():
    torch.manual_seed(0)
    capture = Capture.from_tensors(
        torch.randn(2, 128, 4, 576, dtype=torch.bfloat16),
        torch.randn(2, 1, 33, 576, dtype=torch.bfloat16),
        torch.randn(2, 1, 33, 512, dtype=torch.bfloat16),
        index_queries=torch.randn(2, 64, 4, 16),
        index_keys=torch.randn(2, 33, 16),
        index_weights=torch.randn(2, 4, 64),
        scaling=192**-0.5,
        lengths=torch.tensor([33, 20]),
    )
    x = capture.load(1, 0)
    assert x.queries.dtype == torch.bfloat16
    assert x.values is not None and list(x.values.shape) == [1, 1, 20, 512]
    assert x.index_keys is not None and list(x.index_keys.shape) == [1, 1, 20, 16]
    assert x.scaling == 192**-0.5


def test_positions_may_be_given():
    at = [[0, 3, 4], [1, 2, 8]]
    capture = Capture.from_tensors(**made(), positions=at)
    assert [capture.load(row, 0).positions.tolist() for row in range(2)] == at
    assert Capture.from_tensors(**made(), positions=at[0]).load(1, 0).positions.tolist() == at[0]


def test_tensors_that_require_gradients_are_taken_without():
    for dtype in (torch.float32, torch.float64):
        x = each(made(dtype=dtype), lambda y: y.requires_grad_())
        assert not Capture.from_tensors(**x).load(0, 0).queries.requires_grad
        assert len(Capture.from_tensors(**x).fingerprint) == 64


def broken(**changes):
    return lambda: Capture.from_tensors(**{**made(), **changes})


def spoilt(name, where, value):
    x = made()
    x[name][where] = value
    return lambda: Capture.from_tensors(**x)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (broken(keys=made(kv_heads=3)["keys"], values=None), "4 query heads cannot share 3"),
        (broken(keys=made(dim=4)["keys"]), r"keys \[1, Hk, T, D\] must have D = 8 as in queries"),
        (broken(values=made(keys=8)["values"]), "values .* must have T = 9 as in keys"),
        (broken(values=made(rows=1)["values"]), "values must be .* batch of the queries"),
        (broken(keys=made()["keys"][0]), r"keys must be \[B, Hk, T, D\]"),
        (broken(keys=torch.zeros(2, 2, 9, 8, dtype=torch.int64)), "keys must be a floating-point"),
        (broken(keys="nonsense"), "keys must be a floating-point"),
        (broken(keys=None), "keys must be a tensor .*; got None"),
        (broken(queries=None), "queries must be a tensor .*; got None"),
        (broken(lengths=[9]), "lengths must be 2 numbers"),
        (broken(lengths=[9, 8.5]), r"lengths must be whole numbers; got \[9.0, 8.5\]"),
        (broken(lengths="all"), "lengths must be whole numbers; got 'all'"),
        (broken(positions=[0, 1, 1.5]), "positions must be whole numbers"),
        (broken(positions=[0, 5, 5]), "positions must ascend"),
        (broken(scaling="a"), "scaling must be a number; got 'a'"),
        (broken(lengths=[10, 9]), "from 1 to 9"),
        (broken(lengths=[2, 9]), "3 queries and 2 keys"),
        (broken(positions=[0, 1, 9]), "positions must ascend within the 9 keys"),
        (broken(positions=[2, 1, 0]), "positions must ascend"),
        (broken(positions=[1, 2]), r"positions must be \[3\] or \[2, 3\]"),
        (broken(scaling=0.0), "scaling must be positive"),
        (broken(scaling=float("nan")), "scaling must be positive"),
        (broken(values=[made()["values"]] * 2), r"queries are of layers \[0\], values of layers"),
        (broken(queries=made()["queries"][:, :, :0]), "Tq > 0"),
        (spoilt("queries", (1, 3, 0, 0), torch.nan), "sample 1, layer 0, head 3: queries hold NaN"),
        (
            spoilt("keys", (0, 1, 8, 2), torch.inf),
            "sample 0, layer 0, head 1: keys hold NaN or inf",
        ),
        (spoilt("values", (1, 0, 0, 0), -torch.inf), "sample 1, layer 0, head 0: values"),
    ],
)
def test_bad_tensors_are_named(make, says):
    with pytest.raises(InputError, match=says):
        make()


def test_nan_in_the_padding_is_nobodys_business():
    x = made()
    x["keys"][1, :, 5:] = torch.nan
    Capture.from_tensors(**x, lengths=[9, 5])


@settings(max_examples=25, deadline=None)
@given(
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    group=st.integers(1, 3),
    kv_heads=st.integers(1, 3),
    keys=st.integers(1, 17),
    dim=st.integers(1, 9),
    with_values=st.booleans(),
    data=st.data(),
)
def test_saved_and_opened_is_the_same(
    tmp_path_factory, dtype, group, kv_heads, keys, dim, with_values, data
):
    queries = data.draw(st.integers(1, keys))
    x = made(2, group * kv_heads, kv_heads, keys, queries, dim, dtype)
    x["values"] = x["values"].transpose(1, 2).contiguous().transpose(1, 2)
    if not with_values:
        del x["values"]
    capture = Capture.from_tensors(**x, layer=7)
    folder = tmp_path_factory.mktemp("capture")
    saved = capture.save(folder)
    assert saved.fingerprint == capture.fingerprint
    for sample in capture.samples:
        assert same(saved.load(sample, 7), capture.load(sample, 7))
        path = folder / files.file_name(sample, 7)
        assert load_file(path).keys() == capture.load(sample, 7).tensors().keys()
        assert path.stat().st_size == estimate_bytes(capture.load(0, 7), keys, queries)
        alone = Capture.open(path).load(0, 0)
        assert same_tensors(alone, capture.load(sample, 7))


def test_estimate_scales_to_other_lengths(tmp_path):
    like = Capture.from_tensors(**made(rows=1, keys=5, queries=2)).load(0, 0)
    Capture.from_tensors(**made(rows=1, keys=1234, queries=11)).save(tmp_path)
    assert estimate_bytes(like, 1234, 11) == (tmp_path / files.file_name(0, 0)).stat().st_size


def test_the_fingerprint_follows_every_tensor():
    prints = {Capture.from_tensors(**made()).fingerprint}
    prints.add(Capture.from_tensors(**made(), scaling=1.0).fingerprint)
    prints.add(Capture.from_tensors(**made(), positions=[0, 1, 2]).fingerprint)
    prints.add(Capture.from_tensors(**made(), layer=1).fingerprint)
    for name, x in made().items():
        x[0, 0, 0, 0] += 1
        prints.add(Capture.from_tensors(**{**made(), name: x}).fingerprint)
    assert len(prints) == 7


@pytest.mark.slow
def test_a_thousand_altered_bytes_are_a_thousand_refusals(tmp_path):
    torch.manual_seed(1)
    Capture.from_tensors(**made(keys=5, queries=2, dim=4)).save(tmp_path)
    paths = sorted(tmp_path.iterdir())
    assert paths[0].name == MANIFEST
    draw = random.Random(0)
    offsets = [(path, at) for path in paths for at in range(path.stat().st_size)]
    for path, at in draw.sample(offsets, 1000):
        whole = path.read_bytes()
        other = draw.choice([byte for byte in range(256) if byte != whole[at]])
        path.write_bytes(whole[:at] + bytes([other]) + whole[at + 1 :])
        with pytest.raises(InputError, match=path.name):
            Capture.open(tmp_path)
        path.write_bytes(whole)
    Capture.open(tmp_path)


def test_missing_truncated_and_lengthened_files_are_named(tmp_path):
    Capture.from_tensors(**made()).save(tmp_path)
    for path in sorted(tmp_path.iterdir()):
        whole = path.read_bytes()
        for part in (whole[:-1], whole + b" ", whole[: len(whole) // 2], b""):
            path.write_bytes(part)
            with pytest.raises(InputError, match=path.name):
                Capture.open(tmp_path)
        path.unlink()
        with pytest.raises(InputError, match=path.name):
            Capture.open(tmp_path)
        path.write_bytes(whole)
    with pytest.raises(InputError, match="no capture at"):
        Capture.open(tmp_path / "nowhere")


def test_a_manifest_written_anew_does_not_pass_for_the_old(tmp_path):
    Capture.from_tensors(**made()).save(tmp_path)
    path = tmp_path / MANIFEST
    content = json.loads(path.read_bytes())
    content["layers"][0]["scaling"] = 1.0
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    with pytest.raises(InputError, match=MANIFEST):
        Capture.open(tmp_path)


def test_half_of_rope_is_refused(tmp_path):
    tensors = {"queries": torch.ones(1, 1, 1, 4), "keys": torch.ones(1, 1, 3, 4)}
    save_file(tensors | {"rope_cos": torch.ones(1, 3, 2)}, tmp_path / "own.safetensors")
    with pytest.raises(InputError, match="rope_cos and rope_sin come together"):
        Capture.open(tmp_path / "own.safetensors")


def test_a_manifest_that_nests_too_deep_is_refused(tmp_path):
    (tmp_path / MANIFEST).write_text("[" * 100_000)
    with pytest.raises(InputError, match="nests more than 64"):
        Capture.open(tmp_path)


def test_without_verify_a_file_is_checked_when_it_is_loaded(tmp_path):
    Capture.from_tensors(**made()).save(tmp_path)
    path = tmp_path / files.file_name(1, 0)
    path.write_bytes(path.read_bytes()[:-1] + b"\7")
    capture = Capture.open(tmp_path, verify=False)
    capture.load(0, 0)
    with pytest.raises(InputError, match=path.name):
        capture.load(1, 0)
    with pytest.raises(InputError, match="no sample 2, layer 0"):
        capture.load(2, 0)


def test_a_plain_file_opens_and_a_misspelt_tensor_does_not(tmp_path):
    path = tmp_path / "mine.safetensors"
    x = {name: y.contiguous() for name, y in made().items()}
    extra = {"scaling": torch.tensor(0.5), "lengths": torch.tensor([9, 4])}
    save_file({**x, **extra}, path)
    opened = Capture.open(path)
    assert same(
        opened.load(1, 0), Capture.from_tensors(**x, scaling=0.5, lengths=[9, 4]).load(1, 0)
    )
    save_file({**x, "value": x["values"].clone()}, path)
    with pytest.raises(InputError, match=r"mine.safetensors: it must hold .* it holds .*'value'"):
        Capture.open(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"mine.safetensors"):
        Capture.open(path)


def test_another_capture_is_not_overwritten_unless_forced(tmp_path):
    first = Capture.from_tensors(**made()).save(tmp_path)
    assert first.save(tmp_path).fingerprint == first.fingerprint
    other = Capture.from_tensors(**made(rows=1))
    with pytest.raises(InputError, match="holds another capture"):
        other.save(tmp_path)
    assert other.save(tmp_path, force=True).samples == [0]
    assert not (tmp_path / files.file_name(1, 0)).exists()


def entries(sample: int):
    x = Capture.from_tensors(**made()).load(sample, 0)
    return record(sample), {0: x.tensors()}


def record(sample: int):
    return Capture.from_tensors(**made()).manifest["samples"][min(sample, 1)] | {"sample": sample}


def test_an_interrupted_capture_does_not_open_and_goes_on_with_what_is_whole(tmp_path):
    writer = Writer(tmp_path, {"from": "here"}, [0, 1])
    for sample in range(2):
        writer.add(*entries(sample))
    with pytest.raises(InputError, match="interrupted"):
        Capture.open(tmp_path)
    altered = tmp_path / files.file_name(1, 0)
    altered.write_bytes(altered.read_bytes()[:-1] + b"\7")
    (tmp_path / files.file_name(0, 1)).write_bytes(b"never finished")
    again = Writer(tmp_path, {"from": "here"}, [0, 1])
    assert [again.has(record(sample)) for sample in range(3)] == [True, False, False]
    again.add(*entries(1))
    again.close({})
    assert Capture.open(tmp_path).samples == [0, 1]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        MANIFEST,
        files.file_name(0, 0),
        files.file_name(0, 1),
        files.file_name(1, 0),
    ]
    with pytest.raises(InputError, match="differs in from"):
        Writer(tmp_path, {"from": "there"}, [0, 1])
    with pytest.raises(InputError, match="differs in samples"):
        Writer(tmp_path, {"from": "here"}, [0])


def test_a_finished_capture_opens_while_more_samples_join_it(tmp_path):
    for samples in ([0], [0, 1]):
        writer = Writer(tmp_path, {}, samples)
        writer.add(*entries(samples[-1]))
        if samples == [0]:
            writer.close({})
    assert Capture.open(tmp_path).samples == [0]
    again = Writer(tmp_path, {}, [0, 1])
    assert [again.has(record(sample)) for sample in range(2)] == [True, True]


def test_more_samples_join_a_finished_capture(tmp_path):
    for count in (1, 2):
        writer = Writer(tmp_path, {}, range(count))
        for sample in range(count):
            if not writer.has(record(sample)):
                writer.add(*entries(sample))
        writer.close({})
        assert Capture.open(tmp_path).samples == list(range(count))


SAVE = """
import resource, signal, sys, torch
from topkit.experiments.capture.capture import Capture
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
torch.manual_seed(0)
capture = Capture.from_tensors(torch.randn(2, 2, 1, 64), torch.randn(2, 2, 512, 64))
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    capture.save(sys.argv[1])
except ValueError as error:
    print(error)
    sys.exit(2)
"""


@pytest.mark.slow
@pytest.mark.parametrize("limit", [0, 100, 100_000])
def test_where_no_more_can_be_written_one_line_says_so_and_nothing_half_written_stays(
    tmp_path: Path, limit: int
):
    """A real refusal by the kernel: no file may grow beyond the limit."""
    command = [sys.executable, "-c", SAVE, str(tmp_path), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "cannot write" in done.stdout and done.stdout.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_an_input_error(tmp_path, monkeypatch):
    """/dev/full answers every write with ENOSPC; the temporary file is made to lead there."""
    path = tmp_path / "x.safetensors"
    monkeypatch.setattr(parts, "uuid4", lambda: UUID(int=0))
    temporary = f".{path.name}.{os.getpid()}-{'0' * 8}.tmp"
    (tmp_path / temporary).symlink_to("/dev/full")
    with pytest.raises(InputError, match="No space left"):
        files.write_tensors(path, entries(0)[1][0])
    assert list(tmp_path.iterdir()) == []


def test_too_little_space_is_said_before(tmp_path):
    free = files.require_space(tmp_path / "not" / "yet", 1)
    with pytest.raises(InputError, match=r"takes .* free"):
        files.require_space(tmp_path / "not" / "yet", 10 * free)


def test_sizes_in_words():
    assert [files.readable(n) for n in (0, 999, 1500, 2_000_000, 3 * 10**15)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "2.0 MB",
        "3000.0 TB",
    ]


def test_a_folder_that_is_renamed_is_not_made_anew(tmp_path):
    from topkit.experiments.capture.writer import Writer

    writer = Writer(tmp_path / "capture", {}, [0, 1])
    writer.begin()
    writer.add({"sample": 0}, {0: {"queries": torch.zeros(1, 1, 1, 8)}})
    (tmp_path / "capture").rename(tmp_path / "moved")
    with pytest.raises(InputError, match="capture was renamed or removed while it was written"):
        writer.add({"sample": 1}, {0: {"queries": torch.zeros(1, 1, 1, 8)}})
    assert [path.name for path in tmp_path.iterdir()] == ["moved"]

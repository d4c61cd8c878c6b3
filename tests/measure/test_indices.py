"""Ready lists of another engine, measured on a capture: the same rows as the recipe that chose them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import topkit
from topkit.errors import InputError
from topkit.experiments.capture.capture import Capture
from topkit.experiments.measure.replay import Replay
from topkit.indexers.spec import parse

SAME = (
    "sample",
    "layer",
    "head",
    "level",
    "position",
    "k",
    "recall",
    "mass",
    "output_error",
    "kept",
)


def made(layers: int = 2, samples: int = 2, count: int = 4, length: int = 40) -> Capture:
    g = torch.Generator().manual_seed(0)
    queries, keys = (
        {n: torch.randn(samples, heads, width, 8, generator=g) for n in range(layers)}
        for heads, width in ((4, count), (2, length))
    )
    return Capture.from_tensors(queries, keys, keys)


def lists_of(capture: Capture, spec: str, k: int) -> dict[str, Tensor]:
    """What a recipe chooses, as an engine would dump it: no order, -1 anywhere, 32 bits."""
    dumped = {}
    for layer in capture.layers:
        rows = []
        for sample in capture.samples:
            replay = Replay(capture.load(sample, layer), k, 0, torch.device("cpu"))
            rows.append(replay.select(parse(spec), [k])[0][k].indices)
        lists = torch.cat(rows)
        lists = torch.nn.functional.pad(lists, (2, 1), value=-1).flip(-1)
        dumped[f"{layer}.indices"] = lists.int().contiguous()
    return dumped


def written(folder: Path, tensors: dict[str, Any], name: str = "lists.safetensors") -> str:
    path = folder / name
    if name.endswith(".npz"):
        arrays: dict[str, Any] = {n: np.asarray(x) for n, x in tensors.items()}
        np.savez(path, **arrays)
    else:
        save_file(tensors, path)
    return str(path)


def rows(
    capture: Capture, spec: str, k: Any, close: bool = False, **how: Any
) -> list[tuple[Any, ...]]:
    """The rows of a recipe; `close`: to be compared with sums over lists in another order."""

    def value(x: Any) -> Any:
        return pytest.approx(x, rel=1e-4) if close and isinstance(x, float) else x

    table = topkit.measure(capture, spec, k, **how).table.select(SAME).to_pylist()
    return [tuple(map(value, row)) for row in sorted(tuple(row.values()) for row in table)]


@pytest.mark.parametrize(
    "spec", ["quantized:dtype=int2", "shared(sign())", "shared(sign(), per=layer)"]
)
@pytest.mark.parametrize("name", ["lists.safetensors", "lists.npz"])
def test_dumped_lists_are_judged_as_those_that_chose_them(
    tmp_path: Path, spec: str, name: str
) -> None:
    capture = made()
    file = written(tmp_path, lists_of(capture, spec, 6), name)
    assert rows(capture, f"indices(file={file!r})", 6) == rows(capture, spec, 6, True)
    kept = topkit.measure(capture, f"keep(indices(file={file!r}), sink=1)", 6)
    assert kept.table.num_rows == len([r for r in rows(capture, spec, 6) if r[3] == "head"]) or (
        "shared" in spec
    )


def test_one_prompt_has_its_lists_flat_and_named_positions_in_any_order(tmp_path: Path) -> None:
    capture = made(samples=1)
    spec = "shared(sign(), per='layer')"
    tensors = {name: x[0, 0].flip(0).contiguous() for name, x in lists_of(capture, spec, 6).items()}
    more = {n: torch.cat([x, torch.zeros_like(x[:1])]).contiguous() for n, x in tensors.items()}
    at = torch.tensor([39, 38, 37, 36, 3])
    file = written(tmp_path, {**more, "positions": at})
    assert rows(capture, f"indices(file={file!r})", 6) == rows(capture, spec, 6, True)
    batch = {name: x[None].contiguous() for name, x in more.items()}
    file = written(tmp_path, {**batch, "positions": at[None].int().contiguous()}, "b.safetensors")
    assert rows(capture, f"indices(file={file!r})", 6) == rows(capture, spec, 6, True)


def test_lists_in_no_order_are_not_cut_and_ordered_ones_are(tmp_path: Path) -> None:
    capture = made()
    ordered = {n: x.flip(-1).contiguous() for n, x in lists_of(capture, "sign()", 9).items()}
    file = written(tmp_path, ordered)
    with pytest.raises(InputError, match=r"up to 9 slots in no order, which k = 4 .*ask for k = 9"):
        topkit.measure(capture, f"indices(file={file!r})", [9, 4])
    spec = f"indices(file={file!r}, ordered=True)"
    assert rows(capture, spec, [9, 4]) == rows(capture, "sign()", [9, 4], True)
    kept = {r[-1] for r in rows(capture, f"indices(file={file!r})", 20)}
    assert kept == {9}


@pytest.mark.parametrize(
    ("slot", "said"),
    [(0, "slot 0 twice"), (39, "slot 39, where its query sees"), (-5, "slot -5, where its query")],
)
def test_slots_that_are_none_are_refused(tmp_path: Path, slot: int, said: str) -> None:
    capture = made(layers=1, samples=1)
    lists = torch.tensor([0, 1, slot]).int().expand(1, 1, 4, 3).contiguous()
    file = written(tmp_path, {"0.indices": lists})
    with pytest.raises(InputError, match=rf"indices\(file=.* chose {said}"):
        topkit.measure(capture, f"indices(file={file!r})", 5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("1.indices"), r"has no layer 1; it has \[0\]"),
        (
            lambda t: t.update({n: x[:1].contiguous() for n, x in t.items()}),
            "has 1 samples; sample 1 is asked",
        ),
        (
            lambda t: t.update(positions=torch.tensor([1, 2, 3, 38])),
            "no list of position 36 of sample 0; it has 4, from 1 to 38",
        ),
        (lambda t: t.update({"x": t["0.indices"].clone()}), "it has a tensor 'x'; expected LAYER.indices"),
        (lambda t: t.update({"0.indices": t["0.indices"].float()}), "0.indices is torch.float32; expected"),
        (lambda t: t.update({"0.indices": torch.zeros(3, dtype=torch.int32)}), r"must be \[Tq, k\].*got \[3\]"),
        (lambda t: t.update(positions=torch.tensor([1, 2])), r"positions must be whole numbers \[4\] or"),
        (lambda t: t.update(positions=torch.tensor([1, 2, 2, 3])), "a position is named twice"),
        (
            lambda t: t.update({"1.indices": t["1.indices"][:, :, :2].contiguous()}),
            "several numbers of samples and positions",
        ),
        (
            lambda t: t.update({n: x[:, :1].repeat(1, 3, 1, 1) for n, x in t.items()}),
            "layer 0 has 3 lists a query; expected 1, one a KV head",
        ),
        (lambda t: t.clear(), "it has no LAYER.indices"),
    ],
)  # fmt: skip
def test_what_a_file_lacks_is_named(tmp_path: Path, change: Any, said: str) -> None:
    capture = made()
    tensors = lists_of(capture, "sign()", 6)
    change(tensors)
    file = written(tmp_path, tensors)
    with pytest.raises(InputError, match=said) as raised:
        topkit.measure(capture, f"indices(file={file!r})", 6)
    assert "lists.safetensors" in str(raised.value) and "\n" not in str(raised.value)


def test_what_is_no_file_is_refused_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(b"PK nothing")
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    for name in ("x.npz", "x.safetensors"):
        with pytest.raises(InputError, match=r"as safetensors or npz: .*docs/indices.md"):
            parse(f"indices(file={str(tmp_path / name)!r})")
    for missing in (str(tmp_path / "nowhere"), "a\0b", str(tmp_path)):
        with pytest.raises(InputError, match="indices"):
            parse(f"indices(file={missing!r})")


def test_a_replaced_file_is_another_run(tmp_path: Path) -> None:
    capture = made()
    spec = f"indices(file={written(tmp_path, lists_of(capture, 'sign()', 6))!r})"
    before = rows(capture, spec, 6, out=tmp_path / "run")
    held = json.loads((tmp_path / "run" / "run.json").read_text())
    assert "files" in json.dumps(held)
    written(tmp_path, lists_of(capture, "random()", 6))
    with pytest.raises(InputError, match="a file that it reads has other content"):
        topkit.measure(capture, spec, 6, out=tmp_path / "run")
    assert rows(capture, spec, 6, out=tmp_path / "run", force=True) != before

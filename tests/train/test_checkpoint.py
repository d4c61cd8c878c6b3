"""Trainings stop, are killed, meet NaN and half-written files, and go on to the same weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from topkit.errors import InputError
from topkit.experiments.train.checkpoint import Checkpoints
from topkit.experiments.train.loop import Loop

STEPS = 9


class Killed(BaseException):
    """What no code of a training catches."""


def small(width: int = 3) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Linear(5, width)
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


def loop(folder: Path, said: list[str], *, kill: int = -1, nan: int = -1, saved: float = 0) -> Loop:
    """Batches of random ids; at step `kill` the process dies, at step `nan` the loss is NaN."""

    def batches(start: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for step in range(start, STEPS):
            if step == kill:
                raise Killed
            rng = np.random.default_rng(step)
            worth = np.nan if step == nan else 1.0
            yield rng.integers(9, size=(4, 5)).astype(np.uint16), np.full(1, worth, np.float16)

    def losses(model: nn.Module, ids: Tensor, worth: Tensor) -> tuple[Tensor, Tensor]:
        loss = model(ids.float()).square().mean() * worth
        return loss.sum(), loss.sum() * 2

    return Loop(
        steps=STEPS, batches=batches, losses_of=losses, rate_of=lambda step: 0.1 / (1 + step),
        checkpoints=Checkpoints(folder / "checkpoints", said.append), log=folder / "log.csv",
        autocast=None, logged=2, saved=saved,
    )  # fmt: skip


def trained(folder: Path, **how: Any) -> dict[str, Tensor]:
    model, optimizer = small()
    folder.mkdir(exist_ok=True)
    assert loop(folder, [], **how).run(model, optimizer, float("inf"))
    return {name: x.clone() for name, x in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, Tensor]:
    return trained(tmp_path / "whole")


def files(folder: Path) -> list[Path]:
    return sorted((folder / "checkpoints").iterdir(), key=lambda p: int(p.name.split("-")[1]))


@pytest.mark.parametrize("kill", [0, 1, 4, STEPS - 1])
def test_a_killed_training_comes_to_the_same_weights(
    tmp_path: Path, whole: dict[str, Tensor], kill: int
) -> None:
    out = tmp_path / "killed"
    with pytest.raises(Killed):
        trained(out, kill=kill)
    assert same(trained(out), whole)
    assert (out / "log.csv").read_text().count("\n") <= STEPS
    steps = [int(line.split(",")[0]) for line in (out / "log.csv").read_text().splitlines()[1:]]
    assert steps == sorted(set(steps)) and steps[-1] == STEPS


def test_what_no_checkpoint_holds_is_logged_once(tmp_path: Path, whole: dict[str, Tensor]) -> None:
    out = tmp_path / "killed"
    with pytest.raises(Killed):
        trained(out, kill=5, saved=1e9)
    assert not (out / "checkpoints").exists() and (out / "log.csv").exists()
    assert same(trained(out), whole)
    assert (out / "log.csv").read_text().splitlines()[1].startswith("2,")
    assert len((out / "log.csv").read_text().splitlines()) == 1 + 5


@pytest.mark.parametrize("harm", ["short", "changed", "empty"])
def test_a_half_written_checkpoint_is_passed_over_and_said(
    tmp_path: Path, whole: dict[str, Tensor], harm: str
) -> None:
    out, said = tmp_path / "half", []
    with pytest.raises(Killed):
        trained(out, kill=6)
    before, last = files(out)
    assert (before.name[:7], last.name[:7]) == ("step-5-", "step-6-")
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes({"short": content[:99], "changed": content, "empty": b""}[harm])
    (out / "checkpoints" / ".step-7-abc.pt.1-2.tmp").write_bytes(b"PK")
    model, optimizer = small()
    assert loop(out, said).run(model, optimizer, float("inf"))
    assert f"{last} is half-written; it is passed over" in said[0] and "from step 5" in said[1]
    assert same(dict(model.state_dict()), whole)
    assert not list((out / "checkpoints").glob(".*"))


def test_of_no_whole_checkpoint_it_begins_anew_and_says_so(
    tmp_path: Path, whole: dict[str, Tensor]
) -> None:
    with pytest.raises(Killed):
        trained(tmp_path / "half", kill=3)
    for path in files(tmp_path / "half"):
        path.write_bytes(b"")
    said: list[str] = []
    model, optimizer = small()
    assert loop(tmp_path / "half", said).run(model, optimizer, float("inf"))
    assert "beginning anew" in said[2] and same(dict(model.state_dict()), whole)


def test_a_loss_that_is_nan_stops_and_keeps_the_weights_before_it(tmp_path: Path) -> None:
    out = tmp_path / "nan"
    with pytest.raises(InputError, match=r"step 4: loss is nan.*kept in .*step-4-"):
        trained(out, nan=4)
    good = tmp_path / "good"
    with pytest.raises(Killed):
        trained(good, kill=4)
    kept = [torch.load(files(one)[-1], weights_only=True) for one in (out, good)]
    assert [state["step"] for state in kept] == [4, 4]
    assert same(kept[0]["model"], kept[1]["model"])


def test_weights_that_are_nan_are_never_kept(tmp_path: Path) -> None:
    model, optimizer = small()
    Checkpoints(tmp_path).save(1, model, optimizer)
    with torch.no_grad():
        model.weight[0, 0] = float("nan")  # type: ignore[index,operator]
    with pytest.raises(InputError, match="before step 2 the weights weight hold NaN"):
        Checkpoints(tmp_path).save(2, model, optimizer)
    assert [path.name[:7] for path in tmp_path.iterdir()] == ["step-1-"]


def test_a_checkpoint_of_another_shape_is_refused(tmp_path: Path) -> None:
    Checkpoints(tmp_path).save(1, *small(), note="kept")
    step, more = Checkpoints(tmp_path).resume(*small())
    assert step == 1 and more == {"note": "kept"}
    with pytest.raises(InputError, match=r"another shape: weight is \(3, 5\) there, and \(4, 5\)"):
        Checkpoints(tmp_path).resume(*small(4))
    with pytest.raises(InputError, match=r"lacks 0\.weight"):
        Checkpoints(tmp_path).resume(nn.Sequential(nn.Linear(5, 3)))


def test_the_oldest_beyond_those_kept_go(tmp_path: Path) -> None:
    for step in (2, 9, 10, 11):
        Checkpoints(tmp_path, kept=3).save(step, *small())
    assert {path.name.split("-")[1] for path in tmp_path.iterdir()} == {"9", "10", "11"}


def in_passes(folder: Path, said: list[str], slow: list[Any]) -> Loop:
    """Steps of 7 rows, two of them a pass; time is up within the step that `slow` names."""

    def batches(start: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for step in range(start, STEPS):
            rng = np.random.default_rng(step)
            yield rng.integers(9, size=(7, 5)).astype(np.uint16), rng.random((7, 5))

    def losses(model: nn.Module, ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        slow.append(len(ids))
        each = model(ids.float()).square().mean(-1)
        loss = (each * weights[:, 1:].sum(-1)).sum() / weights[:, 1:].sum()
        return loss, loss * 2

    return Loop(
        steps=STEPS, batches=batches, losses_of=losses, rate_of=lambda step: 0.1,
        checkpoints=Checkpoints(folder / "checkpoints", said.append), log=folder / "log.csv",
        autocast=None, logged=1, most=10,
    )  # fmt: skip


def test_passes_add_up_to_the_batch(tmp_path: Path) -> None:
    found = []
    for name, most in (("whole", None), ("parts", 10)):
        (tmp_path / name).mkdir()
        model, optimizer = small()
        rows: list[Any] = []
        loop = replace(in_passes(tmp_path / name, [], rows), most=most)
        assert loop.run(model, optimizer, float("inf"))
        assert rows[:4] == ([7] * 4 if most is None else [2, 2, 2, 1])
        log = (tmp_path / name / "log.csv").read_text().splitlines()[1:]
        found.append(([float(line.split(",")[1]) for line in log], model.state_dict()))
    (one, whole), (other, parts) = found
    assert one == pytest.approx(other, abs=2e-5)
    assert all(torch.allclose(whole[n], parts[n], atol=1e-5) for n in whole)


def test_a_step_that_comes_too_late_is_taken_again(tmp_path: Path) -> None:
    model, optimizer = small()
    before, said = {n: x.clone() for n, x in model.state_dict().items()}, list[str]()
    # No time at all: nothing is changed but that a checkpoint is there.
    assert not in_passes(tmp_path, said, []).run(model, optimizer, 0)
    assert same(model.state_dict(), before) and "no step was done in the time given" in said[0]
    assert [path.name[:7] for path in files(tmp_path)] == ["step-0-"]
    assert in_passes(tmp_path, said, []).run(model, optimizer, float("inf"))
    (tmp_path / "whole").mkdir()
    other, its = small()
    assert in_passes(tmp_path / "whole", said, []).run(other, its, float("inf"))
    assert same(model.state_dict(), other.state_dict())

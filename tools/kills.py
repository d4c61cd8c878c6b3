"""Kill runs at random moments, go on with them, and hold what comes out to an unbroken run.

    python tools/kills.py [--kills 100] [--seed 0] [--commands measure,evaluate,study] [--jobs 1,2] [--shards 2]

Each round takes a command and a number of workers, and starts in an empty folder, in one that a killed run
left, or with `force` in one that holds a finished run of another seed. It is killed (SIGKILL) some times
over, verified each time, and gone on with to its end: rows must be those of the unbroken run. Shards run at the
same time into one folder, and one of them is killed. Exit 1 where rows are others.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

import same_numbers
import torch

import topkit
from topkit.errors import InputError
from topkit.experiments.runs import folder, run_file
from topkit.experiments.study.study import run_study
from topkit.experiments.tasks import make_task

INDEXERS = ("sign", "exact", "quest:page_size=4")
# A server that has imported all, and done nothing, is what children are forked from: a process that has used torch's
# threads, loaded a model or drawn a figure leaves its forks what hangs or fails there.
SERVER = get_context("forkserver")
SERVER.set_forkserver_preload(["topkit", "topkit.experiments.study.study", "same_numbers"])


@dataclass(frozen=True)
class Command:
    """A tiny run of a command, made in the process that does it."""

    name: str
    capture: Path

    def __call__(self, **how: Any) -> None:
        task = make_task("niah-multikey", wording="trained", questions=2, distractors=3)
        if self.name == "measure":
            topkit.measure(self.capture, INDEXERS, "4,9", **how)
        elif self.name == "evaluate":
            topkit.evaluate("reference", task, 384, 4, INDEXERS[:2], 8, **how)
        else:
            keys = dict(tasks=task, lengths=384, haystacks=4, budgets=16, pilot=False)
            run_study("quick", indexers=["exact", "faiss_ivf", "keep(sign, sink=2)"], **keys, **how)


def started(run: Command, how: dict[str, Any]) -> Any:
    """A child process that does a run; its exit code is 0 at the end, 2 where it was refused."""
    child = SERVER.Process(target=_do, args=(run, how))
    child.start()
    return child


def _do(run: Command, how: dict[str, Any]) -> None:
    code = 3
    try:
        os.setsid()
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        run(**how)
        code = 0
    except InputError as error:
        code = 2
        os.write(2, f"refused: {error}\n".encode())
    except Exception:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)


def killed(child: Any, after: float, group: bool) -> bool:
    """Kill a child after some seconds, with its workers or by itself; whether it was still running."""
    child.join(after)
    if child.exitcode is not None:
        require(child.exitcode == 0, f"a run that nobody killed ended with {child.exitcode}")
        return False
    try:
        (os.killpg if group else os.kill)(child.pid, signal.SIGKILL)
    except ProcessLookupError:  # it has no group of its own yet
        child.kill()
    child.join()
    return True


def ended(child: Any) -> int:
    child.join()
    return child.exitcode


def to_its_end(run: Command, how: dict[str, Any]) -> int:
    return ended(started(run, how))


def require(right: bool, what: str) -> None:
    if not right:
        raise SystemExit(f"kills: {what}")


def verify(out: Path) -> None:
    """What a kill left is no fault, whatever it is; under force the rows of the first run may be gone."""
    described = run_file.read(out) if out.is_dir() else None
    if described is not None:
        wrong = folder.faults(out, described, "gone")
        require(not wrong, f"after a kill: {wrong}")


def round_(
    run: Command, whole: Path, other: Path, out: Path, jobs: int, seconds: float, rng: random.Random
) -> Iterator[bool]:
    """One folder: killed up to four times, yielding whether each kill met a run, then finished."""
    force = rng.random() < 0.4
    if force:
        shutil.copytree(other, out)
    how = {"out": out, "seed": 0, "jobs": jobs}
    for _ in range(rng.randint(1, 4)):
        child = started(run, {**how, "force": force})
        yield killed(child, rng.uniform(0, seconds), rng.random() < 0.5)
        verify(out)
    code = to_its_end(run, {**how, "force": False})
    if force and code == 2:  # killed before the first run's name was gone
        code = to_its_end(run, {**how, "force": True})
    require(code == 0, f"a run that goes on ended with {code} in {out}")
    require_rows(whole, out)


def shards_round(
    run: Command, whole: Path, out: Path, shards: int, seconds: float, rng: random.Random
) -> Iterator[bool]:
    """One folder, written by shards at the same time of which one is killed, then finished."""
    every = [{"out": out, "seed": 0, "shard": f"{n}/{shards}"} for n in range(shards)]
    for _ in range(rng.randint(1, 4)):
        children = [started(run, how) for how in every]
        yield killed(children.pop(rng.randrange(shards)), rng.uniform(0, seconds), True)
        codes = [ended(child) for child in children]
        require(not any(codes), f"shards beside a killed one ended with {codes} in {out}")
        verify(out)
    codes = [to_its_end(run, how) for how in every]
    require(not any(codes), f"shards that go on ended with {codes} in {out}")
    require_rows(whole, out)


def require_rows(whole: Path, out: Path) -> None:
    """The rows of an unbroken run, in a folder that goes."""
    topkit.verify(out)
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        same = same_numbers.main([str(whole), str(out)]) == 0
    require(same, f"other rows than those of an unbroken run, in {out}")
    shutil.rmtree(out)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", default="measure,evaluate,study")
    parser.add_argument("--jobs", default="1,2")
    parser.add_argument("--shards", type=int, default=2)
    given = parser.parse_args(words)
    rng, kills, rounds = random.Random(given.seed), 0, 0
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        g = torch.Generator().manual_seed(0)
        shapes = ((6, 2, 3, 16), (6, 1, 90, 16), (6, 1, 90, 16))
        queries, keys, values = (torch.randn(shape, generator=g) for shape in shapes)
        topkit.Capture.from_tensors(queries, keys, values).save(root / "capture")
        kinds = []
        for command in given.commands.split(","):
            run = Command(command, root / "capture")
            whole, other = root / f"{command}-whole", root / f"{command}-other"
            require(to_its_end(run, {"out": other, "seed": 1, "jobs": 1}) == 0, command)
            for jobs in map(int, given.jobs.split(",")):
                shutil.rmtree(whole, ignore_errors=True)
                begun = time.monotonic()
                require(to_its_end(run, {"out": whole, "seed": 0, "jobs": jobs}) == 0, command)
                kinds.append((command, run, whole, other, jobs, time.monotonic() - begun))
            kinds.append((command, run, whole, other, 0, kinds[-1][-1]))
        counts: dict[str, int] = {}
        while kills < given.kills:
            command, run, whole, other, jobs, seconds = kinds[rounds % len(kinds)]
            kind, out = f"{command} --jobs {jobs}", root / f"run-{rounds}"
            met_by = round_(run, whole, other, out, jobs, seconds, rng)
            if not jobs:
                kind = f"{command} in {given.shards} shards"
                met_by = shards_round(run, whole, out, given.shards, seconds, rng)
            for met in met_by:
                kills += met
                counts[kind] = counts.get(kind, 0) + met
            rounds += 1
            print(f"{kills} kills in {rounds} rounds: {counts}", flush=True)
    print(f"{kills} kills in {rounds} rounds, and the rows of an unbroken run each time")


if __name__ == "__main__":
    main()

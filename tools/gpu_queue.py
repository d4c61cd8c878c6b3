"""Commands of a queue, as many at a time as this machine's GPUs have room for: shards of several studies, say.

    python tools/gpu_queue.py QUEUE --logs FOLDER [--rooms 138,138] [--at-most 31] [--begin-until S] [--end-at S]

A line of QUEUE is `GB|name|command`, with `name@1` for GPU 1 alone; lines may be added while it works. Commands begin in
their order, each on the GPU with the most room left (CUDA_VISIBLE_DEVICES), in one thread, and write FOLDER/name.txt;
FOLDER/log.txt says when each began and how it ended. rooms: GB of each GPU; at most: processes, by default one a core.
After --begin-until seconds none begins, at --end-at those that run are stopped. It ends with the last command, or, where
a time is given for it, then; with 1 if a line could not run, which the others do not wait for.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

# Seconds between looks; those that a stopped command has to end; and those after which a line without its end is whole.
LOOK, PATIENCE, SETTLED = 0.4, 5.0, 2.0


@dataclass(frozen=True)
class Asked:
    """A line of the queue. gpu: the one that it wants, or None."""

    room: float
    name: str
    command: str
    gpu: int | None = None

    @classmethod
    def of(cls, line: str, rooms: list[float]) -> Asked:
        """Raises: ValueError for a line that no GPU, or not the one that it names, can ever run."""
        try:
            room, name, command = line.split("|", 2)
            name, _, gpu = name.partition("@")
            asked = cls(float(room), name, command, int(gpu) if gpu else None)
        except ValueError:
            raise ValueError(
                f"a line of the queue is GB|name|command, or GB|name@GPU|command; got {line!r}"
            ) from None
        if asked.gpu is not None and not 0 <= asked.gpu < len(rooms):
            raise ValueError(f"{name} names GPU {gpu}; there are 0 to {len(rooms) - 1}")
        most = max(rooms) if asked.gpu is None else rooms[asked.gpu]
        if asked.room > most:
            raise ValueError(f"{name} wants {asked.room:g} GB, and there are at most {most:g}")
        return asked


@dataclass
class Running:
    asked: Asked
    gpu: int
    process: subprocess.Popen[bytes]
    began: float = field(default_factory=time.monotonic)


def place(asked: Asked, rooms: list[float], running: list[Running]) -> int | None:
    """The GPU that a command goes to: of those that it may have the one with most room left, if that is enough."""
    left = [room - sum(r.asked.room for r in running if r.gpu == n) for n, room in enumerate(rooms)]
    may = range(len(rooms)) if asked.gpu is None else [asked.gpu]
    best = max(may, key=lambda n: left[n])
    return best if left[best] >= asked.room else None


def main() -> None:
    given = arguments()
    given.logs.mkdir(parents=True, exist_ok=True)
    with (given.logs / "log.txt").open("a", buffering=1, encoding="utf-8") as log:
        queue = Queue(
            given.queue, [float(room) for room in given.rooms.split(",")], given.logs, log
        )
        while True:
            queue.tell_ended()
            now = queue.seconds
            if given.end_at is not None and now >= given.end_at:
                queue.say(
                    f"stopped: {', '.join(one.asked.name for one in queue.running) or 'none'}"
                )
                stop(queue.running)
                break
            late = given.begin_until is not None and now >= given.begin_until
            if not late:
                queue.begin(given.at_most)
            waits = given.end_at is not None or (given.begin_until is not None and not late)
            if not queue.running and not waits and (late or queue.taken == len(queue.lines)):
                break
            time.sleep(LOOK)
    sys.exit(1 if queue.refused else 0)


@dataclass
class Queue:
    """A queue's file, what of it was taken, and what runs. refused: lines that cannot run; others go on."""

    path: Path
    rooms: list[float]
    logs: Path
    log: TextIO
    taken: int = 0
    refused: int = 0
    running: list[Running] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    @property
    def lines(self) -> list[str]:
        return [line for line in self.path.read_text().splitlines() if line.strip()]

    @property
    def left(self) -> list[str]:
        """The lines that were not taken; the last one may be being written, and then has no end yet."""
        fresh = time.time() - self.path.stat().st_mtime < SETTLED
        unfinished = fresh and not self.path.read_text().endswith("\n")
        return self.lines[self.taken : -1 if unfinished else None]

    def say(self, text: str) -> None:
        self.log.write(f"{self.seconds:8.1f} {text}, {len(self.running)} run\n")

    def tell_ended(self) -> None:
        for one in [one for one in self.running if one.process.poll() is not None]:
            self.running.remove(one)
            took = time.monotonic() - one.began
            self.say(f"{one.asked.name} ended with {one.process.returncode} after {took:.0f} s")

    def begin(self, at_most: int) -> None:
        """Begin what has room, in the order of the queue."""
        for line in self.left:
            if len(self.running) >= at_most:
                return
            try:
                asked = Asked.of(line, self.rooms)
            except ValueError as error:
                self.refused, self.taken = self.refused + 1, self.taken + 1
                self.say(f"left out: {error}")
                print(error, file=sys.stderr)
                continue
            gpu = place(asked, self.rooms, self.running)
            if gpu is None:
                return
            self.taken += 1
            self.running.append(Running(asked, gpu, begun(asked, gpu, self.logs)))
            self.say(f"{asked.name} began on GPU {gpu}")


def begun(asked: Asked, gpu: int, logs: Path) -> subprocess.Popen[bytes]:
    """The command in a process group of its own."""
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "CUDA_VISIBLE_DEVICES": str(gpu)}
    with (logs / f"{asked.name}.txt").open("wb") as out:
        return subprocess.Popen(
            ["bash", "-c", asked.command], env=environment, stdout=out, stderr=out, start_new_session=True
        )  # fmt: skip


def stop(running: list[Running]) -> None:
    """End the groups of all: asked first, then killed."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        for one in running:
            with suppress(ProcessLookupError):
                os.killpg(one.process.pid, sign)
        if sign == signal.SIGTERM:
            until = time.monotonic() + PATIENCE
            while time.monotonic() < until and any(r.process.poll() is None for r in running):
                time.sleep(LOOK / 4)
    for one in running:
        one.process.wait()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("queue", type=Path)
    parser.add_argument("--logs", type=Path, required=True)
    parser.add_argument("--rooms", default="138", metavar="GB,GB,...")
    parser.add_argument("--at-most", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--begin-until", type=float)
    parser.add_argument("--end-at", type=float)
    return parser.parse_args()


if __name__ == "__main__":
    main()

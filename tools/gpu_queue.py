"""Commands of a queue, as many at a time as this machine's GPUs have room for: shards of several studies, say.

    python tools/gpu_queue.py QUEUE --logs FOLDER [--rooms 138,138] [--at-most 31] [--begin-until S] [--end-at S]

A line of QUEUE is `GB|name|command`, with `name@1` for GPU 1 alone; lines may be added while it works. Commands begin in
their order, each on the GPU with the most room left (CUDA_VISIBLE_DEVICES), in one thread, and write FOLDER/name.txt;
FOLDER/log.txt says when each began and how it ended. rooms: GB of each GPU; at most: processes, by default one a core.
After --begin-until seconds none begins, at --end-at those that run are stopped. It ends with the last command, or, where
a time is given for it, then.
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

LOOK, PATIENCE = 0.4, 5.0  # seconds between looks; those that a stopped command has to end


@dataclass(frozen=True)
class Asked:
    """A line of the queue. gpu: the one that it wants, or None."""

    room: float
    name: str
    command: str
    gpu: int | None = None

    @classmethod
    def of(cls, line: str) -> Asked:
        parts = line.split("|", 2)
        try:
            room, (name, _, gpu) = float(parts[0]), parts[1].partition("@")
            return cls(room, name, parts[2], int(gpu) if gpu else None)
        except (ValueError, IndexError):
            sys.exit(
                f"a line of the queue is GB|name|command, or GB|name@GPU|command; got {line!r}"
            )


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
    rooms = [float(room) for room in given.rooms.split(",")]
    given.logs.mkdir(parents=True, exist_ok=True)
    began, taken, running = time.monotonic(), 0, list[Running]()
    with (given.logs / "log.txt").open("a", buffering=1, encoding="utf-8") as log:

        def say(text: str) -> None:
            log.write(f"{time.monotonic() - began:8.1f} {text}, {len(running)} run\n")

        while True:
            now = time.monotonic() - began
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                took = time.monotonic() - one.began
                say(f"{one.asked.name} ended with {one.process.returncode} after {took:.0f} s")
            if given.end_at is not None and now >= given.end_at:
                say(f"stopped: {', '.join(one.asked.name for one in running) or 'none'}")
                stop(running)
                return
            late = given.begin_until is not None and now >= given.begin_until
            lines = [line for line in given.queue.read_text().splitlines() if line.strip()]
            while not late and taken < len(lines) and len(running) < given.at_most:
                asked = Asked.of(lines[taken])
                if asked.room > max(rooms):
                    sys.exit(
                        f"{asked.name} wants {asked.room:g} GB, and no GPU has more than {max(rooms):g}"
                    )
                gpu = place(asked, rooms, running)
                if gpu is None:
                    break
                taken += 1
                running.append(Running(asked, gpu, begun(asked, gpu, given.logs)))
                say(f"{asked.name} began on GPU {gpu}")
            waits = given.end_at is not None or (given.begin_until is not None and not late)
            if not running and (late or taken == len(lines)) and not waits:
                return
            time.sleep(LOOK)


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

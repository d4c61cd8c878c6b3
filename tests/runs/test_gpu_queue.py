"""tools/gpu_queue.py runs what it is given, in its order, where there is room. No GPU is asked for anything."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "gpu_queue.py"


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(TOOL.parent)
    return importlib.import_module("gpu_queue")


def run(folder: Path, lines: list[str], *words: str) -> tuple[int, str, str]:
    (folder / "queue").write_text("\n".join(lines) + "\n")
    asked = [
        sys.executable,
        str(TOOL),
        str(folder / "queue"),
        "--logs",
        str(folder / "logs"),
        *words,
    ]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=60)
    return done.returncode, (folder / "logs" / "log.txt").read_text(), done.stderr


def test_all_of_a_queue_run_and_their_ends_are_told(tmp_path: Path) -> None:
    lines = [
        "6|a|echo $CUDA_VISIBLE_DEVICES",
        "6|b@1|echo $CUDA_VISIBLE_DEVICES; exit 3",
        "6|c|echo late",
    ]
    code, log, _ = run(tmp_path, lines, "--rooms", "8,8", "--at-most", "3")
    said = {path.stem: path.read_text().strip() for path in (tmp_path / "logs").glob("?.txt")}
    assert code == 0 and said == {"a": "0", "b": "1", "c": "late"}
    assert "b ended with 3" in log and "a ended with 0" in log
    # 6 and 6 GB do not fit into 8: the third waits for one of the others.
    assert log.index("c began") > min(log.index("a ended"), log.index("b ended"))


def test_what_runs_at_the_end_is_stopped_with_what_it_began(tmp_path: Path) -> None:
    number = tmp_path / "number"
    lines = [f"1|a|(echo $BASHPID > {number}; exec sleep 30) & wait", "1|b|sleep 30"]
    _, log, _ = run(tmp_path, lines, "--at-most", "2", "--end-at", "1")
    assert "stopped: a, b" in log
    state = Path(f"/proc/{number.read_text().strip()}/stat")
    # Gone, or a zombie that its new parent has not looked at.
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.parametrize(
    "line", ["1|a", "much|a|true", "1|a@x|true", "1|a@2|true", "900|a|true", "7|a@1|true"]
)
def test_a_line_that_cannot_run_is_told_and_the_others_run(line: str, tmp_path: Path) -> None:
    code, log, told = run(tmp_path, [line, "1|b|true"], "--rooms", "8,6")
    assert code == 1 and "b ended with 0" in log and "left out: " in log
    assert any(why in told for why in ("GB|name|command", "at most 8", "at most 6", "GPU 2"))


def test_a_line_that_is_being_written_waits_and_one_without_its_end_is_not_lost(
    queue: Any, tmp_path: Path
) -> None:
    path = tmp_path / "queue"
    path.write_text("1|a|true\n\n1|b|tr")
    own = queue.Queue(path, [8.0], tmp_path, None)
    assert own.left == ["1|a|true"] and len(own.lines) == 2
    os.utime(path, (0, 0))
    assert own.left == ["1|a|true", "1|b|tr"]


def test_the_gpu_with_most_room_is_taken_and_a_named_one_is_kept_to(queue: Any) -> None:
    busy = [queue.Running(queue.Asked(5, "x", ""), 0, None)]
    assert queue.place(queue.Asked(4, "y", ""), [10.0, 8.0], busy) == 1
    assert queue.place(queue.Asked(4, "y", "", 0), [10.0, 8.0], busy) == 0
    assert queue.place(queue.Asked(6, "y", "", 0), [10.0, 8.0], busy) is None

"""Tables as folders of parts: whole or absent, named by what they depend on; jobs and their workers."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from topkit.errors import InputError
from topkit.experiments.runs.jobs import Job, serial
from topkit.experiments.runs.parts import digest, read_table, write_part, write_whole
from topkit.experiments.runs.pool import pool
from topkit.experiments.runs.runners import runner

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), plain, min_size=2, max_size=5))
def test_equal_inputs_have_equal_names(inputs):
    turned = dict(reversed(inputs.items()))
    assert digest(inputs) == digest(turned)
    first = next(iter(inputs))
    assert digest(inputs) != digest({**inputs, first: [inputs[first], "changed"]})


def test_a_write_that_fails_leaves_what_stood_there(tmp_path):
    path = tmp_path / "deep" / "file"
    write_whole(path, lambda to: to.write_text("first"))

    def half(to):
        to.write_text("sec")
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match="No space left"):
        write_whole(path, half)
    assert path.read_text() == "first"
    assert list(path.parent.iterdir()) == [path]


def test_parts_make_a_table_and_a_spoilt_one_is_named(tmp_path):
    for name in ("b", "a"):
        write_part(tmp_path, name, pa.table({"x": [name]}))
    assert read_table(tmp_path)["x"].to_pylist() == ["a", "b"]
    (tmp_path / "b.parquet").write_bytes((tmp_path / "b.parquet").read_bytes()[:-9])
    with pytest.raises(InputError, match=r"b\.parquet"):
        read_table(tmp_path)
    with pytest.raises(InputError, match="no table"):
        read_table(tmp_path / "none")


def square(x):
    return x * x


@pytest.mark.slow
def test_runners_give_the_same_results():
    jobs = [Job({"x": x}, (x,)) for x in range(5)]
    assert list(serial(square, jobs)) == [0, 1, 4, 9, 16]
    assert sorted(pool(2)(square, jobs)) == [0, 1, 4, 9, 16]
    with pytest.raises(InputError, match="at least 1"):
        runner(0)


def touch(path):
    time.sleep(0.05)
    Path(path).touch()
    return path


@pytest.mark.slow
def test_a_pool_that_is_left_runs_no_more_jobs(tmp_path):
    """As where Ctrl-C comes: the jobs under way end, those that wait are given up."""
    jobs = [Job({"n": n}, (str(tmp_path / str(n)),)) for n in range(200)]
    results = iter(pool(2)(touch, jobs))
    next(results)
    results.close()  # type: ignore[attr-defined]
    counts = []
    while len(counts) < 2 or counts[-1] != counts[-2]:
        counts.append(len(list(tmp_path.iterdir())))
        time.sleep(1)
    assert 1 <= counts[-1] < 100


@pytest.mark.slow
def test_workers_leave_with_a_parent_that_is_killed():
    """They hold both ends of their queue, and would wait at it for ever."""
    code = (
        "import os, time\n"
        "from topkit.experiments.runs.jobs import Job\n"
        "from topkit.experiments.runs.pool import pool\n"
        "if __name__ == '__main__':\n"
        "    for pid in pool(2)(os.getpid, [Job({'x': n}) for n in range(2)]):\n"
        "        print(pid, flush=True)\n"
        "        time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    for _ in range(100):
        if not alive(worker):
            break
        time.sleep(0.1)
    assert not alive(worker)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A dead child of a dead parent may stay a zombie where nothing reaps it.
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rsplit(")", 1)[1].split()[0] != "Z"

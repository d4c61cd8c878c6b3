"""Task files are read row by row; what is no task file is refused in one line that says where and what."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

import topkit
from topkit.errors import InputError
from topkit.experiments.model.load import REFERENCE
from topkit.experiments.runs.identity import contents
from topkit.experiments.tasks import Prompt, make_task, task_name
from topkit.experiments.tasks.files import lines

TOKENIZER = AutoTokenizer.from_pretrained(REFERENCE, local_files_only=True)
ROW = {
    "input": "It was dark.\nWho came?",
    "outputs": ["Tom"],
    "answer_prefix": " The one who came was",
}


def written(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def ruler(path: Path, **parameters: Any) -> Any:
    return make_task("ruler", file=str(path), **{"tokens": 8, **parameters})


def drawn(task: Any, sample: int = 0, length: int = 256) -> Prompt:
    return task.sample(TOKENIZER, length, sample)


def test_rows_stand_in_the_files_order_whatever_blank_lines_are_between(tmp_path: Path) -> None:
    rows = [{**ROW, "outputs": [f"Tom {n}"]} for n in range(5)]
    text = "\n\n".join(json.dumps(row) for row in rows)
    (tmp_path / "rows.jsonl").write_text(f"\n{text}")  # no line end behind the last
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "rows.json").write_text(json.dumps(rows, indent=1))
    for name in ("rows.jsonl", "rows.jsonl.gz", "rows.json"):
        task = ruler(tmp_path / name)
        assert task.most_samples() == 5
        answers = [drawn(task, n).questions[0].references for n in range(5)]
        assert answers == [(f"Tom {n}",) for n in range(5)], name
        assert [drawn(task, n, 512).ids for n in range(5)] == [drawn(task, n).ids for n in range(5)]
        with pytest.raises(InputError, match="has 5 prompts; there is no prompt 5"):
            drawn(task, 5)


def test_a_name_tells_files_and_their_contents_apart_and_is_short(tmp_path: Path) -> None:
    deep = tmp_path / "a" / ("very" * 20) / "niah_single_2"
    path = written(deep / "validation.jsonl", ROW)
    other = written(tmp_path / "b" / "niah_single_2" / "validation.jsonl", {**ROW, "index": 1})
    names = [task_name(ruler(p, form="chat")) for p in (path, other)]
    assert names[0] != names[1] and all(len(name) < 70 for name in names)
    assert names[0].startswith("ruler:form=chat,file=niah_single_2/validation.jsonl@")
    before = task_name(ruler(path)), contents(ruler(path))
    os.utime(path, (1, 1))
    assert (task_name(ruler(path)), contents(ruler(path))) == before  # nothing but its date
    written(path, {**ROW, "outputs": ["Ann"]})
    assert task_name(ruler(path)) != before[0] and contents(ruler(path)) != before[1]
    assert drawn(ruler(path)).questions[0].references == ("Ann",)


def test_a_files_text_parses_back(tmp_path: Path) -> None:
    path = written(tmp_path / "with, comma" / "o'neil.jsonl", ROW)
    task = ruler(path, form="chat")
    assert make_task(repr(task)) == task
    assert make_task(f"ruler:{path.name}") == make_task(
        "ruler", file=path.name
    )  # the first parameter


HOSTILE: list[tuple[str, bytes, str]] = [
    ("empty", b"", "holds no rows"),
    ("blank", b"\n  \n\t\n", "holds no rows"),
    ("not JSON", b'{"input": "a", "outputs": ["b"]}\n{oops\n', r"rows\.jsonl, line 2 as JSON"),
    ("cut off", json.dumps(ROW).encode()[:-4], r"line 1 as JSON"),
    ("binary", bytes(range(128, 256)) * 40, r"line 1: it is not UTF-8 at byte 0"),
    ("a number", b"17\n", r"line 1: it must be a mapping; got 17"),
    ("a list of numbers", b"[1, 2]", r"\[0\] must be a mapping"),
    ("no input", b'{"outputs": ["a"]}\n', r"line 1: input is missing"),
    ("no outputs", b'\n{"input": "a"}\n', r"line 2: outputs is missing"),
    (
        "outputs is text",
        b'{"input": "a", "outputs": "b"}',
        r"line 1: outputs must be a list; got 'b'",
    ),
    ("numbers", b'{"input": "a", "outputs": [7]}', r"line 1: outputs\[0\] must be text; got 7"),
    ("no answers", b'{"input": "a", "outputs": []}', r"line 1: outputs must be one or more texts"),
    ("blank", b'{"input": "a", "outputs": [" "]}', r"line 1: outputs must be one or more texts"),
    (
        "input is null",
        b'{"input": null, "outputs": ["a"]}',
        r"line 1: input must be text; got None",
    ),
    (
        "no length",
        b'{"input": "a", "outputs": ["b"], "max_new_tokens": 0}',
        r"max_new_tokens must be",
    ),
    ("twice", b'{"input": "a", "input": "b", "outputs": ["c"]}', r"'input' stands twice"),
    ("deep", b'{"input": "a", "outputs": ["c"], "x": ' + b"[" * 90 + b"]" * 90 + b"}", "levels"),
    ("deeper", b"[" * 10**5, "levels"),
]


@pytest.mark.parametrize(("name", "content", "said"), HOSTILE, ids=[h[0] for h in HOSTILE])
def test_what_is_no_row_is_refused_by_its_line_and_field(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    task = ruler(path)
    with pytest.raises(InputError, match=said) as caught:
        _ = [drawn(task, sample) for sample in range(2)]
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs file=PATH"):
        make_task("helmet").sample(TOKENIZER, 256, 0)
    for path, said in (
        (tmp_path / "none.jsonl", "No such file"),
        (tmp_path, "no plain file"),
        (Path("/dev/zero"), "no plain file"),
        (tmp_path / ("x" * 300), "too long"),
    ):
        with pytest.raises(InputError, match=said) as caught:
            drawn(ruler(path))
        assert "ruler reads JSON lines such as" in str(caught.value)
    (tmp_path / "rows.gz").write_bytes(b"no gzip at all")
    (tmp_path / "cut.gz").write_bytes(gzip.compress(json.dumps(ROW).encode() * 50)[:-9])
    for name in ("rows.gz", "cut.gz"):
        with pytest.raises(InputError, match=f"cannot read .*{name}"):
            drawn(ruler(tmp_path / name))


def test_a_line_or_a_packed_file_of_any_size_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "MOST_LINE", 1000)
    monkeypatch.setattr(lines, "MOST_UNPACKED", 5000)
    path = written(tmp_path / "rows.jsonl", ROW, {**ROW, "input": "x" * 2000})
    with pytest.raises(InputError, match="line 2 has more than 1,000 bytes"):
        drawn(ruler(path))
    packed = tmp_path / "rows.jsonl.gz"
    packed.write_bytes(gzip.compress(b"\n" * 6000))
    with pytest.raises(InputError, match="unpacks to more than 5,000 bytes"):
        drawn(ruler(packed))


def test_what_does_not_fit_is_refused_by_line_and_length(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", ROW, {**ROW, "input": "A long way. " * 400 + "\nWho?"})
    with pytest.raises(
        InputError, match=r"line 2 takes ([\d,]+) tokens .* of \1 or more"
    ) as caught:
        drawn(ruler(path), 1, 512)
    least = int(str(caught.value).split(" tokens")[0].rsplit(" ", 1)[1].replace(",", ""))
    assert len(drawn(ruler(path), 1, least).ids) > 512
    with pytest.raises(InputError, match="does not fit"):
        drawn(ruler(path), 1, least - 1)


def test_parameters_of_files_are_checked(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", ROW)
    with pytest.raises(InputError, match="ruler has no form 'chatt'; did you mean 'chat'"):
        drawn(ruler(path, form="chatt"))
    with pytest.raises(InputError, match="tokens must be"):
        ruler(path, tokens=-1)
    with pytest.raises(InputError, match="needs a chat template"):
        drawn(ruler(path, form="chat"))
    with pytest.raises(InputError, match="has no parameter 'questions'"):
        ruler(path, questions=2)


def test_a_short_file_is_said_in_one_line_and_what_is_there_is_run(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", ROW, ROW)
    tasks = [str(x) for x in ("niah-single:wording=code", f"ruler:file={path},tokens=4")]
    plan = topkit.evaluate.plan("reference", tasks, 256, 3, out=tmp_path / "run", observe=False)
    (note,) = [line for line in plan.notes if "samples" in line]
    assert note == f"{task_name(ruler(path, tokens=4))} has 2 prompts, of 3 samples asked for"
    assert len(plan.jobs) == 5
    table = topkit.run(plan)
    said = [(row["task"].partition(":")[0], row["haystack"]) for row in table.to_pylist()]
    assert said == [("niah-single", n) for n in range(3)] + [("ruler", n) for n in range(2)]
    assert table.num_rows == plan.rows


def test_another_file_at_the_path_of_a_run_is_refused_by_name(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", ROW)
    run = {"tasks": f"ruler:file={path},tokens=4", "lengths": 256, "samples": 1, "observe": False}
    first = topkit.evaluate("reference", **run, out=tmp_path / "run").to_pylist()
    assert topkit.evaluate("reference", **run, out=tmp_path / "run").to_pylist() == first
    written(path, {**ROW, "outputs": ["Ann"]})
    with pytest.raises(InputError, match="a file that it reads has other content"):
        topkit.evaluate("reference", **run, out=tmp_path / "run")
    again = topkit.evaluate("reference", **run, out=tmp_path / "other").to_pylist()
    assert again[0]["references"] == ["Ann"] and again[0]["task"] != first[0]["task"]

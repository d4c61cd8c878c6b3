"""LongBench v2's, lost in the middle's and NoLiMa's files are asked in their words; MQAR is drawn by its rule."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from topkit.errors import InputError
from topkit.experiments.model.load import REFERENCE
from topkit.experiments.tasks import (
    OFFICIAL,
    TASKS,
    Haystack,
    Prompt,
    make_task,
    rule_of,
    task_name,
)
from topkit.experiments.tasks.files.placement import distractor_share

TOKENIZER = AutoTokenizer.from_pretrained(REFERENCE, local_files_only=True)


def written(path: Path, rows: Sequence[dict[str, Any]], lines: bool = True) -> str:
    text = "".join(f"{json.dumps(row)}\n" for row in rows) if lines else json.dumps(rows)
    path.write_text(text, encoding="utf-8")
    return str(path)


def drawn(name: str, path: str, sample: int = 0, length: int = 2048, **parameters: Any) -> Prompt:
    return make_task(name, file=path, **parameters).sample(TOKENIZER, length, sample)


def whole(prompt: Prompt) -> str:
    return prompt.text + prompt.questions[0].text


def item(n: int = 0, **more: Any) -> dict[str, Any]:
    choices = {f"choice_{letter}": f" choice {letter} {n} " for letter in "ABCD"}
    text = " ".join(f"Sentence {i} of {n}." for i in range(60))
    return {
        "_id": f"{n}",
        "context": f" {text}\n",
        "question": f"What of {n}? ",
        "answer": "C",
        **choices,
        **more,
    }


def test_longbench_asks_in_its_words_and_cuts_the_middle(tmp_path: Path) -> None:
    path = written(
        tmp_path / "data.json", [item(0), item(1, difficulty="hard", length="short")], False
    )
    prompt = drawn("longbench-v2", path, 1)
    assert whole(prompt) == (
        "Please read the following text and answer the question below.\n\n<text>\n"
        f"{item(1)['context'].strip()}\n</text>\n\nWhat is the correct answer to this question: What of 1?\n"
        "Choices:\n(A) choice A 1\n(B) choice B 1\n(C) choice C 1\n(D) choice D 1\n\n"
        'Format your response as follows: "The correct answer is (insert answer here)".'
    )
    assert (prompt.tokens_to_generate, prompt.rule, prompt.stop) == (128, "choice", ())
    assert prompt.wording == "hard-short" and drawn("longbench-v2", path, 0).wording == "plain"
    assert rule_of(prompt.rule)(prompt.questions[0].answer, prompt.questions[0].references) == 1
    used = prompt.tokens(0) + 128
    for length in (used, used - 1, used - 100, 400):
        cut = drawn("longbench-v2", path, 1, length)
        assert length - 4 <= cut.tokens(0) + 128 <= length
        # LongBench keeps the first and the last half of the tokens that there is room for.
        ids = list(TOKENIZER(whole(prompt), add_special_tokens=False)["input_ids"])
        kept = cut.tokens(0) - 1  # its first token is the tokenizer's own
        first, last = (
            TOKENIZER.decode(some) for some in (ids[: kept // 2 - 4], ids[-(kept // 2) + 4 :])
        )
        assert whole(cut).startswith(first) and whole(cut).endswith(last)
    with pytest.raises(InputError, match=r"item 2 takes .* does not fit into a length of 200"):
        drawn("longbench-v2", path, 1, 200)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("choice_B", None, r"item 1: choice_B must be text; got None"),
        ("answer", "E", r"item 1: answer must be 'A' or 'B' or 'C' or 'D'; got 'E'"),
        ("context", ..., r"item 1: context is missing"),
    ],
)
def test_items_that_lack_something_are_refused(
    tmp_path: Path, field: str, value: Any, said: str
) -> None:
    read = item()
    del read[field]
    path = written(
        tmp_path / "data.json", [read if value is ... else {**read, field: value}], False
    )
    with pytest.raises(InputError, match=said):
        drawn("longbench-v2", path)


PAIRS = {
    "ordered_kv_records": [["k0", "v0"], ["k1", "v1"], ["k2", "v2"]],
    "key": "k2",
    "value": "v2",
}


def test_lost_pairs_are_asked_where_they_stand_or_are_put(tmp_path: Path) -> None:
    path = written(tmp_path / "kv-retrieval-3_keys.jsonl", [PAIRS])
    head = "Extract the value corresponding to the specified key in the JSON object below.\n\nJSON data:\n"
    tail = '\n\nKey: "k2"\nCorresponding value:'
    prompt = drawn("lost-in-the-middle", path)
    assert whole(prompt) == f'{head}{{"k0": "v0",\n "k1": "v1",\n "k2": "v2"}}{tail}'
    assert (prompt.tokens_to_generate, prompt.rule) == (100, "any")
    assert prompt.questions[0].references == ("v2",) and prompt.wording == "kv"
    moved = whole(drawn("lost-in-the-middle", path, gold=1))
    assert moved == f'{head}{{"k0": "v0",\n "k2": "v2",\n "k1": "v1"}}{tail}'
    with pytest.raises(InputError, match=r"line 1 has 3 pairs; gold must lie in 0\.\.2"):
        drawn("lost-in-the-middle", path, gold=3)


def test_lost_answers_stand_in_documents(tmp_path: Path) -> None:
    row = {
        "question": "who came",
        "answers": ["Tom", "Tommy"],
        "ctxs": [{"title": f"T{n}", "text": f"Text {n}.", "isgold": n == 1} for n in range(2)],
    }
    prompt = drawn("lost-in-the-middle", written(tmp_path / "qa.jsonl", [row]))
    assert whole(prompt) == (
        "Write a high-quality answer for the given question using only the provided search results "
        "(some of which might be irrelevant).\n\nDocument [1](Title: T0) Text 0.\n"
        "Document [2](Title: T1) Text 1.\n\nQuestion: who came\nAnswer:"
    )
    assert (prompt.tokens_to_generate, prompt.rule, prompt.stop) == (100, "first-line", ("\n",))
    assert prompt.questions[0].references == ("Tom", "Tommy")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({**PAIRS, "key": "k9"}, "line 1: ordered_kv_records lacks key and value"),
        ({**PAIRS, "value": "v1"}, "line 1: ordered_kv_records lacks key and value"),
        ({**PAIRS, "ordered_kv_records": [["k"]]}, r"ordered_kv_records\[0\] must be a list of 2"),
        ({"question": "a", "answers": ["b"]}, "line 1: ctxs is missing"),
        (
            {"question": "a", "answers": [], "ctxs": [{"title": "", "text": ""}]},
            "line 1: expected answers",
        ),
        # A blank stands in whatever is said: any answer would be right.
        (
            {**PAIRS, "ordered_kv_records": [["k0", " "]], "key": "k0", "value": " "},
            "line 1: its answers must be one or more texts, none of them blank",
        ),
        (
            {"question": "a", "answers": ["b", ""], "ctxs": [{"title": "", "text": ""}]},
            "line 1: its answers must be one or more texts, none of them blank",
        ),
    ],
)
def test_lost_rows_that_lack_something_are_refused(
    tmp_path: Path, row: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        drawn("lost-in-the-middle", written(tmp_path / "rows.jsonl", [row]))


NEEDLES = [
    {
        "id": "0401",
        "system_prompt": "Be short.",
        "needle": "Actually, {CHAR} lives next to the {1}.",
        "questions": {"onehop": "Who has been to {2}?", "twohop": "Which one saw {1} or {2}?"},
        "tests": {
            "T1": {"input_args": ["Opera", "Dresden"]},
            "T2": {"input_args": ["Kiasma", "Helsinki"]},
        },
        "character_set": ["Yuki", "Stuart", "Katie"],
    },
    {
        "id": "0402x",
        "needle": "Tom saw the {1}.",
        "questions": {"direct": "Who saw the {1}?"},
        "tests": {"a": {"input_args": ["sea"], "gold_answers": ["Tom", "Thomas"]}},
    },
]


def book(tmp_path: Path) -> str:
    lines = ["[no list]"] + [
        f"Line {n} of a book of many lines, no two of which are alike." for n in range(400)
    ]
    (tmp_path / "book.txt").write_text("\n".join(lines))
    return str(tmp_path / "book.txt")


@pytest.mark.slow
def test_nolima_puts_a_needle_between_the_lines_of_a_book(tmp_path: Path) -> None:
    path, text = written(tmp_path / "needle_set.json", NEEDLES, False), book(tmp_path)
    task = make_task("nolima", file=path, book=text)
    assert re.search(r"file=.*/needle_set\.json@\w{6},book=.*/book\.txt@\w{6}$", task_name(task))
    assert task.most_samples() == 5 * 26
    seen, places = Counter(), []
    for sample in range(0, 130, 3):
        prompt = task.sample(TOKENIZER, 1500, sample)
        (q,) = prompt.questions
        assert prompt.tokens(0) + 192 <= 1500 and prompt.tokens(0) + 192 > 1300
        body = prompt.text.partition("snippet:\n\n")[2]
        needle = re.search(r"Actually, \w+ lives next to the \w+\.|Tom saw the sea\.", body)
        assert needle
        before, after = body[: needle.start()], body[needle.end() :]
        # NoLiMa joins it to the line before by a blank, where the line ended.
        assert before.endswith(" ") and after.startswith("\n")
        assert before[:-1] + after in f"\n{Path(text).read_text()}" or before == " "
        assert after[1:] in Path(text).read_text()
        assert q.references[0] in needle[0] and q.answer == f" {q.references[0]}"
        assert "{" not in prompt.text + q.text
        assert q.text.startswith("\n\nUse the information provided in the book snippet")
        assert q.text.endswith(
            "\n\n Return only the final answer with no additional explanation or reasoning."
        )
        assert (prompt.tokens_to_generate, prompt.rule) == (192, "contains")
        assert prompt.text.startswith("Be short.\n\nYou will") == ("lives" in needle[0])
        seen[prompt.wording] += 1
        places.append(needle.start() / len(body))
    assert set(seen) == {"onehop", "twohop", "direct"} and min(places) < 0.15 and max(places) > 0.85
    assert task.sample(TOKENIZER, 1500, 3) == task.sample(TOKENIZER, 1500, 3)
    drawn_all = {
        (whole(task.sample(TOKENIZER, 600, n)).partition("Use the")[2], n) for n in range(20)
    }
    assert len(drawn_all) == 20


@pytest.mark.parametrize("depth", [0, 0.25, 0.5, 1])
def test_nolimas_depth_is_a_share_of_the_tokens(tmp_path: Path, depth: float) -> None:
    path, text = written(tmp_path / "set.json", NEEDLES, False), book(tmp_path)
    for more in ({"book": text}, {}):
        task = make_task("nolima", file=path, depth=depth, task="direct", **more)
        assert task.most_samples() == 1
        prompt = task.sample(TOKENIZER, 2048, 0)
        body = prompt.text.partition("snippet:\n\n")[2]
        before, _, after = body.partition("Tom saw the sea.\n")
        counts = [len(TOKENIZER(part)["input_ids"]) for part in (before, after)]
        assert counts[0] / sum(counts) == pytest.approx(depth, abs=0.08)


@pytest.mark.parametrize("depth", [0, 0.3, 0.5, 0.7, 1])
@pytest.mark.parametrize("length", [650, 2048])
def test_nolimas_distractor_stands_away_from_its_needle(
    tmp_path: Path, depth: float, length: int
) -> None:
    told = "The {1} has no neighbours."
    one = NEEDLES[0] | {"distractors": {"onehop": told, "twohop": told}}
    path, text = written(tmp_path / "set.json", [one], False), book(tmp_path)
    task = make_task("nolima", file=path, book=text, depth=depth)
    seen = set[str]()
    for sample in range(4):
        prompt = task.sample(TOKENIZER, length, sample)
        body = prompt.text.partition("snippet:\n\n")[2]
        needle = re.search(r" Actually, \w+ lives next to the (\w+)\.\n", body)
        assert needle
        distractor = f" The {needle[1]} has no neighbours.\n"
        assert body.count(distractor) == 1
        # Without both, lines of the book one behind the other; an empty line was behind the distractor.
        alone = body.replace(distractor, "").replace(needle[0], "\n" if needle.start() else "")
        assert alone in Path(text).read_text() and f"{distractor}\n" in body
        counts = [
            len(TOKENIZER(body[: body.index(t)])["input_ids"]) for t in (needle[0], distractor)
        ]
        own, away = (count / len(TOKENIZER(body)["input_ids"]) for count in counts)
        assert abs(own - away) > 0.12 and own == pytest.approx(depth, abs=0.08)
        if length == 650:  # fewer than 500 tokens of the book
            fixed = 0.7 if depth < 0.6 else 0.5 if depth == 0.7 else 0.6
            assert away == pytest.approx(fixed, abs=0.08)
        else:
            assert 0.15 < away < 0.87
        seen.add(f"{away:.2f}")
    assert length == 650 or len(seen) > 1


def test_nolimas_distractors_stand_alike_wherever_they_may() -> None:
    drawn = np.linspace(0, 1, 2001)
    for depth, spans in {
        0.0: [(0.2, 0.8)], 0.3: [(0.5, 0.8)], 0.5: [(0.2, 0.3), (0.7, 0.8)], 1.0: [(0.2, 0.8)],
    }.items():  # fmt: skip
        shares = np.array([distractor_share(depth, float(x)) for x in drawn])
        wide = sum(end - begin for begin, end in spans)
        for begin, end in spans:
            inside = (shares >= begin - 1e-9) & (shares <= end + 1e-9)
            assert inside.mean() == pytest.approx((end - begin) / wide, abs=0.01)
            assert shares[inside].min() == pytest.approx(begin, abs=0.01)
            assert shares[inside].max() == pytest.approx(end, abs=0.01)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"id": "x1"}, r"item 1: id must be text that begins with four digits"),
        ({"needle": ...}, r"item 1: needle is missing"),
        (
            {"distractors": {"onehop": "Ann slept."}},
            r"item 1: distractors has none for questions of type twohop",
        ),
        (
            {"distractors": {"onehop": "A {3}.", "twohop": "B."}},
            r"item 1: tests\.T1\.input_args has 2 texts, and none for \{3\}",
        ),
        ({"distractors": ["Ann slept."]}, r"item 1: distractors must be "),
        ({"questions": {}}, r"item 1: questions and tests must be one or more"),
        ({"tests": {}}, r"item 1: questions and tests must be one or more"),
        (
            {"needle": "{CHAR} saw {1} and {3}.", "tests": {"T": {"input_args": ["a", "b"]}}},
            r"item 1: tests\.T\.input_args has 2 texts, and none for \{3\}",
        ),
        ({"tests": {"T": {}}}, r"item 1: tests\.T\.input_args is missing"),
        ({"character_set": []}, r"item 1: tests\.T1 needs gold_answers, or the needle"),
        ({"task_template": "{question}"}, r"item 1: task_template lacks \{haystack\}"),
        ({"character_set": [" "]}, r"item 1: its answers must be one or more texts, none of them"),
    ],
)
def test_needles_that_lack_something_are_refused(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    one = {name: x for name, x in {**NEEDLES[0], **change}.items() if x is not ...}
    path = written(tmp_path / "set.json", [one], False)
    with pytest.raises(InputError, match=said):
        drawn("nolima", path)


def test_nolima_refuses_books_and_types_that_are_none(tmp_path: Path) -> None:
    path = written(tmp_path / "set.json", NEEDLES, False)
    (tmp_path / "line.txt").write_text("one line")
    (tmp_path / "latin.txt").write_bytes("é\n".encode("latin-1"))
    refused: list[tuple[dict[str, Any], str]] = [
        ({"book": str(tmp_path / "none.txt")}, "No such file"),
        ({"book": str(tmp_path / "line.txt")}, "is one line"),
        ({"book": str(tmp_path / "latin.txt")}, "not UTF-8"),
        ({"task": "threehop"}, "no questions of type 'threehop'; known: direct, onehop, twohop"),
        ({"depth": 2.0}, "depth must lie in"),
    ]
    for more, said in refused:
        with pytest.raises(InputError, match=said):
            drawn("nolima", path, **more)
    with pytest.raises(InputError, match=r"does not fit into a length of 220; ask for a longer"):
        drawn("nolima", path, length=220)


@pytest.mark.parametrize(
    "parameters", [{}, {"pairs": 3, "passes": 2, "vocabulary": 64}, {"noise": False}]
)
def test_mqar_asks_for_each_key_once_behind_all_pairs(parameters: dict[str, Any]) -> None:
    task = make_task("mqar", **parameters)
    pairs, passes = parameters.get("pairs", 8), parameters.get("passes", 1)
    for sample in range(3):
        prompt = task.sample(TOKENIZER, 256, sample)
        known = [*prompt.ids[1:], *max((q.ids for q in prompt.questions), key=len)]
        context = known[: 2 * pairs * passes]
        told = dict(zip(context[::2], context[1::2], strict=True))
        assert len(told) == pairs == len(set(told.values())) and not set(told) & set(told.values())
        asked = [q.ids[-1] for q in prompt.questions]
        assert sorted(asked) == sorted(told)  # each once
        for q in prompt.questions:
            assert q.answer_ids == (told[q.ids[-1]],) and len(prompt.ids) + len(q.ids) <= 256
            assert (len(prompt.ids[1:]) + len(q.ids)) % 2 == 1  # at an even place
            assert rule_of(prompt.rule)(q.answer, q.references) == 1
            assert TOKENIZER.decode(list(q.answer_ids)) == q.answer
        assert prompt.tokens_to_generate == 1
        if not parameters.get("noise", True):
            assert len(set(known)) == 2 * pairs + 1
    assert task.sample(TOKENIZER, 256, 0) == task.sample(TOKENIZER, 256, 0)
    assert len({task.sample(TOKENIZER, 256, 0, seed=n).ids[1] for n in range(4)}) > 1


def test_mqar_refuses_what_does_not_go() -> None:
    for parameters, said in (
        ({"pairs": 0}, "expected pairs"),
        ({"pairs": 200}, "does not fit into a length of 256; ask for a longer length, of 801"),
        ({"pairs": 40, "vocabulary": 60}, "need a vocabulary of 82 or more"),
        ({"vocabulary": 10**6}, "may be symbols; got 1000000"),
        ({"power": 0.0}, "power must lie"),
        ({"form": "chat"}, "no form but plain"),
    ):
        with pytest.raises(InputError, match=said):
            make_task("mqar", **parameters).sample(TOKENIZER, 256, 0)


def test_official_tasks_have_names_of_their_own_and_sources() -> None:
    assert set(OFFICIAL) == {
        "ruler",
        "helmet",
        "longbench-v2",
        "lost-in-the-middle",
        "nolima",
        "mqar",
    }
    assert not set(OFFICIAL) & set(TASKS)
    for name, task in OFFICIAL.items():
        assert "arXiv" in task.source and task.asks and task.__doc__
        assert make_task(name) == make_task(repr(make_task(name)))
    assert task_name(make_task("mqar:pairs=4")) == "mqar:pairs=4"
    assert Haystack.bundled().sentences  # which they stand in

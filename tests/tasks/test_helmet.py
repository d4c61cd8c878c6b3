"""HELMET's files are asked in HELMET's words, with its demonstrations, its cut and its scores."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from topkit.errors import InputError
from topkit.experiments.model.load import REFERENCE
from topkit.experiments.tasks import Prompt, make_task, rule_of, task_name
from topkit.experiments.tasks.helmet.datasets import DATASETS, dataset_of, shots_of
from topkit.experiments.tasks.helmet.labels import balanced

TOKENIZER = AutoTokenizer.from_pretrained(REFERENCE, local_files_only=True)


def written(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return str(path)


def drawn(path: str, sample: int = 0, length: int = 4096, **parameters: Any) -> Prompt:
    return make_task("helmet", file=path, **parameters).sample(TOKENIZER, length, sample)


def whole(prompt: Prompt) -> str:
    return prompt.text + prompt.questions[0].text


def test_pairs_are_asked_behind_their_demonstrations(tmp_path: Path) -> None:
    row = {
        "context": 'JSON data:\n{"k1": "v1", "k2": "v2"}',
        "question": "k2",
        "answer": "v2",
        "demos": [["d1", "w1"], ["d2", "w2"], ["d3", "w3"]],
        "num_kvs": 2,
    }
    path = written(tmp_path / "json_kv" / "test_k105_dep6.jsonl", [row])
    shown = "Key: d1\nCorresponding value: w1\n\nKey: d2\nCorresponding value: w2\n\n"
    ask = "\n\nExtract the value corresponding to the specified key in the JSON object below.\n\n"
    prompt = drawn(path)
    assert whole(prompt) == f"{row['context']}{ask}{shown}Key: k2\nCorresponding value:"
    assert prompt.text == row["context"] and prompt.questions[0].answer == " v2"
    assert (prompt.tokens_to_generate, prompt.rule, prompt.stop) == (100, "substring", ())
    assert whole(drawn(path, shots=0)) == f"{row['context']}{ask}Key: k2\nCorresponding value:"
    assert drawn(path).wording == "json_kv" and drawn(path, tokens=7).tokens_to_generate == 7


@pytest.mark.parametrize(
    ("folder", "tokens", "several"),
    [
        ("niah_multikey_2", 50, False),
        ("niah_multikey_3", 100, False),
        ("niah_multivalue", 50, True),
    ],
)
def test_needles_are_asked_in_rulers_words(
    tmp_path: Path, folder: str, tokens: int, several: bool
) -> None:
    kind = "numbers" if several else "number"
    row = {
        "context": "Long text.",
        "query": "old-key",
        "type_needle_v": kind,
        "outputs": ["71", "72"],
    }
    prompt = drawn(written(tmp_path / folder / "validation_8192.jsonl", [row]))
    some, verb, all_ = ("Some", "are", "are all") if several else ("A", "is", "is")
    assert whole(prompt) == (
        f"{some} special magic {kind} {verb} hidden within the following text. Make sure to memorize it. "
        f"I will quiz you about the {kind} afterwards.\nLong text.\nWhat {all_} the special magic {kind} "
        f"for old-key mentioned in the provided text?\nThe special magic {kind} for old-key mentioned in "
        f"the provided text {verb}"
    )
    assert (prompt.tokens_to_generate, prompt.rule) == (tokens, "all")
    assert prompt.questions[0].references == ("71", "72")
    other = {"question" if name == "query" else name: x for name, x in row.items()}
    assert whole(drawn(written(tmp_path / folder / "other.jsonl", [other]))) == whole(prompt)
    del other["question"]
    with pytest.raises(InputError, match="line 1: query is missing; expected it, or question"):
        drawn(written(tmp_path / folder / "other.jsonl", [other]))


def question(n: int, **more: Any) -> dict[str, Any]:
    ctxs = [{"title": f"T{n}.{i}", "text": f"Text {n}.{i}.", "id": "x"} for i in range(2)]
    return {
        "id": f"q{n}",
        "question": f"Who is {n}?",
        "answers": [f"Tom {n}"],
        "ctxs": ctxs,
        **more,
    }


def documents(n: int) -> str:
    return f"Document (Title: T{n}.0): Text {n}.0.\n\nDocument (Title: T{n}.1): Text {n}.1."


def shuffled(key: str, count: int) -> list[int]:
    """HELMET's order of demonstrations, as its documents and `datasets` say it."""
    seed = int(hashlib.sha256(key.encode("utf-8")).hexdigest(), 16) % 2**31
    return np.random.default_rng(seed).permutation(count).tolist()


@pytest.mark.parametrize(
    "name", ["nq-dev-multikilt_1000_k50_dep6", "triviaqa-dev-x", "hotpotqa-dev-x"]
)
def test_questions_stand_behind_documents_and_demonstrations(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / "kilt" / f"{name}.jsonl", [question(n) for n in range(3)])
    # Of one question with several documents the first in order is shown.
    known = [question(n % 4 + 10, depth=n) for n in range(8)]
    demos = written(tmp_path / "kilt" / "train.jsonl", known)
    prompt = drawn(path, 1, demos=demos)
    order = [known[n] for n in shuffled("q1", 8)]
    first = order[0]
    second = next(one for one in order if one["id"] != first["id"])
    shown = "".join(
        f"{documents(n)}\n\nQuestion: Who is {n}?\nAnswer: Tom {n}\n\n"
        for n in (int(one["id"][1:]) for one in (first, second))
    )
    assert whole(prompt) == (
        "Use the given documents to write a concise and short answer to the question. Write your answer "
        f"in the following format:\nAnswer: [answer]\n\n{shown}{documents(1)}\n\nQuestion: Who is 1?"
        "\nAnswer:"
    )
    assert prompt.questions[0].text == "\n\nQuestion: Who is 1?\nAnswer:"
    assert (prompt.tokens_to_generate, prompt.rule) == (20, "substring")
    with pytest.raises(InputError, match=r"shows 2 demonstrations; say demos=PATH .* or shots=0"):
        drawn(path)
    assert whole(drawn(path, 1, shots=0)) == whole(prompt).replace(shown, "")
    names = [task_name(make_task("helmet", file=path, demos=d, shots=0)) for d in ("", demos)]
    assert names[0] != names[1] and "demos=kilt/train.jsonl@" in names[1]


def test_popqa_asks_of_what_is_rare_and_shows_no_question_of_its_own(tmp_path: Path) -> None:
    rows = [question(n, s_pop=p) for n, p in enumerate([5000, 20, 999, 1000, 3])]
    path = written(tmp_path / "popqa_test_1000_k50_dep6.jsonl", rows)
    task = make_task("helmet", file=path, demos=path)
    assert task.most_samples() == 3
    for sample, number in enumerate((1, 2, 4)):
        text = whole(task.sample(TOKENIZER, 4096, sample))
        assert text.endswith(f"Who is {number}?\nAnswer:")
        assert text.count(f"Who is {number}?") == 1 and "Who is 0?" not in text
        assert text.count("Question:") == 3
    with pytest.raises(InputError, match="there is no prompt 3"):
        task.sample(TOKENIZER, 4096, 3)


def test_rankings_show_ids_and_are_scored_by_place(tmp_path: Path) -> None:
    ctxs = [{"id": str(n), "text": f"Text {n}.", "label": n % 3} for n in range(12)]
    rows = [{"qid": f"{q}", "query": f"which {q}", "ctxs": ctxs} for q in range(3)]
    path = written(tmp_path / "msmarco" / "test_reranking_data_k50_dep3.jsonl", rows)
    prompt = drawn(path, demos=path, shots=1)
    listed = "\n\n".join(f"[ID: {n}] Document: Text {n}." for n in range(12))
    best = [n for grade in (2, 1, 0) for n in range(12) if n % 3 == grade]
    other = next(n for n in (rows[1:][i]["qid"] for i in shuffled("0", 2)))
    ranked = " > ".join(map(str, best))
    assert whole(prompt).partition("ID2\n\n")[2] == (
        f"{listed}\n\nQuery: which {other}\nRanking: {ranked}\n\n{listed}\n\nQuery: which 0\nRanking:"
    )
    assert prompt.questions[0].answer == " " + " > ".join(map(str, best[:10]))
    assert (prompt.tokens_to_generate, prompt.rule) == (200, "ndcg@10")
    score, references = rule_of("ndcg@10"), prompt.questions[0].references
    assert score(ranked, references) == score(prompt.questions[0].answer, references) == 1
    titled = [{**one, "title": f"T{one['id']}"} for one in ctxs]
    path = written(tmp_path / "reranking.jsonl", [{**rows[0], "ctxs": titled}])
    assert "[ID: 3] Document (Title: T3): Text 3." in drawn(path, shots=0).text


def ndcg(order: list[int], grades: list[int]) -> float:
    """By the definition, over all that is ranked."""
    ideal = sorted(grades, reverse=True)
    gains = [grades[n] for n in order]
    sums = [sum(g / math.log2(i + 2) for i, g in enumerate(gs) if i < 10) for gs in (gains, ideal)]
    return sums[0] / sums[1] if sums[1] else 0.0


@given(
    grades=st.lists(st.integers(0, 3), min_size=1, max_size=25),
    seed=st.integers(0, 99),
    form=st.sampled_from(["{}", "ID{}", "[{}]", "[ID: {}]"]),
    around=st.sampled_from(["{}", "Ranking: {}\nThe first is 7.", "I say: {} > nothing"]),
)
@settings(deadline=None)
def test_ndcg_is_the_definitions(grades: list[int], seed: int, form: str, around: str) -> None:
    order = random.Random(seed).sample(range(len(grades)), len(grades))
    said = around.format(" > ".join(form.format(100 + n) for n in order))
    references = [f"{100 + n} {grade}" for n, grade in enumerate(grades)]
    assert rule_of("ndcg@10")(said, references) == pytest.approx(ndcg(order, grades))


RANKED = [
    ("1 > 1 > 2", 1.0),  # a document counts once, at its first place
    ("2 > 1", 1 / math.log2(3)),
    ("9 > 1", 1 / math.log2(3)),  # what is not among them takes its place
    ("no numbers", 0.0),
    ("", 0.0),
    ("3 of them: 1 > 2", 1.0),  # the longest run
]


@pytest.mark.parametrize(("said", "score"), RANKED)
def test_rankings_are_read_as_helmet_reads_them(said: str, score: float) -> None:
    assert rule_of("ndcg@10")(said, ["1 1", "2 0"]) == pytest.approx(score)


def test_fewer_demonstrations_than_are_to_be_shown_are_refused(tmp_path: Path) -> None:
    pair = {"context": "{}", "question": "a", "answer": "b", "demos": [["c", "d"]]}
    path = written(tmp_path / "json_kv" / "rows.jsonl", [pair])
    with pytest.raises(
        InputError, match="line 1: demos holds 1 demonstrations, and json_kv is to show 2"
    ):
        drawn(path)
    assert drawn(path, shots=1).questions[0].text.count("Key: c") == 1
    path = written(tmp_path / "nq-rows.jsonl", [question(0)])
    demos = written(tmp_path / "demos.jsonl", [question(1)])
    with pytest.raises(
        InputError, match=r"demos\.jsonl, for .* line 1, holds 1 .* kilt_nq is to show 2"
    ):
        drawn(path, demos=demos)


def test_labels_are_numbers_drawn_anew_and_shown_in_rounds(tmp_path: Path) -> None:
    train = [{"text": f"text {n}", "coarse_label": n % 6, "fine_label": n % 9} for n in range(90)]
    path = written(
        tmp_path / "trec_coarse_test.jsonl",
        [{"text": f"what {n}", "coarse_label": n} for n in range(4)],
    )
    demos = written(tmp_path / "train.jsonl", train)
    mappings = []
    for sample in range(4):
        prompt = drawn(path, sample, demos=demos, shots=20)
        head, _, body = prompt.text.partition("nothing else. \n\n")
        assert head == (
            "Use the provided mapping from the text to label to assign a label to the text. Only output "
            '"label: {label}" and '
        )
        shown = [item.split("\nlabel: ") for item in body.split("\n\n")]
        of = {str(row["text"]): row["coarse_label"] for row in train}
        assert len(shown) == 20 and len({text for text, _ in shown}) == 20
        for first in (0, 6, 12):  # a round has every label
            assert {of[text] for text, _ in shown[first : first + 6]} == set(range(6))
        mapping = {of[text]: number for text, number in shown}
        assert len(set(mapping.values())) == 6
        (q,) = prompt.questions
        assert q.text == f"\n\nwhat {sample}\nlabel:" and q.references == (mapping[sample],)
        mappings.append(tuple(mapping[n] for n in range(6)))
    assert len(set(mappings)) > 1
    assert (prompt.tokens_to_generate, prompt.rule) == (20, "line")
    with pytest.raises(InputError, match="say demos=PATH of its training split"):
        drawn(path, shots=5)


@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=40), shots=st.integers(1, 60))
@settings(deadline=None)
def test_rounds_are_balanced_whatever_the_labels(labels: list[int], shots: int) -> None:
    demos = [(f"text {n}", label) for n, label in enumerate(labels)]
    shown = balanced(demos, shots, 3)
    assert len(shown) == shots and set(shown) <= set(demos)
    counts = Counter(label for _, label in shown)
    assert max(counts.values()) - min(counts.get(label, 0) for label in set(labels)) <= 1
    times = Counter(shown)
    for demo, count in times.items():  # none again before all of its label were shown
        assert count <= -(-counts[demo[1]] // labels.count(demo[1])) + 1


LABELS = [
    ("line", " 5", 1.0),
    ("line", "label: 5\nlabel: 6", 1.0),
    ("line", "\n5", 0.0),
    ("line", " 55", 0.0),
    ("label", "The label: 5", 1.0),
    ("label", "Here\nlabel: 5.", 1.0),
    ("label", "5", 1.0),
    ("first-line", "It is the 5 of\n7", 1.0),
    ("first-line", "\n5", 0.0),
    ("same", " 5 ", 1.0),
    ("same", "5.", 0.0),
]


@pytest.mark.parametrize(("rule", "said", "score"), LABELS)
def test_rules_read_the_line_that_their_format_reads(rule: str, said: str, score: float) -> None:
    assert rule_of(rule)(said, ["5"]) == score


def test_what_is_too_long_loses_the_end_of_its_context(tmp_path: Path) -> None:
    ctxs = [{"title": f"T{n}", "text": f"This is text number {n}."} for n in range(200)]
    rows = [{**question(0), "ctxs": ctxs}]
    path = written(tmp_path / "nq-dev.jsonl", rows)
    full = drawn(path, shots=0, length=1 << 16)
    used = full.tokens(0) + 20
    assert used > 2000 and whole(drawn(path, shots=0, length=used)) == whole(full)
    for length in (used - 1, 1000, 301):
        cut = drawn(path, shots=0, length=length)
        assert length - 4 <= cut.tokens(0) + 20 <= length
        assert full.text.startswith(cut.text) and cut.questions == full.questions
    with pytest.raises(InputError, match=r"line 1 takes .* ask for a longer length"):
        drawn(path, shots=0, length=60)


def test_a_files_name_says_its_dataset(tmp_path: Path) -> None:
    for path, name in (
        ("data/json_kv/test_k1800_dep6.jsonl", "json_kv"),
        ("data/ruler/niah_multivalue/validation_131072.jsonl", "ruler_niah_mv"),
        ("data/kilt/popqa_test_1000_k1000_dep6.jsonl", "kilt_popqa_3"),
        ("data/msmarco/test_reranking_data_k1000_dep3.jsonl", "msmarco_rerank_psg"),
        ("icl/banking77.jsonl", "icl_banking77"),
        ("other.jsonl", ""),
    ):
        assert dataset_of(path) == name
    path = written(tmp_path / "other.jsonl", [question(0)])
    with pytest.raises(InputError, match=r"cannot tell which of HELMET's datasets .* say task="):
        drawn(path)
    assert drawn(path, task="kilt_nq", shots=0).wording == "kilt_nq"
    with pytest.raises(InputError, match="did you mean 'kilt_nq'"):
        make_task("helmet", file=path, task="kilt_nk")
    with pytest.raises(InputError, match="shots must be 0 or more"):
        make_task("helmet", file=path, shots=-2)


def test_demonstrations_of_labels_grow_with_the_length() -> None:
    assert [shots_of("icl_nlu", 8192 << n) for n in range(5)] == [510, 1020, 2040, 4080, 8296]
    assert shots_of("icl_trec_fine", 2048) == 100 and shots_of("icl_nlu", 16) == 1
    assert {shots_of(name, 8192) for name in DATASETS if not name.startswith("icl")} == {2}


LACKING = [
    ("json_kv", {"context": "a", "question": "b"}, "line 1: answer is missing"),
    ("kilt_nq", {**question(0), "answers": []}, "line 1: its answers must be one or more"),
    ("kilt_nq", {**question(0), "ctxs": [{"title": "a"}]}, r"line 1: ctxs\[0\]\.text is missing"),
    ("kilt_nq", {**question(0), "ctxs": []}, "line 1: ctxs is empty"),
    ("kilt_popqa_3", question(0), "line 1: s_pop is missing"),
    ("ruler_niah_mv", {"context": "a", "query": "b", "type_needle_v": "c"}, "line 1: its answers"),
    (
        "msmarco_rerank_psg",
        {"qid": "1", "query": "a", "ctxs": [{"id": "1", "text": "a"}]},
        "label is",
    ),
    ("icl_nlu", {"text": "a"}, "line 1: label is missing"),
]


@pytest.mark.parametrize(("name", "row", "said"), LACKING)
def test_what_lacks_a_field_is_refused_by_line_and_field(
    tmp_path: Path, name: str, row: dict[str, Any], said: str
) -> None:
    path = written(tmp_path / "rows.jsonl", [row])
    demos = written(tmp_path / "demos.jsonl", [{"text": "b", "label": 0}]) if "icl" in name else ""
    with pytest.raises(InputError, match=said):
        drawn(path, task=name, demos=demos, shots=1 if demos else 0)

"""Tasks keep what they promise: length, seeds, answers that stand in the text, places, scoring."""

from __future__ import annotations

import re
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from topkit.cli.values import parse_task
from topkit.errors import InputError
from topkit.experiments.model.load import REFERENCE
from topkit.experiments.tasks import (
    TASKS,
    Haystack,
    Prompt,
    make_task,
    ruler_part,
    ruler_score,
    task_name,
)
from topkit.experiments.tasks import prompt as make_prompt
from topkit.experiments.tasks.base import HELD_OUT, OWN, RULER, TRAINED, Planted, Question, Task
from topkit.experiments.tasks.wordings import WORDINGS
from topkit.experiments.tasks.words import NOUNS, names, things, values

TOKENIZER = AutoTokenizer.from_pretrained(REFERENCE, local_files_only=True)
# What topkit's own tasks keep besides the laws of every task, which run over the registry.
NEEDLES = ["niah-single", "niah-multikey", "niah-multivalue", "niah-multiquery", "niah-word"]
PLANTED = [*NEEDLES, "variable-tracking", "kv-recall", "recite"]


@lru_cache
def drawn(name: str, length: int = 2048, sample: int = 0, seed: int = 0, **given: Any) -> Prompt:
    return make_task(name, **given).sample(TOKENIZER, length, sample, seed=seed)


def encoded(text: str) -> tuple[int, ...]:
    return tuple(TOKENIZER(text, add_special_tokens=False)["input_ids"])


def told(prompt: Prompt, wording: str) -> list[tuple[str, str]]:
    """(thing, value) of every fact that the text tells in a wording, in order."""
    w = WORDINGS[wording]
    form = re.escape(w.fact).replace(re.escape("{a}"), re.escape(w.attribute))
    form = form.replace(re.escape("{key}"), r"([\w ]+?)").replace(re.escape("{value}"), r"(\w+)")
    return re.findall(form, prompt.text)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("length", [2048, 4096])
def test_length_is_met_and_never_passed(name: str, length: int) -> None:
    for sample in range(3):
        prompt = drawn(name, length, sample)
        used = len(prompt.ids) + max(len(q.ids) + len(q.answer_ids) for q in prompt.questions)
        assert length - 16 <= used <= length
        assert prompt.length == length and prompt.ids[0] == TOKENIZER.bos_token_id


@pytest.mark.parametrize("name", TASKS)
def test_a_seed_is_a_prompt(name: str) -> None:
    again = make_task(name).sample(TOKENIZER, 2048, 0, seed=0)
    assert again == drawn(name)
    others = [drawn(name, sample=1), drawn(name, seed=1)]
    others.append(make_task(name).sample(TOKENIZER, 2048, 0, seed=0, split="calibration"))
    for other in others:
        assert other.text != again.text
        if name != "books":
            assert {q.answer for q in other.questions} != {q.answer for q in again.questions}


@pytest.mark.parametrize("name", TASKS)
def test_tokens_are_those_of_the_whole_text(name: str) -> None:
    for sample in range(2):
        prompt = drawn(name, sample=sample)
        for q in prompt.questions:
            whole = tuple(TOKENIZER(prompt.text + q.text + q.answer)["input_ids"])
            assert prompt.ids + q.ids + q.answer_ids == whole


@pytest.mark.parametrize("name", PLANTED)
def test_one_haystack_serves_several_questions(name: str) -> None:
    prompt = drawn(name, 4096, questions=3)
    assert len(prompt.questions) == 3 == len({q.text for q in prompt.questions})
    for q in prompt.questions:
        assert q.references
        for reference in q.references:
            assert reference in prompt.text
            # A word may be the book's own, too.
            assert prompt.text.count(reference) == 1 or name == "niah-word"
            assert reference in q.answer and ruler_score(q.answer, q.references) == 1
    assert prompt.parameters["questions"] == 3


@pytest.mark.parametrize("name", NEEDLES)
@pytest.mark.parametrize("wording", WORDINGS)
def test_needles_stand_in_the_haystack_in_the_asked_wording(name: str, wording: str) -> None:
    prompt = drawn(name, wording=wording)
    facts = told(prompt, wording)
    parameters = prompt.parameters
    each = {"niah-multiquery": 4, "niah-multivalue": 4}.get(name, 1)
    wanted = parameters["questions"] * each
    alike = parameters["distractors"] * (each if name == "niah-multivalue" else 1)
    assert len(facts) == len(dict(facts)) == wanted + alike
    for q in prompt.questions:
        asked = [(thing, value) for thing, value in facts if value in q.references]
        assert Counter(value for _, value in asked) == Counter(q.references)
        for thing, value in asked:
            assert thing.split(" ", 1)[-1] in q.text
            if each > 1:
                assert f"{thing} {value}" in q.answer
            else:
                assert q.answer == f" {value}"
    assert prompt.wording == wording
    held_out = HELD_OUT in (WORDINGS[wording].kind, TASKS[name].family)
    assert prompt.family == (HELD_OUT if held_out else TRAINED)


@pytest.mark.slow
def test_two_wordings_and_one_family_are_held_out() -> None:
    assert sum(w.kind == HELD_OUT for w in WORDINGS.values()) == 2
    assert [n for n in [*PLANTED, "books"] if TASKS[n].family == HELD_OUT] == ["niah-word"]
    for name in NEEDLES:
        for kind in (TRAINED, HELD_OUT):
            seen = {drawn(name, sample=n, wording=kind).wording for n in range(12)}
            assert len(seen) > 1 and {WORDINGS[w].kind for w in seen} == {kind}
    seen = {drawn("niah-single", sample=n).wording for n in range(60)}
    assert seen == set(WORDINGS)
    assert {v for _, v in told(drawn("niah-word", wording="code"), "code")} <= set(NOUNS)


@pytest.mark.parametrize("name", ["niah-multikey", "niah-multiquery", "kv-recall", "niah-word"])
def test_distractors_are_as_many_as_asked(name: str) -> None:
    for distractors in (0, 9):
        prompt = drawn(name, distractors=distractors)
        if name == "kv-recall":
            found = re.findall(r"[A-Z][a-z]{5}=(\d{5});", prompt.text)
        else:
            found = told(prompt, prompt.wording)
        each = prompt.parameters.get("keys_each", 1)
        assert len(found) == prompt.parameters["questions"] * each + distractors


@pytest.mark.slow
@pytest.mark.parametrize("depth", [0, 0.25, 0.5, 0.75, 1])
def test_depth_is_where_the_needle_stands(depth: float) -> None:
    for name in ("niah-single", "niah-multikey", "kv-recall"):
        for sample in range(4):
            prompt = drawn(name, 4096, sample, depth=depth, distractors=0)
            places = [prompt.text.index(q.references[0]) for q in prompt.questions]
            before, after = prompt.text[: min(places)], prompt.text[max(places) :]
            # Sentences are counted, as RULER counts them, and these differ in length.
            sentences = [len(re.findall(r"[.!?] ", part)) for part in (before, after)]
            assert sentences[0] / sum(sentences) == pytest.approx(depth, abs=0.04), name
            share = len(encoded(before)) / len(prompt.ids)
            assert share == pytest.approx(depth, abs=0.12), name
    spread = [drawn("niah-single", sample=n) for n in range(12)]
    places = [p.text.index(p.questions[0].references[0]) / len(p.text) for p in spread]
    assert np.ptp(places) > 0.5  # anywhere, where no depth is asked for


@pytest.mark.parametrize("name", [n for n in PLANTED if n not in ("recite", "niah-word")])
@pytest.mark.parametrize("digits", [0, 3, 10])
def test_digits_set_the_answers_length(name: str, digits: int) -> None:
    prompt = drawn(name, 4096, digits=digits)
    form = rf"[1-9]\d{{{digits - 1}}}" if digits else r"[A-Z][a-z]{5}"
    for q in prompt.questions:
        assert all(re.fullmatch(form, reference) for reference in q.references)
    if name == "niah-multikey" and digits:
        # The space, then a token a digit.
        assert {len(q.answer_ids) for q in prompt.questions} == {digits + 1}


@pytest.mark.parametrize("hops", [1, 2, 3])
def test_chains_lead_to_their_numbers(hops: int) -> None:
    for sample in range(3):
        prompt = drawn("variable-tracking", sample=sample, hops=hops)
        told = dict(re.findall(r"([A-Z]\w+) holds (\d+)\.", prompt.text))
        copied = dict(re.findall(r"([A-Z]\w+) holds what ([A-Z]\w+) holds\.", prompt.text))
        chains = prompt.parameters["questions"] + prompt.parameters["distractors"]
        assert len(told) == len(set(told.values())) == chains
        assert len(copied) == chains * (hops - 1)
        for q in prompt.questions:
            asked = re.fullmatch(r"\nWhich number does (\w+) hold\? \1 holds", q.text)
            assert asked
            name, said, steps = asked[1], "", 1
            while name in copied:
                # A link is told before what hangs on it.
                at, source = prompt.text.index(f"{name} holds what"), copied[name]
                assert prompt.text.index(f"{source} holds") < at
                name, steps = source, steps + 1
                said += f" what {name} holds; {name} holds"
            assert steps == hops and q.references == (told[name],)
            assert q.answer == f"{said} {told[name]}"


def test_pairs_stand_in_one_block() -> None:
    prompt = drawn("kv-recall")
    (block,) = re.findall(r"(?:[A-Z][a-z]{5}=\d{5}; ?)+", prompt.text)
    pairs = dict(re.findall(r"(\w+)=(\d+);", block))
    assert len(pairs) == 96
    for q in prompt.questions:
        asked = re.fullmatch(r"\nLook up (\w+)\. \1=", q.text)
        assert asked and q.answer == pairs[asked[1]]


def test_recited_passages_are_long_and_whole() -> None:
    for sample in range(3):
        prompt = drawn("recite", sample=sample, distractors=1)
        passages = dict(re.findall(r"Passage (\w+) reads: ([a-z ]+)\.", prompt.text))
        assert len(passages) == 3
        for q in prompt.questions:
            asked = re.search(r"Passage (\w+) reads:$", q.text)
            assert asked and q.answer == " " + passages[asked[1]]
            assert len(q.answer_ids) >= 128
            assert len(q.answer.split()) == 140 == len(set(q.answer.split()))


@pytest.mark.parametrize("tokens", [1, 64, 256])
def test_books_ask_for_the_last_tokens_of_running_text(tokens: int) -> None:
    prompt = drawn("books", 600, tokens=tokens)
    (q,) = prompt.questions
    assert len(q.answer_ids) == tokens and len(q.ids) == 1 and not q.references
    text = TOKENIZER.decode([*prompt.ids[1:], *q.ids, *q.answer_ids])
    excerpt = " ".join(Haystack.bundled().sentences * 2)
    assert text == prompt.text and text in excerpt


def test_books_have_a_prefix_or_are_refused() -> None:
    fitting = set()
    for length, sample in product([200, *range(255, 270), 300], range(4)):
        with suppress(InputError):
            prompt = drawn("books", length, sample)
            (q,) = prompt.questions
            assert prompt.ids and len(q.ids) == 1 and len(q.answer_ids) == 256
            fitting.add(length)
    assert min(fitting) >= 258 and {269, 300} <= fitting


SCORED = [
    (" 12345.", ["12345"], 1.0),
    ("12 345", ["12345"], 0.0),
    ("", ["12345"], 0.0),
    (" first 11; second 22", ["11", "22"], 1.0),
    ("22 then 11", ["11", "22"], 1.0),  # the order is free
    ("only 22 of them", ["11", "22", "33", "44"], 0.25),
    ("Its value is LANTERN", ["lantern"], 1.0),
    ("its value is lantern", ["Lantern"], 1.0),
    ("its value is lantern", ["lantern "], 0.0),  # to the letter, blanks of what was said left out
    ("512345", ["12345"], 1.0),  # found within a longer one: RULER's rule
]


@pytest.mark.parametrize(("said", "references", "score"), SCORED)
def test_score_is_rulers(said: str, references: list[str], score: float) -> None:
    assert ruler_score(said, references) == score


@pytest.mark.parametrize("name", TASKS)
def test_a_length_too_short_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"^{name} .*(longer length|too short)"):
        drawn(name, 40 if name != "niah-single" else 16)


def test_what_does_not_fit_is_refused_by_its_length_and_distractors() -> None:
    said = (
        r"^niah-multikey plants \d+ tokens in haystack 3, .* a length of 300; ask for a longer length, "
        r"of [\d,]+ or more, or for fewer distractors \(distractors=60 here\)$"
    )
    with pytest.raises(InputError, match=said):
        drawn("niah-multikey", 300, 3)
    with pytest.raises(InputError, match=r"or more$"):
        drawn("recite", 300)


@pytest.mark.parametrize("name", ["niah-single", "niah-multikey", "recite", "kv-recall"])
def test_the_least_length_that_fits_is_met(name: str) -> None:
    """Where nothing but the planted fits, nothing else is there, and no token more than asked."""
    task = make_task(name)
    low, high = 1, 2048
    while low < high:
        middle = (low + high) // 2
        try:
            prompt = task.sample(TOKENIZER, middle, 0)
            high = middle
            used = max(len(q.ids) + len(q.answer_ids) for q in prompt.questions)
            assert len(prompt.ids) + used <= middle
        except InputError:
            low = middle + 1
    tight = task.sample(TOKENIZER, low, 0)
    assert all(tight.text.count(r) == 1 for q in tight.questions for r in q.references)


REFUSED = [
    ("niah-multykey", {}, "did you mean 'niah-multikey'"),
    ("xyz", {}, "known: books, helmet, kv-recall"),
    ("niah-single", {"asks": "nothing"}, "niah-single has no parameter 'asks'"),
    ("niah-multikey", {"distractor": 3}, "did you mean 'distractors'"),
    ("niah-single", {"wording": "rewrad"}, "did you mean 'reward'"),
    ("recite", {"wording": "held-out"}, "known: any, plain, trained"),
    ("books", {"wording": "held-out"}, "known: any, plain, trained"),
    ("books", {"questions": 2}, "expected questions=1"),
    ("books", {"tokens": 0}, "tokens >= 1"),
    ("niah-single", {"questions": 0}, "questions >= 1"),
    ("niah-single", {"questions": "four"}, "questions must be int; got 'four'"),
    ("niah-multikey", {"distractors": 1.5}, "distractors must be int; got 1.5"),
    ("niah-single", {"depth": True}, "depth must be float; got True"),
    ("niah-single", {"wording": 3}, "wording must be str; got 3"),
    ("niah-single", {"depth": 1.5}, "depth must lie in 0..1"),
    ("kv-recall", {"depth": 5}, "depth must lie in 0..1"),
    ("kv-recall", {"depth": -0.5}, "depth must lie in 0..1"),
    ("kv-recall", {"distractors": -1}, "distractors, digits >= 0|distractors >= 0"),
    ("niah-multikey", {"digits": 1}, "9 different numbers of 1 digits, and 64"),
    ("niah-multikey", {"distractors": 10**6}, "different names of things, and 1000004"),
    ("kv-recall", {"distractors": 10**6}, "different made-up names, and 2000008"),
    ("niah-word", {"distractors": 1000}, "niah-word has .* values; got 1004"),
    ("niah-multivalue", {"values_each": 9}, "values_each must be 2..8"),
    ("niah-multiquery", {"keys_each": 0}, "keys_each must be at least 1"),
    ("variable-tracking", {"hops": 0}, "hops >= 1"),
    ("niah-single", {"digits": -1}, "digits must lie in 0..1,000; got -1"),
    *(
        (name, {"digits": 10**20}, r"digits must lie in 0\.\.1,000; got 10{20}")
        for name in ("niah-single", "niah-multivalue", "kv-recall", "variable-tracking")
    ),
    ("recite", {"words": 10**4}, "words"),
]


@pytest.mark.parametrize(("name", "given", "said"), REFUSED)
def test_bad_parameters_are_refused(name: str, given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        make_task(name, **given).sample(TOKENIZER, 2048, 0)


def test_a_users_text_is_the_haystack(tmp_path: Path) -> None:
    own = tmp_path / "own.txt"
    own.write_text("\n\n".join(f"Line {n} of my own text\nis here." for n in range(40)))
    haystack = Haystack.of_file(own)
    assert haystack.name == "own.txt" and len(haystack.sentences) == 40
    prompt = make_task("niah-multikey", distractors=4).sample(TOKENIZER, 2048, 0, haystack=haystack)
    rest = re.sub(r"Line \d+ of my own text is here\.", "", prompt.text)
    facts = told(prompt, prompt.wording)
    assert len(facts) == 8 and 1900 < len(prompt.ids) < 2048  # from the start again at its end
    assert len(rest.split()) < 8 * 20


@pytest.mark.parametrize(
    "text",
    [
        "no stop at all " * 4000,
        "".join(f"文字{n}没有空格。" for n in range(900)),
        "x" * 50_000,
        "word\tper\nline\r\n" * 3000,
    ],
    ids=["no stops", "no spaces", "one word", "lines"],
)
def test_text_of_any_form_is_cut_to_measure(tmp_path: Path, text: str) -> None:
    (tmp_path / "own.txt").write_text(text, encoding="utf-8")
    haystack = Haystack.of_file(tmp_path / "own.txt")
    task = make_task("niah-single", depth=0.5)
    prompts = [task.sample(TOKENIZER, 4096, n, haystack=haystack) for n in range(3)]
    for prompt in prompts:
        question = prompt.questions[0]
        used = len(prompt.ids) + len(question.ids) + len(question.answer_ids)
        assert 3900 < used <= 4096
        place = prompt.text.index(question.references[0]) / len(prompt.text)
        assert place == pytest.approx(0.5, abs=0.13)


def test_a_text_that_changed_is_read_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the folder is another, and the name the same."""
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "own.txt").write_text(f"Text {number}.")
    for number in range(2):
        monkeypatch.chdir(tmp_path / str(number))
        assert Haystack.of_file("own.txt").sentences == (f"Text {number}.",)
    (tmp_path / "1" / "own.txt").write_text("Text of another length.")
    assert Haystack.of_file("own.txt").sentences == ("Text of another length.",)


def test_a_haystack_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no text at"):
        Haystack.of_file(tmp_path / "missing.txt")
    (tmp_path / "empty.txt").write_text(" \n\t ")
    with pytest.raises(InputError, match="holds no text"):
        Haystack.of_file(tmp_path / "empty.txt")
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(InputError, match="not UTF-8"):
        Haystack.of_file(tmp_path / "latin.txt")


@pytest.mark.parametrize("draw", [things, names, lambda rng, n: values(rng, n, 5)])
def test_drawn_words_are_all_different(draw: Any) -> None:
    words = draw(np.random.default_rng(0), 5000)
    assert len(set(words)) == 5000
    assert len(set(values(np.random.default_rng(0), 9, 1))) == 9
    assert all(v[0] != "0" for v in values(np.random.default_rng(0), 50, 12))


def test_a_prompt_says_how_it_was_made() -> None:
    prompt = drawn("niah-multikey", distractors=7, digits=3)
    assert set(prompt.parameters) == {"questions", "wording", "distractors", "digits", "depth"}
    again = make_task(prompt.task, **prompt.parameters)
    assert again.sample(TOKENIZER, prompt.length, prompt.sample, seed=prompt.seed) == prompt
    assert again == replace(make_task("niah-multikey"), distractors=7, digits=3)


@pytest.mark.parametrize("name", TASKS)
def test_a_tasks_name_parses_back(name):
    plain = make_task(name)
    assert task_name(plain) == name
    number = next(x for x in ("distractors", "words", "tokens") if hasattr(plain, x))
    odd = replace(plain, **{number: getattr(plain, number) + 1, "wording": "trained"})
    assert parse_task(task_name(odd)) == odd


@dataclass(frozen=True)
class Outside(Task):
    """A task of somebody else's, which does as `how` says."""

    how: str = "well"

    def plant(self, rng: np.random.Generator, wording: str) -> Planted:
        if self.how == "blankly":
            return Planted(("It is 7.",), (Question("\nIt is", " 7", ("7", " ")),))
        known = {"well": Planted(("It is 7.",), (Question("\nIt is", " 7", ("7",)),))}
        if self.how == "refuses":
            raise InputError("outside: not so")
        return known[self.how]


def test_a_task_that_says_nothing_of_itself_is_nobodys() -> None:
    prompt = make_prompt(Outside(), TOKENIZER, 200, 0)
    assert (prompt.family, Outside.source) == (OWN, OWN)
    assert {TASKS[name].source for name in TASKS} >= {RULER} and OWN not in {
        x for name in TASKS for x in (TASKS[name].source, TASKS[name].family)
    }


def test_an_error_of_a_tasks_own_code_names_the_task() -> None:
    said = rf"Outside:how=badly cannot make prompt 2: {re.escape(__file__)}:\d+: KeyError: 'badly'"
    with pytest.raises(InputError, match=said):
        make_prompt(Outside(how="badly"), TOKENIZER, 200, 2)
    with pytest.raises(InputError, match=r"^outside: not so$"):
        make_prompt(Outside(how="refuses"), TOKENIZER, 200, 2)
    with pytest.raises(
        InputError, match=r"reference that is blank stands in whatever is said; .* is'"
    ):
        make_prompt(Outside(how="blankly"), TOKENIZER, 200, 2)


@pytest.mark.parametrize(
    ("said", "any_of"), [("both 11 and 22", 1.0), ("22 alone", 1.0), ("neither", 0.0), ("", 0.0)]
)
def test_part_match_is_rulers(said: str, any_of: float) -> None:
    assert ruler_part(said, ["11", "22"]) == any_of

"""Needle sets of NoLiMa: facts, the questions about them, and the names that fill a gap."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np

from topkit.documents import Prose, Text
from topkit.errors import InputError
from topkit.experiments.tasks.files.lines import Rows
from topkit.experiments.tasks.files.row import Row

SCHEMA = {
    "id": Text(r"\d{4}.*", "text that begins with four digits"),
    "needle": Prose,
    "questions": {str: Prose},
    "tests": {str: {"input_args": [Prose], "gold_answers?": object}},
    "system_prompt?": Prose,
    "character_set?": [Prose],
    "task_template?": Prose,
    "distractors?": {str: Prose},
}
TEMPLATE = (
    "You will answer a question based on the following book snippet:\n\n{haystack}\n\nUse the information "
    "provided in the book snippet to answer the question. Your answer should be short and based on either "
    "explicitly stated facts or strong, logical inferences.\n\nQuestion: {question}\n\n Return only the "
    "final answer with no additional explanation or reasoning."
)
TOKENS = 192
CHARACTER = "{CHAR}"


@dataclass(frozen=True)
class Needle:
    """One test: a fact with a gap for a name, where one is, a question about it, and what may mislead, or nothing."""

    place: str
    kind: str
    fact: str
    question: str
    answers: tuple[str, ...]
    characters: tuple[str, ...]
    system: str
    template: str
    distractor: str = ""


def needles_of(rows: Rows, at: int, remedy: str) -> list[Needle]:
    """The tests of one entry of a set. Raises: InputError naming the entry and what it lacks."""
    read = rows.row(at, SCHEMA, remedy)
    place = f"{rows.path}, {rows.places[at]}"
    distractors = read.get("distractors") or dict.fromkeys(read["questions"], "")
    if lacking := sorted(set(read["questions"]) - set(distractors)):
        raise InputError(
            f"{place}: distractors has none for questions of type {', '.join(lacking)}; {remedy}"
        )
    template = read.get("task_template", TEMPLATE)
    if "{haystack}" not in template:
        raise InputError(f"{place}: task_template lacks {{haystack}}; {remedy}")
    made = []
    for kind, question in read["questions"].items():
        for name, test in read["tests"].items():
            texts = read["needle"], question, distractors[kind]
            fact, asked, distractor = (_filled(text, test["input_args"]) for text in texts)
            if gap := re.search(r"\{\d+\}", fact + asked + distractor):
                raise InputError(
                    f"{place}: tests.{name}.input_args has {len(test['input_args'])} texts, and none for "
                    f"{gap[0]}; {remedy}"
                )
            answers = _answers(test.get("gold_answers"))
            if not answers and not (CHARACTER in fact and read.get("character_set")):
                raise InputError(
                    f"{place}: tests.{name} needs gold_answers, or the needle {CHARACTER} and a "
                    f"character_set; {remedy}"
                )
            named = tuple(read.get("character_set", ()))
            system = read.get("system_prompt", "")
            own = kind, fact, asked, answers, named, system, template, distractor
            made.append(Needle(place, *own))
    if not made:
        raise InputError(f"{place}: questions and tests must be one or more each; {remedy}")
    return made


def named(needle: Needle, rng: np.random.Generator) -> Needle:
    """The test with a name in its gap, which is then the answer."""
    if CHARACTER not in needle.fact:
        return needle
    name = str(rng.choice(needle.characters))
    fact, question = (t.replace(CHARACTER, name) for t in (needle.fact, needle.question))
    return replace(needle, fact=fact, question=question, answers=(name,))


def row_of(needle: Needle, context: str) -> Row:
    """A test over some context, as NoLiMa asks it."""
    before, after = needle.template.split("{haystack}", 1)
    return Row(
        before=before.replace("{question}", needle.question),
        context=context,
        after=after.replace("{question}", needle.question),
        answer=f" {needle.answers[0]}",
        references=needle.answers,
        facts=(needle.fact,),
        rule="contains",
        tokens=TOKENS,
        system=needle.system,
        kind=needle.kind,
        place=needle.place,
    )


def _filled(text: str, values: list[str]) -> str:
    for number, value in enumerate(values, 1):
        text = text.replace(f"{{{number}}}", value)
    return text


def _answers(value: object) -> tuple[str, ...]:
    """The answers of a test, which is a text or a list of texts."""
    several = value if isinstance(value, list) else [value]
    return tuple(one for one in several if isinstance(one, str) and one)

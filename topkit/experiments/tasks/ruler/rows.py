"""Rows of RULER's validation.jsonl."""

from __future__ import annotations

from typing import Any

from topkit.documents import Prose, Whole
from topkit.errors import InputError
from topkit.experiments.tasks.files.lines import Rows
from topkit.experiments.tasks.files.row import Row, asked_from
from topkit.experiments.tasks.ruler.forms import ALL, NEEDLES, PART, form_of

SCHEMA = {
    "input": Prose,
    "outputs": [Prose],
    "answer_prefix?": Prose,
    "tokens_to_generate?": Whole(1),
    "max_new_tokens?": Whole(1),
}


def row_of(rows: Rows, number: int, task: str, tokens: int, remedy: str) -> Row:
    """A row as RULER asks it: its input, then the prefix of the answer.

    task: "" where nothing says it; its answer is then as long as the file or `tokens` says.
    Raises: InputError for a row that is not RULER's, or does not tell how long its answer may be.
    """
    read = rows.row(number, SCHEMA, remedy)
    place = f"{rows.path}, {rows.places[number]}"
    references = tuple(read["outputs"])
    if not references or not all(reference.strip() for reference in references):
        raise InputError(f"{place}: outputs must be one or more texts; got {references}; {remedy}")
    said = read.get("tokens_to_generate") or read.get("max_new_tokens") or 0
    if not (task or tokens or said):
        raise InputError(
            f"{place} does not say which of RULER's tasks it is; name its folder after it, as "
            "niah_single_2/validation.jsonl, or say task=niah_single_2, or tokens=128 alone"
        )
    text, cue = read["input"], read.get("answer_prefix", "")
    at = asked_from(text)
    return Row(
        context=text[:at],
        after=text[at:],
        cue=cue,
        answer=gold(task, references, text + cue),
        references=references,
        rule=form_of(task).rule if task else ALL,
        tokens=tokens or said or form_of(task).tokens,
        kind=task,
        place=place,
        facts=references if task in NEEDLES else (),
    )


def gold(task: str, references: tuple[str, ...], before: str) -> str:
    """What a model might say that is right, in the form of RULER's own examples, after some text."""
    shown: Any = references[:1] if task and form_of(task).rule == PART else references
    if task == "cwe":
        shown = [f"{n}. {word}" for n, word in enumerate(references, 1)]
    blank = "" if before[-1:].isspace() else " "
    return blank + (" " if task in ("vt", "cwe") else ", ").join(shown)

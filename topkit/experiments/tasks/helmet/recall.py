"""HELMET's Recall: pairs of a JSON object, and RULER's needles in HELMET's files."""

from __future__ import annotations

from typing import Any

from topkit.documents import Prose
from topkit.errors import InputError
from topkit.experiments.tasks.files.row import Row
from topkit.experiments.tasks.ruler.forms import ONE, SEVERAL

PAIRS = {"context": Prose, "question": Prose, "answer": Prose, "demos?": [(Prose, Prose)]}
NEEDLES = {
    "context": Prose,
    # Files of one name or the other are about.
    "query?": Prose,
    "question?": Prose,
    "type_needle_v": Prose,
    "answer?": [Prose],
    "outputs?": [Prose],
}


def pair_row(read: dict[str, Any], shots: int) -> Row:
    """A row of json_kv."""
    shown = [
        f"Key: {key}\nCorresponding value: {value}\n\n"
        for key, value in read.get("demos", [])[:shots]
    ]
    return Row(
        context=read["context"],
        after="\n\nExtract the value corresponding to the specified key in the JSON object below."
        f"\n\n{''.join(shown)}Key: {read['question']}",
        cue="\nCorresponding value:",
        answer=f" {read['answer']}",
        references=(read["answer"],),
        facts=(read["answer"],),
        rule="substring",
        tokens=0,
    )


def needle_row(read: dict[str, Any], several: bool, place: str) -> Row:
    """A row of ruler_niah_*; it may lack its references, for the caller to refuse.

    Raises: InputError for a row without a query.
    """
    form, query = SEVERAL if several else ONE, read.get("query", read.get("question"))
    if query is None:
        raise InputError(f"{place}: query is missing; expected it, or question in its place")
    words = {"kind": read["type_needle_v"], "query": query}
    references = tuple(read.get("answer", read.get("outputs", [])))
    return Row(
        before=form.head.format(**words),
        context=read["context"],
        after=form.ask.format(**words),
        cue=f"\n{form.cue.format(**words).strip()}",
        answer=f" {', '.join(references)}",
        references=references,
        facts=references,
        rule="all",
        tokens=0,
    )

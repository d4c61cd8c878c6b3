"""One row as a format asks it: plain, or as the turn of a chat; and what of it may be cut."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from topkit.errors import InputError
from topkit.experiments.tasks.encoding import Tokenizer, encode, together
from topkit.experiments.tasks.forms import CHAT
from topkit.experiments.tasks.prompt import Question

# Before a question: in RULER's own words, on the last line that says anything, or as the last sentence.
MARKS = (
    r"\s(?=What (?:is|are all) the special magic |Question: )",
    r"\n(?=[^\n]*\S)",
    r"(?<=[.!?]) ",
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One prompt of a format: before, context and after, said by the user; cue begins the answer.

    context: what may be cut; the question begins where it ends. answer: what NLL and KL are of;
    references: what `rule` looks for; tokens: how many may be generated; kind: what it is within its
    format; cue_in_chat: whether a chat's answer begins with the cue as well; facts: as a Question has them.
    """

    context: str
    after: str
    answer: str
    references: tuple[str, ...]
    rule: str
    tokens: int
    before: str = ""
    cue: str = ""
    system: str = ""
    kind: str = ""
    place: str = ""
    stop: tuple[str, ...] = ()
    cue_in_chat: bool = True
    facts: tuple[str, ...] = ()


def asked_from(text: str) -> int:
    """Where the question of a whole prompt begins: RULER's own words, else its last line or sentence."""
    for mark in MARKS:
        if places := [match.start() for match in re.finditer(mark, text)]:
            return places[-1]
    return len(text)


def encoded(
    row: Row, form: str, tokenizer: Tokenizer, task: str
) -> tuple[str, tuple[int, ...], Question, int]:
    """The text up to the question, its tokens, the question, and the tokens of all with the answer's.

    Raises: InputError for a chat with a tokenizer whose template is none, or refuses the turn, and for
    a reference that is blank, which any answer would hold.
    """
    if not row.references or not all(text.strip() for text in row.references):
        raise InputError(
            f"{row.place or task}: its answers must be one or more texts, none of them blank"
        )
    prefix = row.cue if form != CHAT or row.cue_in_chat else ""
    question = Question(
        row.after + prefix, row.answer, row.references, prefix=prefix, facts=row.facts
    )
    text, system = row.before + row.context, row.system if form == CHAT else ""
    if row.system and not system:
        text = f"{row.system}\n\n{text}"
    try:
        ids, (question,) = together(tokenizer, text, [question], task, form, system)
    except InputError:
        if not system:
            raise
        # Some templates know no system.
        folded = replace(row, system="", before=f"{row.system}\n\n{row.before}")
        return encoded(folded, form, tokenizer, task)
    asked = len(ids) + len(question.ids)
    used = max(asked + len(question.seam_ids) + row.tokens, asked + len(question.answer_ids))
    return text, ids, question, used


def without_tail(row: Row, tokens: int, tokenizer: Any) -> Row | None:
    """A row whose context ends so many tokens earlier, as HELMET cuts; None: there are not as many."""
    ids = encode(tokenizer, row.context)
    if tokens >= len(ids):
        return None
    return replace(row, context=row.context[: _places(row.context, ids, tokenizer)[-tokens][0]])


def without_middle(row: Row, tokens: int, tokenizer: Any) -> Row | None:
    """A row without so many tokens of the middle of its prompt, as LongBench cuts.

    None: the context is not where the middle is.
    """
    text = row.before + row.context + row.after
    ids = encode(tokenizer, text)
    kept = len(ids) - tokens
    if kept < 2:
        return None
    places = _places(text, ids, tokenizer)
    first, last = places[kept // 2][0], places[len(ids) - (kept - kept // 2)][0]
    start = len(row.before)
    if not start <= first <= last <= start + len(row.context):
        return None
    return replace(row, context=row.context[: first - start] + row.context[last - start :])


def _places(text: str, ids: list[int], tokenizer: Any) -> list[tuple[int, int]]:
    """Where each token stands in a text."""
    if getattr(tokenizer, "is_fast", False):
        made = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return list(made["offset_mapping"])
    ends = [len(tokenizer.decode(ids[: n + 1])) for n in range(len(ids))]
    return list(zip([0, *ends], ends, strict=False))

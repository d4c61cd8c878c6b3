"""RULER's thirteen tasks: their words, how many tokens each may answer in, and how it is scored."""

# pyright: strict
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from topkit.errors import InputError
from topkit.grammar import nearest

ALL, PART = "all", "any"


@dataclass(frozen=True)
class Form:
    """How a kind of RULER's tasks is asked: head, context, ask, then cue, which begins the answer."""

    head: str
    ask: str
    cue: str
    tokens: int
    rule: str = ALL


@dataclass(frozen=True)
class Needle:
    """A niah task: what the haystack, keys and values are, and how many of each.

    haystack: noise, text or needles; keys, values: words, numbers or uuids; count of keys, of values
    of a key, and of keys asked for.
    """

    haystack: str
    key_kind: str = "words"
    value_kind: str = "numbers"
    keys: int = 1
    values: int = 1
    queries: int = 1


NEEDLES = {
    "niah_single_1": Needle("noise"),
    "niah_single_2": Needle("text"),
    "niah_single_3": Needle("text", value_kind="uuids"),
    "niah_multikey_1": Needle("text", keys=4),
    "niah_multikey_2": Needle("needles"),
    "niah_multikey_3": Needle("needles", "uuids", "uuids"),
    "niah_multivalue": Needle("text", values=4),
    "niah_multiquery": Needle("text", keys=4, queries=4),
}
# A needle, of one or several.
FACT = "One of the special magic {kind} for {key} is: {value}."
ONE = Form(
    "A special magic {kind} is hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n",
    "\nWhat is the special magic {kind} for {query} mentioned in the provided text?",
    " The special magic {kind} for {query} mentioned in the provided text is",
    128,
)
SEVERAL = Form(
    "Some special magic {kind} are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n",
    "\nWhat are all the special magic {kind} for {query} mentioned in the provided text?",
    " The special magic {kind} for {query} mentioned in the provided text are",
    128,
)
TRACKING = Form(
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n",
    "\nQuestion: Find all variables that are assigned the value {query} in the text above.",
    " Answer: According to the chain(s) of variable assignment in the text above, {count} variables "
    "are assigned the value {query}, they are: ",
    30,
)
COMMON = Form(
    "Below is a numbered list of words. In these words, some appear more often than others. "
    "Memorize the ones that appear most often.\n",
    "\nQuestion: What are the 10 most common words in the above list?",
    " Answer: The top 10 words that appear most often in the list are:",
    120,
)
FREQUENT = Form(
    "Read the following coded text and track the frequency of each coded word. Find the three most "
    "frequently appeared coded words. ",
    "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three "
    "most frequently appeared words in the above coded text?",
    " Answer: According to the coded text above, the three most frequently appeared words are:",
    50,
)
DOCUMENTS = Form(
    "Answer the question based on the given documents. Only give me the answer and do not output any "
    "other words.\n\nThe following are given documents.\n\n",
    "\n\nAnswer the question based on the given documents. Only give me the answer and do not output "
    "any other words.\n\nQuestion: {query}",
    " Answer:",
    32,
    PART,
)
WORDS = {"vt": TRACKING, "cwe": COMMON, "fwe": FREQUENT, "qa_1": DOCUMENTS, "qa_2": DOCUMENTS}
# All thirteen; what can be made here is all but qa, whose documents are of SQuAD and HotpotQA.
FORMS: dict[str, Form] = {
    **{name: ONE if n.values * n.queries == 1 else SEVERAL for name, n in NEEDLES.items()},
    **WORDS,
}
MADE = tuple(name for name in FORMS if not name.startswith("qa"))


def form_of(task: str) -> Form:
    """The form of a task. Raises: InputError for a name that is none of RULER's."""
    if task not in FORMS:
        raise InputError(f"ruler has no task {task!r}; {nearest(task, FORMS)}")
    return FORMS[task]


def task_of(file: str) -> str:
    """The task that a file's folder or name says; none: "".

    RULER writes data/niah_single_2/validation.jsonl; others niah_single_2.jsonl.
    """
    path = Path(file).absolute()
    words = (path.parent.name, path.name.partition(".")[0], path.parent.parent.name)
    return next((word for word in words if word in FORMS), "")

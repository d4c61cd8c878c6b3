"""LongBench v2's data.json: long documents, and questions of four choices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from topkit.documents import OneOf, Prose
from topkit.experiments.tasks.files.row import Row, without_middle
from topkit.experiments.tasks.files.task import FileTask

LETTERS = ("A", "B", "C", "D")
SCHEMA = {
    "context": Prose,
    "question": Prose,
    **{f"choice_{letter}": Prose for letter in LETTERS},
    "answer": OneOf(*LETTERS),
    "difficulty?": Prose,
    "length?": Prose,
}
TOKENS = 128


@dataclass(frozen=True)
class LongBench(FileTask):
    """Items of LongBench v2, without reasoning; what is too long loses its middle."""

    name: ClassVar[str] = "longbench-v2"
    source: ClassVar[str] = "LongBench v2, arXiv 2412.15204"
    asks: ClassVar[str] = "a choice of four about a long document, of LongBench v2's file"
    example: ClassVar[str] = (
        "data.json: a list of items with context, question, choice_A to choice_D and answer"
    )

    def row(self, number: int, length: int) -> Row:
        read = self.rows.row(number, SCHEMA, self.remedy)
        choices = "\n".join(f"({c}) {read[f'choice_{c}'].strip()}" for c in LETTERS)
        parts = (read.get("difficulty", ""), read.get("length", ""))
        return Row(
            before="Please read the following text and answer the question below.\n\n<text>\n",
            context=read["context"].strip(),
            after="\n</text>\n\nWhat is the correct answer to this question: "
            f"{read['question'].strip()}\nChoices:\n{choices}\n\nFormat your response as follows: "
            '"The correct answer is (insert answer here)".',
            answer=f" The correct answer is ({read['answer']})",
            references=(read["answer"],),
            rule="choice",
            tokens=TOKENS,
            kind="-".join(part for part in parts if part),
            place=f"{self.rows.path}, {self.rows.places[number]}",
        )

    def cut(self, row: Row, tokens: int, tokenizer: Any) -> Row | None:
        return without_middle(row, tokens, tokenizer)

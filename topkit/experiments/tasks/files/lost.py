"""Lost in the middle: key-value pairs, and documents of which one has the answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from topkit.documents import Prose
from topkit.errors import InputError
from topkit.experiments.tasks.files.row import Row
from topkit.experiments.tasks.files.task import FileTask

PAIRS = {"ordered_kv_records": [(Prose, Prose)], "key": Prose, "value": Prose}
DOCUMENTS = {"question": Prose, "answers": [Prose], "ctxs": [{"title": Prose, "text": Prose}]}
EITHER = {"ordered_kv_records?": list, "ctxs?": list}
TOKENS = 100


@dataclass(frozen=True)
class LostInTheMiddle(FileTask):
    """Rows of its key-value and of its question files, which their fields tell apart.

    gold: where the pair that is asked for is moved to, 0 the first; -1: it stays.
    """

    name: ClassVar[str] = "lost-in-the-middle"
    source: ClassVar[str] = "lost in the middle, arXiv 2307.03172"
    asks: ClassVar[str] = "a value or an answer at a known place, of its files"
    example: ClassVar[str] = (
        "JSON lines with ordered_kv_records, key and value, or with question, answers and ctxs"
    )

    gold: int = -1

    def row(self, number: int, length: int) -> Row:
        place = f"{self.rows.path}, {self.rows.places[number]}"
        known = self.rows.row(number, EITHER, self.remedy)
        if "ordered_kv_records" in known:
            return self._pair(self.rows.row(number, PAIRS, self.remedy), place)
        return self._answer(self.rows.row(number, DOCUMENTS, self.remedy), place)

    def _pair(self, read: dict[str, Any], place: str) -> Row:
        records, wanted = [*read["ordered_kv_records"]], [read["key"], read["value"]]
        if wanted not in records:
            raise InputError(f"{place}: ordered_kv_records lacks key and value; {self.remedy}")
        if not -1 <= self.gold < len(records):
            raise InputError(
                f"{place} has {len(records)} pairs; gold must lie in 0..{len(records) - 1}, or be -1; "
                f"got {self.gold}"
            )
        if self.gold >= 0:
            records.remove(wanted)
            records.insert(self.gold, wanted)
        pairs = ",\n ".join(f'"{key}": "{value}"' for key, value in records)
        return Row(
            before="Extract the value corresponding to the specified key in the JSON object below.\n\n"
            "JSON data:\n",
            context=f"{{{pairs}}}",
            after=f'\n\nKey: "{read["key"]}"\nCorresponding value:',
            answer=f' "{read["value"]}"',
            references=(read["value"],),
            facts=(f'"{read["key"]}": "{read["value"]}"',),
            rule="any",
            tokens=TOKENS,
            kind="kv",
            place=place,
        )

    def _answer(self, read: dict[str, Any], place: str) -> Row:
        if not read["answers"] or not read["ctxs"] or self.gold >= 0:
            raise InputError(
                f"{place}: expected answers and ctxs, one or more of each, and no gold= (its files "
                f"have the document in place); {self.remedy}"
            )
        documents = "\n".join(
            f"Document [{n}](Title: {one['title']}) {one['text']}"
            for n, one in enumerate(read["ctxs"], 1)
        )
        return Row(
            before="Write a high-quality answer for the given question using only the provided search "
            "results (some of which might be irrelevant).\n\n",
            context=documents,
            after=f"\n\nQuestion: {read['question']}\nAnswer:",
            answer=f" {read['answers'][0]}",
            references=tuple(read["answers"]),
            rule="first-line",
            # What follows a line's end is not judged.
            stop=("\n",),
            tokens=TOKENS,
            kind="qa",
            place=place,
        )

"""What the claims of results/papers came to, for docs/methods.md."""

from __future__ import annotations

import csv
from pathlib import Path

import yaml

from topkit.cli.listing import markdown

FOLDER = Path(__file__).parents[2] / "results" / "papers"
READ = {"paper": "", "summary": ", by a summary", "facts": ", by a survey"}


def rows() -> list[dict[str, str]]:
    with open(FOLDER / "figures.csv") as file:
        return list(csv.DictReader(file))


def of_method(name: str) -> str:
    """The paper's figures, ours, and whether ours meet them."""
    own = [row for row in rows() if row["method"] == name]
    return "; ".join(f"{row['paper']}: {_value(row)}, {_met(row)}" for row in own)


def figures() -> str:
    """A line a claim, with what was accepted, and how many methods meet one."""
    found = rows()
    notes = yaml.safe_load((FOLDER / "notes.yaml").read_text())
    met = {row["method"] for row in found if row["met"] == "True"}
    lines = [
        {
            "method": f"`{row['method']}`",
            "the paper says": f"{row['says']} ({row['source']}{READ[row['read']]})",
            "figure": row["paper"],
            "measured": f"{row['ours']}; {row['data']}",
            "accepted": _accepted(row),
            "ours": f"{_value(row)} [{_number(row['low'])}, {_number(row['high'])}]",
            "met": f"no: {notes[row['claim']]}" if row["met"] == "False" else "yes",
        }
        for row in found
    ]
    count = sum(row["met"] == "True" for row in found)
    first = found[0]
    where = f"{first['device']}, torch {first['torch']}, transformers {first['transformers']}"
    said = (
        f"{count} of {len(found)} figures are met, by {len(met)} methods of "
        f"{len({row['method'] for row in found})} ({where}, FAISS {first['faiss-cpu']})."
    )
    return f"{said}\n\n{markdown(lines)}"


def _met(row: dict[str, str]) -> str:
    return "met" if row["met"] == "True" else "not met"


def _value(row: dict[str, str]) -> str:
    return _number(row["value"])


def _accepted(row: dict[str, str]) -> str:
    if row["greatest"] == "inf":
        return f"at least {_number(row['least'])}"
    return f"{_number(row['least'])} to {_number(row['greatest'])}"


def _number(text: str) -> str:
    return f"{float(text):.3g}"

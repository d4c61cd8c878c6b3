"""Write the tables of the pages that are made from code and results; --check says if they are current."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from findings_page import carry_over, findings, smollm2
from front_page import paper_claims, what_was_found
from kernels_used import ORDER, kernels_used
from papers.table import figures, of_method

from topkit.cli.listing import markdown, rows
from topkit.errors import InputError
from topkit.experiments.bench.machine import other_triton
from topkit.experiments.bench.rows import read_rows
from topkit.experiments.bench.table import table
from topkit.experiments.study import captured_board
from topkit.experiments.study.leaderboard import markdown_of
from topkit.indexers import INDEXERS, Indexer
from topkit.indexers.spec import parse

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
RENDERINGS = ROOT / "tests" / "indexers" / "methods"
PUBLIC = ROOT / "tests" / "indexers" / "public"
REFERENCE = ROOT / "topkit" / "data" / "reference"
USELESS = (
    "An asterisk: the selection keeps less than 0.9 of the attention mass of each head's own exact "
    "Top-k, so that its speed is no result; in parentheses, of what the best list that those heads could "
    "share keeps."
)
USELESS_ON_SMOLLM2 = (
    "An asterisk: on SmolLM2's tensors (`lightning`: on those of the bundled model, which it was trained for) "
    "the selection keeps less than 0.9 of the attention mass of each head's own exact Top-k, so that its "
    "speed is no result; in parentheses, of what the best list that those heads could share keeps. The "
    "tensors are of [five layers](topkit/data/smollm2/README.md)."
)


def methods() -> str:
    """The registry of indexers."""
    own = [row for row in rows("indexers") if row.pop("package") == "topkit"]
    return markdown([{**row, "name": f"`{row['name']}`"} for row in own])


def proofs() -> str:
    """Of each method its slow rendering, public code that chooses the same, and what its step runs by."""
    lines, texts = (
        [],
        {path.name: path.read_text() for path in sorted(RENDERINGS.glob("test_*.py"))},
    )
    for name, recipe in INDEXERS.items():
        if recipe.family in ("combinator", "control", "given"):
            continue
        own = [file for file in texts if file == f"test_{name}.py"]
        own += [file for file, text in texts.items() if re.search(rf"\b{name}\b[(:]", text)]
        # What reads another layer's choice is stepped by a graph in evaluate alone.
        steps = [one for one in _examples(name) if one.traits().fixed]
        fixed = [one for one in steps if "upstream" not in one.needs]
        served = set[str]().union(*map(kernels_used, _examples(name)))
        lines.append(
            {
                "method": f"`{name}`",
                "family": recipe.family,
                "source": recipe.source,
                "slow rendering": f"`{own[0]}`" if own else "",
                "public code": _public(name),
                "paper's figure: ours": of_method(name),
                "torch": "" if recipe.requires == "faiss" else "yes",
                "Triton": ", ".join(what for what in ORDER if what in served),
                "CUDA graph": "yes" if fixed else "",
            }
        )
    return markdown(lines)


def _public(name: str) -> str:
    """The public code whose choices of a method are recorded, at its commit."""
    path = PUBLIC / f"{name}.json"
    if not path.exists():
        return ""
    document = json.loads(path.read_text())
    where = f"{document['repository']}@{document['commit'][:7]}"
    return f"{where} (departs)" if "departs" in document else where


def _examples(name: str) -> list[Indexer]:
    """A recipe's examples that can be made here."""
    made = list[Indexer]()
    for spec in INDEXERS[name].examples or (f"{name}()",):
        with suppress(InputError):
            made.append(parse(spec))
    return made


def scores() -> str:
    """What the reference model answers, dense."""
    held = json.loads((REFERENCE / "scores.json").read_text())
    by_task: dict[tuple[str, str], dict[str, str]] = {}
    for row in held["rows"]:
        low, high = row["interval"]
        line = by_task.setdefault((row["row"], row["wording"]), {})
        line[f"{row['length']} tokens"] = f"{row['exact_match']:.3f} [{low + 0.0:.3f}, {high:.3f}]"
    lines = [
        {"task": name, "wording": wording, **found} for (name, wording), found in by_task.items()
    ]
    books = ", ".join(f"{title} {value:.1f}" for title, value in held["perplexity"].items())
    machine = f"{held['gpu']}, torch {held['torch']}, transformers {held['transformers']}"
    return f"{markdown(lines)}\n\nPerplexity of books kept apart, a token: {books}. ({machine}.)"


def _useless(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """What an asterisk means, where one stands: by whose tensors, the rows say."""
    marked = [row for row in rows if row["useless"] == "True"]
    real = any(row["smollm2_mass_ratio"] for row in rows)
    return [USELESS_ON_SMOLLM2 if real else USELESS] if marked else []


def _dates(rows: Sequence[Mapping[str, str]]) -> str:
    """The day of all rows, or the first and the last of them."""
    days = sorted({row["date"] for row in rows})
    return days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"


def speed() -> str:
    """Ratios to plain torch, and where they were measured."""
    rows = [row for row in _cpu() if row["bench"] not in ("recipes", "appends")]
    first = rows[0]
    machine = f"{first['device']}, {first['cores']} threads, torch {first['torch']}"
    lines = [f"({machine}; medians of {_dates(rows)}.)", *_useless(rows)]
    return f"{markdown(table(rows))}\n\n{' '.join(lines)}"


def recipes() -> str:
    """How long each recipe chooses, and where that was measured."""
    return _of_recipes("recipes")


def appends() -> str:
    """How long each recipe takes in a key, and where that was measured."""
    return _of_recipes("appends")


def _of_recipes(bench: str) -> str:
    rows = [row for row in _cpu() if row["bench"] == bench]
    first, threads = rows[0], sorted({row["cores"] for row in rows})
    many = "1 thread" if threads == ["1"] else f"{' or '.join(threads)} threads"
    machine = f"{first['device']}, {many}, torch {first['torch']}"
    return f"{markdown(table(rows))}\n\n({machine}; medians of {_dates(rows)}.)"


def _cpu() -> list[dict[str, str]]:
    return read_rows(ROOT / "benchmarks" / "results" / "cpu.csv")


def gpu() -> str:
    """Kernels and whole steps, a table for each GPU that was measured; nothing where none was."""
    paths = sorted((ROOT / "benchmarks" / "results").glob("*.csv"))
    return "\n\n".join(_gpu(path) for path in paths if path.name != "cpu.csv")


def _gpu(path: Path) -> str:
    rows = read_rows(path)
    chosen = [
        row
        for row in rows
        if row["limit"] or row["useless"] == "False" or row["bench"] in ("kept", "ann")
    ]
    copies = (row for row in rows if row["bench"] == "bandwidth")
    reached = ", ".join(f"{row['what']} {float(row['median']):.0f} GB/s" for row in copies)
    first = rows[0]
    versions = f"torch {first['torch']}, triton {first['triton']}, CUDA {first['cuda']}"
    machine = f"{first['device']}, driver {first['driver']}, {versions}; {reached}"
    lines = [f"({machine}; medians of {_dates(rows)}.)"]
    if note := other_triton(first["triton"]):
        lines.append(f"{note}.")
    if "H200" not in first["device"]:
        lines.append("What is to be reached was set for an H200, whose memory is faster.")
    lines += _useless(chosen)
    return f"{markdown(table([row | {'note': ''} for row in chosen]))}\n\n{' '.join(lines)}"


SURVEYED = {"reference": "bundled", "smollm2": "SmolLM2"}
TRAITS = ("first_weight", "entropy", "offset", "outliers", "outliers_centred", "sink_cosine")


def _surveyed(name: str) -> dict[str, list[dict[str, str]]]:
    """Rows of a CSV of the survey of both models, by model."""
    with open(RESULTS / "survey-of-models" / f"{name}.csv") as file:
        rows = list(csv.DictReader(file))
    return {model: [row for row in rows if row["capture"] == model] for model in SURVEYED}


def traits() -> str:
    """Traits of both models: medians over layers and groups, and the ends."""
    lines = []
    for trait in TRAITS:
        line = {"trait": f"`{trait}`"}
        for model, surveyed in _surveyed("traits").items():
            low, middle, high = np.percentile([float(row[trait]) for row in surveyed], (0, 50, 100))
            line[SURVEYED[model]] = f"{middle:.2f} [{low + 0.0:.2f}, {high:.2f}]"
        lines.append(line)
    return markdown(lines)


def remedies() -> str:
    """What remedies add to the mass ratio of both models, and the trait that this goes with."""
    lines: dict[str, dict[str, str]] = {}
    for model, added in _surveyed("remedies").items():
        for row in added:
            line = lines.setdefault(row["remedy"], {"remedy": row["remedy"]})
            line[f"{SURVEYED[model]}: adds"] = f"{float(row['added']):+.3f}"
            if model == "smollm2":
                for trait in ("first_weight", "offset", "outliers"):
                    line[f"with `{trait}`"] = f"{float(row[f'with_{trait}']):+.2f}"
    return markdown(list(lines.values()))


def leaderboard() -> str:
    """Both models at three budgets and three k; nothing before it was run."""
    titles = {
        "leaderboard": "The bundled model, at three k",
        "leaderboard-smollm2": "SmolLM2, at three k",
    }
    return "\n\n".join(_leaderboard(name, title) for name, title in titles.items()).strip()


def leaderboard_quick() -> str:
    """The bundled model at one k."""
    return _leaderboard("leaderboard-quick", "The bundled model, at one k")


def _leaderboard(name: str, title: str) -> str:
    run = RESULTS / name
    if not run.is_dir():
        return ""
    return f"## {title}\n\n{markdown_of(run, f'../results/{name}/figures', 3)}"


def leaderboard_captures() -> str:
    """What lists keep of captures of both models."""
    run = RESULTS / "leaderboard-captures"
    if not run.is_dir():
        return ""
    made = captured_board.markdown_of(run, f"../results/{run.name}/figures", 3)
    return f"## By mass, on captures of two models\n\n{made}"


# Page -> the tables that stand in it, each between two marks.
PAGES: dict[Path, dict[str, Callable[[], str]]] = {
    ROOT / "README.md": {"what-was-found": what_was_found, "paper-claims": paper_claims},
    ROOT / "docs" / "findings.md": {
        "smollm2": smollm2,
        "carry-over": carry_over,
        "findings": findings,
    },
    REFERENCE / "README.md": {"scores": scores},
    ROOT / "docs" / "methods.md": {
        "proofs": proofs,
        "figures": figures,
        "methods": methods,
    },
    ROOT / "docs" / "leaderboard.md": {
        "leaderboard": leaderboard,
        "leaderboard-quick": leaderboard_quick,
        "leaderboard-captures": leaderboard_captures,
    },
    ROOT / "docs" / "speed.md": {
        "speed": speed,
        "recipes": recipes,
        "appends": appends,
        "gpu": gpu,
    },
    ROOT / "docs" / "survey.md": {"traits": traits, "remedies": remedies},
}


def current(page: Path) -> str:
    """The page with every generated table made anew."""
    text = page.read_text()
    for name, made in PAGES[page].items():
        marks = rf"(<!-- {name}: make readme -->\n).*?(<!-- /{name} -->)"
        new = made().replace("\\", "\\\\")
        if not new and f"<!-- {name}: make readme -->" not in text:
            continue  # nothing was measured, and nothing is promised
        text, found = re.subn(marks, rf"\g<1>{new}\n\g<2>", text, flags=re.DOTALL)
        if found != 1:
            raise SystemExit(f"{page.name} must have the marks of {name!r} once; found {found}")
    return text


def main() -> None:
    for page in PAGES:
        made = current(page)
        if made != page.read_text():
            if "--check" in sys.argv:
                raise SystemExit(f"{page} is not current: run `make readme`")
            page.write_text(made)


if __name__ == "__main__":
    main()

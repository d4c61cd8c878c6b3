"""What there is to choose from, drawn from the registries."""

from __future__ import annotations

from dataclasses import MISSING, asdict, fields
from typing import Any

from topkit.cli.values import parse_name

KINDS = ("indexers", "tasks", "metrics")

Row = dict[str, str]


def rows(kind: str) -> list[Row]:
    """One row an indexer, task or metric, a column a property.

    Raises: InputError for any other kind; the nearest is suggested.
    """
    tables = {"indexers": _indexers, "tasks": _tasks, "metrics": _metrics}
    return tables[parse_name(kind, KINDS, "list")]()


def _indexers() -> list[Row]:
    from topkit.indexers import INDEXERS

    return [
        {
            "name": name,
            "family": recipe.family,
            "source": recipe.source,
            "parameters": _parameters(recipe),
            "cost": recipe.cost,
        }
        for name, recipe in INDEXERS.items()
    ]


def _tasks() -> list[Row]:
    from topkit.experiments.tasks import TASKS

    return [
        {
            "name": name,
            "family": task.family,
            "source": task.source,
            "parameters": _parameters(task),
            "asks": task.asks,
        }
        for name, task in TASKS.items()
    ]


def _metrics() -> list[Row]:
    from topkit.fidelity import METRICS

    return [{"name": name, **asdict(metric)} for name, metric in METRICS.items()]


def _parameters(recipe: Any) -> str:
    """The parameters with their defaults: `page_size=16`; bare where one must be given."""
    shown = []
    for f in fields(recipe):
        default = f.default_factory() if f.default_factory is not MISSING else f.default
        shown.append(f.name if default is MISSING else f"{f.name}={default}")
    return ", ".join(shown)


def markdown(table: list[Row]) -> str:
    """The rows as a Markdown table."""
    columns = list(table[0])
    lines = [columns, ["---"] * len(columns), *([row[c] for c in columns] for row in table)]
    return "\n".join(
        "| " + " | ".join(x.replace("|", "\\|") for x in line) + " |" for line in lines
    )

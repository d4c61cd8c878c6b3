"""What there is to choose from, drawn from the registries."""

from __future__ import annotations

from dataclasses import MISSING, asdict, fields
from typing import TYPE_CHECKING, Any

from topkit.cli.values import parse_name

if TYPE_CHECKING:
    from topkit.grammar import Registry

KINDS = ("indexers", "tasks", "metrics", "studies")

Row = dict[str, str]


def with_formulas(table: list[Row]) -> list[dict[str, Any]]:
    """Rows of indexers, each with the formulas of its costs, by its first example if it has any."""
    return [{**row, "formula": _formulas(row["name"])} for row in table]


def _formulas(name: str) -> dict[str, str]:
    """The formulas of an indexer's costs; `unstated` says why it has none."""
    from topkit.errors import InputError
    from topkit.indexers import REGISTRY
    from topkit.indexers.spec import parse
    from topkit.indexers.stated_cost import formulas

    try:
        return formulas(parse(next(iter(REGISTRY.find(name).examples), name)))
    except InputError as error:
        return {"unstated": str(error)}


def rows(kind: str) -> list[Row]:
    """One row an indexer, task, metric or study, a column a property; plug-ins come last.

    Raises: InputError for any other kind; the nearest is suggested.
    """
    tables = {"indexers": _indexers, "tasks": _tasks, "metrics": _metrics, "studies": _studies}
    return tables[parse_name(kind, KINDS, "list")]()


def _indexers() -> list[Row]:
    from topkit.indexers import REGISTRY

    return _listed(REGISTRY, "cost")


def _tasks() -> list[Row]:
    from topkit.experiments.tasks import REGISTRY

    return _listed(REGISTRY, "asks")


def _listed(registry: Registry[Any], last: str) -> list[Row]:
    """topkit's own, then those of plug-ins; what cannot be used says why."""
    return [
        {
            "name": name,
            "family": getattr(thing, "family", ""),
            "source": getattr(thing, "source", ""),
            "parameters": "" if isinstance(thing, str) else _parameters(thing),
            last: thing if isinstance(thing, str) else getattr(thing, last),
            "package": package,
        }
        for name, package, thing in registry.listed()
    ]


def _metrics() -> list[Row]:
    from topkit.fidelity import METRICS

    return [{"name": name, **asdict(metric)} for name, metric in METRICS.items()]


def _studies() -> list[Row]:
    from topkit.experiments.study.preset_files import abouts

    return [{"name": name, "about": about} for name, about in abouts().items()]


def _parameters(recipe: Any) -> str:
    """The parameters with their defaults: `page_size=16`; bare where it has none."""
    shown = []
    # Those that need their names come last, as where they are read.
    for f in sorted((f for f in fields(recipe) if f.init), key=lambda f: bool(f.kw_only)):
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

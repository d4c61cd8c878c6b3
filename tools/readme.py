"""Write the tables of the pages that are made from code and results; --check says if they are current."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

from topkit.cli.listing import markdown, rows

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "topkit" / "data" / "reference"


def methods() -> str:
    """The registry of indexers."""
    return markdown([{**row, "name": f"`{row['name']}`"} for row in rows("indexers")])


def scores() -> str:
    """What the reference model answers, dense."""
    held = json.loads((REFERENCE / "scores.json").read_text())
    table: dict[tuple[str, str], dict[str, str]] = {}
    for row in held["rows"]:
        low, high = row["interval"]
        line = table.setdefault((row["row"], row["wording"]), {})
        line[f"{row['length']} tokens"] = f"{row['exact_match']:.3f} [{low:.3f}, {high:.3f}]"
    lines = [
        {"task": name, "wording": wording, **found} for (name, wording), found in table.items()
    ]
    books = ", ".join(f"{title} {value:.1f}" for title, value in held["perplexity"].items())
    machine = f"{held['gpu']}, torch {held['torch']}, transformers {held['transformers']}"
    return f"{markdown(lines)}\n\nPerplexity of books kept apart, a token: {books}. ({machine}.)"


# Page -> the tables that stand in it, each between two marks.
PAGES: dict[Path, dict[str, Callable[[], str]]] = {
    ROOT / "README.md": {"methods": methods},
    REFERENCE / "README.md": {"scores": scores},
}


def current(page: Path) -> str:
    """The page with every generated table made anew."""
    text = page.read_text()
    for name, table in PAGES[page].items():
        marks = rf"(<!-- {name}: make readme -->\n).*?(<!-- /{name} -->)"
        new = table().replace("\\", "\\\\")
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

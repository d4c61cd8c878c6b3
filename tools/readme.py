"""Write the tables of README.md that are made from the code; --check only says whether they are current."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from topkit.cli.listing import markdown, rows

README = Path(__file__).parents[1] / "README.md"


def current(text: str) -> str:
    """The page with every generated table made anew, between its two marks."""
    for name, table in {"methods": methods()}.items():
        marks = rf"(<!-- {name}: make readme -->\n).*?(<!-- /{name} -->)"
        text, found = re.subn(marks, rf"\g<1>{_escaped(table)}\n\g<2>", text, flags=re.DOTALL)
        if found != 1:
            raise SystemExit(f"README.md must have the marks of {name!r} once; found {found}")
    return text


def methods() -> str:
    """The registry of indexers as a Markdown table."""
    return markdown([{**row, "name": f"`{row['name']}`"} for row in rows("indexers")])


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\")


def main() -> None:
    text = README.read_text()
    made = current(text)
    if "--check" in sys.argv and made != text:
        raise SystemExit("README.md is not current: run `make readme`")
    if made != text:
        README.write_text(made)


if __name__ == "__main__":
    main()

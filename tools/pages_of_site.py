"""A hook of mkdocs: the site's files are the pages of the repository where they are, and what those link to.

Paths of the site are those of the repository, so that a link that works in the one works in the other.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\(([^)#\s]+)")
STYLE = ROOT / "docs" / "site.css"
FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def pages() -> list[Path]:
    """README.md, the pages of docs/, and every file that one of them links to, in their order."""
    found = dict.fromkeys([ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))])
    waiting = list(found)
    while waiting:
        page = waiting.pop()
        for target in LINK.findall(FENCED.sub("", page.read_text())):
            there = (page.parent / target).resolve()
            if "://" in target or there in found or not there.is_file():
                continue
            found[there] = None
            if there.suffix == ".md":
                waiting.append(there)
    return list(found)


def on_files(files: Files, config: Any) -> Files:
    """The theme's files, and the repository's pages and style in place of those of docs/ alone."""
    theme = [file for file in files if file.src_dir != config.docs_dir]
    own = [
        File(str(path.relative_to(ROOT)), str(ROOT), config.site_dir, config.use_directory_urls)
        for path in [*pages(), STYLE]
    ]
    return Files([*theme, *own])

"""The documentation's site: every page is in its menu, it builds, and it asks no other host for anything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pages import ROOT

CONFIG = yaml.safe_load((ROOT / "mkdocs.yml").read_text())


def listed(menu: Any) -> Iterator[str]:
    """The pages of a menu, whatever their depth."""
    if isinstance(menu, str):
        yield menu
    else:
        for part in menu.values() if isinstance(menu, dict) else menu:
            yield from listed(part)


def test_every_page_is_in_the_menu() -> None:
    menu = list(listed(CONFIG["nav"]))
    assert len(menu) == len(set(menu))
    assert all((ROOT / page).exists() for page in menu)
    there = {str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")}
    assert there <= set(menu), "add these pages to the menu of mkdocs.yml"


@pytest.mark.slow
def test_the_site_builds_and_asks_no_other_host(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=quiet)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    pages = sorted(tmp_path.rglob("*.html"))
    built = {str(path.relative_to(tmp_path)) for path in pages}
    assert {
        page.replace("README.md", "index.md").replace(".md", ".html")
        for page in listed(CONFIG["nav"])
    } <= built
    for page in pages:
        text = page.read_text()
        loaded = re.findall(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?([^\"' >]+)", text)
        loaded += re.findall(r"<link\b[^>]*\bhref=[\"']?([^\"' >]+)", text)
        assert loaded
        assert not [x for x in loaded if re.match(r"(https?:)?//", x)], page
    # What the signatures' page shows is the code's.
    python = (tmp_path / "docs" / "python.html").read_text()
    assert 'id="topkit.measure"' in python and "sparse_from" in python

"""Every tutorial, followed to its end."""

from __future__ import annotations

from pathlib import Path

import pytest

from pages import ROOT, blocks, follow

# Those that ask a model take longer; the indexers and the task of the other two are tried in test_docs.py.
QUICK, LONG, ELSEWHERE = ("tensors", "kernel"), ("model", "study-file"), ("indexer", "task")


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in LONG)]
)
def test_a_tutorial_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    page = f"docs/tutorials/{name}.md"
    assert follow(page, capsys) == sum(language == "text" for language, _ in blocks(page))


def test_every_tutorial_is_followed() -> None:
    pages = {path.stem for path in (ROOT / "docs" / "tutorials").glob("*.md")}
    assert pages == {*QUICK, *LONG, *ELSEWHERE}
    for name in ELSEWHERE:
        # Python alone: nothing is left that no test runs.
        assert {language for language, _ in blocks(f"docs/tutorials/{name}.md")} == {"python"}

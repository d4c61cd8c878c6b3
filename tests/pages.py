"""The pages as a reader follows them: their code runs in its order, and prints what stands below it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from topkit.cli.commands import app
from topkit.cli.exits import run

ROOT = Path(__file__).parents[1]
EXITS = re.compile(r"# exits with (\d)")


def code_blocks(page: str, language: str) -> list[str]:
    """The code of a page in one language."""
    return [code for named, code in blocks(page) if named == language]


def blocks(page: str) -> list[tuple[str, str]]:
    """Every block of code of a page: its language, and its text."""
    return re.findall(r"^```(\w*)\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


def follow(page: str, capsys: pytest.CaptureFixture[str], commands: bool = True) -> int:
    """Do what a page says, in the current folder; gives the number of outputs that were compared.

    Python shares one namespace; a block of YAML is saved under the name in its first line; a block `text` is
    what the code before it prints, to the letter.
    """
    space: dict[str, Any] = {"__name__": "page"}
    printed, compared = "", 0
    for language, code in blocks(page):
        if language == "text":
            assert printed == code, f"{page} shows another output"
            compared += 1
        elif language == "python":
            exec(compile(code, page, "exec"), space)
        elif language == "yaml":
            Path(code.split("\n", 1)[0].removeprefix("# ")).write_text(code)
        elif language == "sh" and commands:
            for line in code.replace("\\\n", " ").splitlines():
                words, exits = shlex.split(line, comments=True), EXITS.search(line)
                assert words[0] == "topkit", f"{page}: {line}"
                assert run(app, words[1:]) == (int(exits[1]) if exits else 0), f"{page}: {line}"
        printed = capsys.readouterr().out
    return compared

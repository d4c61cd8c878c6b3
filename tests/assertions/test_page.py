"""The page of gates: its code runs, and says what it is said to say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from topkit.testing import REAL_KINDS, REAL_LAYERS

PAGE = (Path(__file__).parents[2] / "docs" / "testing.md").read_text()


def test_the_code_of_the_page_runs(capsys) -> None:
    space: dict[str, Any] = {"__name__": "page"}
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(code, "docs/testing.md", "exec"), space)
    assert space["summary"].rows == 9 and space["summary"].recall.worst == 1
    (shown,) = re.findall(r"print\(audit\)  # (.*); \.\.\.", PAGE)
    assert str(space["audit"]).startswith(shown)
    for kind in REAL_KINDS:
        space["test_my_kernel"](REAL_LAYERS[0], kind)
        assert f"| `{kind}` |" in PAGE

"""The HTML of a page that needs nothing else: a template, its style and scripts, and who may run."""

# pyright: strict, reportUnknownMemberType=false
from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import vl_convert as vlc
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from topkit.experiments.study.drawing import mark_of
from topkit.experiments.study.sheet import Sheet

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, sheet: Sheet | None = None, cite: str = "", **context: Any) -> str:
    """A template of `templates/` as a page; all of them extend base.html.

    sheet: its figures, with Vega's scripts where there are any; cite: the line to cite them by. Nothing but the page's own scripts runs,
    and nothing is loaded: the page's policy names them by their digests.
    """
    drawn = sheet is not None and bool(sheet.figures)
    scripts = [_asset("tables.js"), *([vega(), _asset("figures.js")] if drawn else [])]
    return _environment().get_template(template).render(
        style=Markup(_asset("style.css")),
        scripts=[Markup(script) for script in scripts],
        policy=policy(scripts),
        cite=cite,
        data=sheet.json() if sheet is not None and drawn else "",
        **context,
    )  # fmt: skip


def policy(scripts: Sequence[str]) -> str:
    """The content security policy of a page with these scripts and no others."""
    digests = (base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


@cache
def vega() -> str:
    """Vega's scripts as vl-convert bundles them; its interpreter needs no `eval`."""
    return _in_tag(vlc.javascript_bundle("window.vegaEmbed = vegaEmbed;"))


@cache
def _asset(name: str) -> str:
    return _in_tag((TEMPLATES / name).read_text(encoding="utf-8"))


def _in_tag(script: str) -> str:
    """A script that does not end the element that it stands in; line ends as a browser reads them."""
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--").replace("\r\n", "\n")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["mark_of"] = mark_of  # pyright: ignore[reportArgumentType]
    environment.filters["code"] = inline
    environment.filters["breaking"] = breaking
    return environment


def breaking(name: str) -> Markup:
    """Escaped; a line may end behind an opening bracket, rather than within a word."""
    return Markup(str(Markup.escape(name)).replace("(", "(<wbr>"))


def inline(text: str) -> Markup:
    """Escaped, with what stands in backquotes as code."""
    parts = str(Markup.escape(text)).split("`")
    pieces = (f"<code>{part}</code>" if n % 2 else part for n, part in enumerate(parts))
    return Markup("".join(pieces))

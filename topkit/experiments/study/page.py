"""The HTML of a report: one page that needs nothing else, its lists and its figures."""

# pyright: strict, reportUnknownMemberType=false
from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

from matplotlib.figure import Figure

from topkit.experiments.study.drawing import STYLE, drawing
from topkit.experiments.study.pictures import Pictures

HERE = Pictures(None)
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light; }}
body {{ font: 16px/1.55 Georgia, "Times New Roman", serif; color: #1a1a1a; background: #fff;
  max-width: 68rem; margin: 0 auto; padding: 2rem 1.5rem 4rem; }}
h1 {{ font-size: 1.7rem; line-height: 1.25; margin: 0 0 .4rem; }}
h2 {{ font-size: 1.25rem; margin: 2.6rem 0 .5rem; border-top: 1px solid #ccc; padding-top: 1.2rem; }}
h3 {{ font-size: 1rem; margin: 1.6rem 0 .3rem; }}
p, li {{ max-width: 46rem; }}
p.lead {{ color: #555; margin-top: 0; }}
figure {{ margin: 1rem 0 1.6rem; }}
figure img {{ max-width: 100%; height: auto; display: block; }}
figcaption, .note {{ font-size: .88rem; color: #444; max-width: 52rem; }}
.findings li {{ margin-bottom: .45rem; }}
.box {{ border: 1px solid #999; background: #f7f7f5; padding: .4rem 1.2rem .8rem; margin: 1.5rem 0; }}
.audit {{ border-left: 5px solid #b3541e; padding: .2rem 1rem; background: #fdf6f0; }}
.table {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font: 12px/1.4 ui-monospace, Menlo, Consolas, monospace;
  font-variant-numeric: tabular-nums; }}
th, td {{ text-align: right; padding: .16rem .5rem; border-bottom: 1px solid #e4e4e4;
  white-space: nowrap; }}
th {{ border-bottom: 1px solid #888; vertical-align: bottom; }}
th:first-child, td:first-child {{ text-align: left; }}
tr.kind td {{ font-weight: bold; border-bottom: none; padding-top: .7rem; }}
code {{ font: .88em ui-monospace, Menlo, Consolas, monospace; }}
</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""


def save_figure(
    folder: Path, name: str, figure: Figure, caption: str, pictures: Pictures = HERE
) -> str:
    """Save as SVG and, by way of `pictures`, as PNG; inline the SVG."""
    folder.mkdir(exist_ok=True)
    vector = io.BytesIO()
    pictures.add(figure, folder / f"{name}.png", STYLE)
    with drawing():
        figure.savefig(vector, format="svg", metadata={"Date": None})
    (folder / f"{name}.svg").write_bytes(vector.getvalue())
    inlined = base64.b64encode(vector.getvalue()).decode()
    return (
        f'<figure id="{name}"><img alt="{escape(caption, quote=True)}" '
        f'src="data:image/svg+xml;base64,{inlined}"><figcaption>{escape(caption)}</figcaption></figure>'
    )


def listed(items: Sequence[str], style: str = "") -> str:
    """Items as a list of the page; `style` is its class."""
    shown = "".join(f"<li>{escape(item)}</li>" for item in items)
    return f'<ul class="{style}">{shown}</ul>' if style else f"<ul>{shown}</ul>"

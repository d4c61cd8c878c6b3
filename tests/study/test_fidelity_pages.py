"""Pages of measurements and comparisons: what they say first, whatever names hold, and of runs that are not whole."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import topkit
from browser import CHROMIUM, DRIVER, browser, sized
from topkit.errors import InputError
from topkit.experiments.study.any_report import any_reported
from topkit.experiments.study.compare_page import compare_page
from topkit.experiments.study.measure_page import measure_page, sentence
from topkit.experiments.study.measured_run import absent, is_measurement, measured_of

EVIL = "<img src=http://x.invalid/a onerror=alert(1)></script><script>alert(2)</script>"


def tensors(samples: int = 6) -> topkit.Capture:
    drawn = torch.Generator().manual_seed(0)
    shapes = ((samples, 4, 3, 16), (samples, 2, 60, 16), (samples, 2, 60, 16))
    queries, keys, values = (torch.randn(*shape, generator=drawn) for shape in shapes)
    return topkit.Capture.from_tensors(queries, keys, values)


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """The folder of a measurement of three indexers at two budgets."""
    topkit.measure(
        tensors(), ["exact", "sign", "quantized:dtype=int8"], "4,8", out=tmp_path / "run"
    )
    return tmp_path / "run"


def text_of(page: str) -> str:
    body = re.sub(r"<(script|style).*?</\1>", "", page.partition("<body>")[2], flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", body)).split())


def test_a_measurement_says_first_what_keeps_most(measured: Path):
    path, lines = any_reported(measured)
    text = text_of(path.read_text())
    assert (path, lines) == (measured / "report.html", [])
    assert text.startswith("quantized(dtype=int8) keeps 0.")
    assert "the most of 2 indexers; sign() keeps 0." in text
    for word in ("recall [95 %]", "What this does not show", "The run", "topkit: 0.2.0", "seed: 0", "layers: 0"):  # fmt: skip
        assert word in text
    assert f"Cite: {topkit.cite(measured)}" in text
    rows = measured_of(measured)[0].summary()
    for row in rows:
        assert f"{row['recall']:.3f} [{row['low']:.3f}, {row['high']:.3f}]" in text
    assert topkit.report(measured, out=measured / "other") == measured / "other" / "report.html"
    for wrong in ({"k": 4}, {"run": [measured, measured]}):
        with pytest.raises(InputError, match="a page of a measurement"):
            any_reported(**{"run": measured, **wrong})


def test_a_measurement_that_is_not_whole_says_so(measured: Path, monkeypatch: pytest.MonkeyPatch):
    made, described = measured_of(measured)
    assert absent(made, described) == []
    asked = {**described["asked"][0], "layers": [0, 1]}
    (one, *others) = absent(made, {"asked": [asked]})
    assert "lacks 6 of 12 layers of samples; run the same command" in one and len(others) == 5
    monkeypatch.setattr("topkit.experiments.study.measure_page.absent", lambda *_: [EVIL])
    page = measure_page(measured)
    assert f"Not finished {EVIL}" in text_of(page) and EVIL not in page
    for part in (measured / "fidelity").glob("*.parquet"):
        part.unlink()
    assert not is_measurement(measured)
    with pytest.raises(InputError):
        any_reported(measured)


def test_the_sentence_is_made_from_the_numbers():
    row = {"indexer": "sign()", "budget": "4", "mass": 0.5, "mass_ratio": None}
    assert sentence([row]) == "sign() keeps 0.50 of the attention weight with k = 4."
    exact = {**row, "indexer": "exact()", "mass": 0.9}
    assert "sign() keeps 0.50" in sentence([exact, row]) and "0.90" not in sentence([exact, row])
    assert "0.90" in sentence([exact])
    cheap, whole = {**row, "bytes_read": 25.0}, {**exact, "bytes_read": 100.0}
    assert "with k = 4, at a quarter of the bytes." in sentence([whole, cheap])
    assert "the least" not in sentence([row, {**row, "indexer": "random()", "mass": 0.1}])
    assert sentence([{**row, "mass": None}]) == "No attention weight was measured at k = 4."


def compared(**more: Any) -> dict[str, Any]:
    judged = topkit.compare(tensors(), baseline="exact", candidate="sign", k=8)
    return {**judged.summary(), **more}


def test_a_comparison_says_its_verdict_first():
    said = compared()
    text = text_of(compare_page(said, [("dump", "mine")]))
    assert text.startswith(said["sentence"][:1].upper() + said["sentence"][1:])
    assert f"{said['recall']['mean']:.5f}" in text and f"{said['mass']['lost']:.5f}" in text
    assert "dump: mine" in text and "baseline: exact()" in text
    layers = [{**said["by_layer"][0], "layer": n, "recall": 0.5 + n / 10} for n in range(3)]
    page = compare_page({**said, "by_layer": layers, "mass": None}, [])
    assert "recall: share of the baseline&#39;s list kept by layer: from 0.500 to 0.700" in page


def test_markup_in_names_is_shown_and_never_run():
    said = compared(candidate=f"mine.module:loud(text={EVIL!r})", sentence=f"unsafe {EVIL}")
    layers = [{**said["by_layer"][0], "layer": n} for n in range(3)]
    page = compare_page({**said, "by_layer": layers}, [(EVIL, EVIL)])
    assert EVIL not in page
    scripts = re.findall(r"<script[^>]*>.*?</script>", page, re.DOTALL)
    assert len(scripts) == 4  # data, tables, Vega, figures: none that a name brought
    bare = re.sub(r"<script[^>]*>.*?</script>", "", page, flags=re.DOTALL)
    assert "<img" not in bare and "<script" not in bare
    assert f"{EVIL}: {EVIL}" in text_of(page)


def test_numbers_that_are_none_are_blank(measured: Path):
    rows = measured_of(measured)[0].summary()
    from topkit.experiments.study.measure_page import _table

    blank = dict.fromkeys(("recall", "low", "high", "mass", "worst"), None)
    (made,) = _table([{**rows[0], **blank, "output_error": np.nan}]).rows
    assert made[2] == made[4] == made[5] == made[7] == ""


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM or not DRIVER, reason="needs chromium and chromedriver")
@pytest.mark.parametrize("width", [1280, 390])
def test_pages_in_a_browser(measured: Path, width: int):
    """No console error, no request beside the page, nothing wider than the window, every figure drawn."""
    import time

    said = compared(candidate=f"mine.module:loud(text={EVIL!r})")
    layers = [{**said["by_layer"][0], "layer": n} for n in range(3)]
    other = measured / "compare.html"
    other.write_text(compare_page({**said, "by_layer": layers}, [("dump", EVIL)]))
    with browser() as driver:
        sized(driver, width, 800)
        for page in (any_reported(measured)[0], other):
            driver.get(page.as_uri())
            driver.execute_script("dispatchEvent(new Event('beforeprint'))")
            end = time.monotonic() + 60
            while driver.find_elements("css selector", ".drawn:not([data-state])"):
                assert time.monotonic() < end
                time.sleep(0.05)
            assert len(driver.find_elements("css selector", "[data-state=drawn] svg")) == 2
            assert driver.get_log("browser") == []
            wide = "return document.documentElement.scrollWidth - innerWidth"
            assert driver.execute_script(wide) <= 0
            requests = [x["message"] for x in driver.get_log("performance") if "requestWillBeSent" in x["message"]]  # fmt: skip
            assert not [one for one in requests if "x.invalid" in one]

"""The report in a real browser: nothing is requested, nothing is cut, tables sort and filter, figures answer."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from browser import CHROMIUM, DRIVER, browser, sized
from known_study import tables, write
from topkit.experiments.study import pictures
from topkit.experiments.study.pictures import Pictures
from topkit.experiments.study.report import write_report

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not CHROMIUM or not DRIVER or find_spec("selenium") is None,
        reason="needs chromium, chromedriver and selenium",
    ),
]
EVIL = "<img src=http://x.invalid/a onerror=alert(1)></script><script>alert(2)</script>"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two settings, one of which has a name that holds markup."""
    patch = pytest.MonkeyPatch()
    patch.setattr(Pictures, "add", lambda *_: None)
    patch.setattr(pictures, "FEWEST", 10**6)
    table, heads = tables()
    rows = [*table.to_pylist(), *({**row, "task": EVIL} for row in table.to_pylist())]
    run = write(tmp_path_factory.mktemp("run"), pa.Table.from_pylist(rows, table.schema), heads)
    page = write_report(run)
    patch.undo()
    return page


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with browser() as one:
        yield one


def opened(driver: Any, page: Path, width: int, scheme: str = "light") -> None:
    sized(driver, width, 800, scheme)
    driver.get(page.as_uri())
    until(lambda: driver.find_elements("css selector", "[data-state=drawn]"))


def until(there: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end
        time.sleep(0.05)


def all_drawn(driver: Any) -> None:
    """Have every figure drawn, as printing does."""
    driver.execute_script("dispatchEvent(new Event('beforeprint'))")
    until(lambda: not driver.find_elements("css selector", ".drawn:not([data-state])"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_no_error_no_request_nothing_cut(
    report: Path, driver: Any, width: int, scheme: str
) -> None:
    driver.get("about:blank")
    time.sleep(0.3)  # until the page before says no more
    for log in ("performance", "browser"):
        driver.get_log(log)
    opened(driver, report, width, scheme)
    all_drawn(driver)
    assert driver.get_log("browser") == []
    sent = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = [
        m["params"]["request"]["url"] for m in sent if m["method"] == "Network.requestWillBeSent"
    ]
    assert set(urls) <= {report.as_uri()}
    wide, view = driver.execute_script(
        "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert wide <= view
    # What is wider than its frame scrolls in it; all else is in view.
    cut = driver.execute_script(
        """return [...document.querySelectorAll("body *")].filter((one) =>
             !one.closest(".table") && !one.closest("svg") && one.getBoundingClientRect().right > innerWidth + 1
           ).map((one) => one.outerHTML.slice(0, 80))"""
    )
    assert cut == []
    ink, paper = driver.execute_script(
        "const its = getComputedStyle(document.body); return [its.color, its.backgroundColor]"
    )
    light = [sum(map(int, color[4:-1].split(","))) for color in (ink, paper)]
    assert (light[0] > light[1]) == (scheme == "dark")
    assert driver.execute_script("return document.querySelectorAll('img').length") == 0
    assert EVIL in driver.find_element("tag name", "body").text


def test_the_first_screen_holds_the_answer_the_table_and_the_figure(
    report: Path, driver: Any
) -> None:
    opened(driver, report, 1280)
    ends = driver.execute_script(
        """return ["h1", ".chosen table", "#answer .drawn svg"].map((one) =>
             document.querySelector(one).getBoundingClientRect().bottom)"""
    )
    assert max(ends) <= 800
    assert len(driver.find_elements("css selector", ".chosen tbody tr")) == 5
    shown = driver.find_element("css selector", "#answer .drawn").get_attribute("aria-label")
    assert "The front:" in shown


def test_tables_sort_filter_and_keep_their_first_column(report: Path, driver: Any) -> None:
    opened(driver, report, 390)
    table = driver.find_element("css selector", "[aria-label='Every cell']")
    driver.execute_script("arguments[0].scrollIntoView()", table)

    def column(number: int) -> list[str]:
        return driver.execute_script(
            """return [...arguments[0].tBodies[0].rows].filter((row) => !row.hidden)
                 .map((row) => row.cells[arguments[1]].textContent)""",
            table,
            number,
        )

    head = table.find_elements("css selector", "thead button")[3]
    driver.execute_script("arguments[0].click()", head)
    rising = [float(text.split()[0]) for text in column(3)]
    driver.execute_script("arguments[0].click()", head)
    falling = [float(text.split()[0]) for text in column(3)]
    assert rising == sorted(rising) and falling == rising[::-1] and rising[0] < rising[-1]
    frame = driver.execute_script("return arguments[0].parentNode", table)
    field = driver.execute_script("return arguments[0].previousElementSibling", frame)
    field.send_keys("real 32")
    assert set(column(1)) == {"real"} and len(column(1)) == 12
    left = "return arguments[0].tHead.rows[0].cells[0].getBoundingClientRect().left - arguments[1].getBoundingClientRect().left"
    driver.execute_script("arguments[0].scrollLeft = 300", frame)
    assert driver.execute_script(left, table, frame) == pytest.approx(0, abs=1)


def test_hovering_shows_a_points_numbers(report: Path, driver: Any) -> None:
    from selenium.webdriver import ActionChains

    opened(driver, report, 1280)
    points = driver.find_elements("css selector", "#answer svg .dots_marks path")
    assert len(points) > 10
    ActionChains(driver).move_to_element(points[3]).perform()
    tip = driver.find_element("id", "tip")
    until(tip.is_displayed)
    for word in ("indexer", "accuracy", "minus exact Top-k", "recall", "bytes"):
        assert word in tip.text
    ActionChains(driver).move_to_element(driver.find_element("tag name", "h1")).perform()
    until(lambda: not tip.is_displayed())

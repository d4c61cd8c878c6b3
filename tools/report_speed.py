"""Time a report: `report_speed.py [--cells 30] [--haystacks 128] [--tasks 8] [--keep FOLDER]`.

Writes a run's condensed tables of random but valid rows, reports it, and says seconds, bytes and, where
chromium and selenium are there, how long the page takes to open.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from topkit.experiments.runs.cells import DENSE
from topkit.experiments.runs.parts import write_part
from topkit.experiments.runs.run_file import describe

LAYERS, HEADS = 8, 6
RECIPES = (
    "sign()", "sign(center=True)", "quest(page_size={})", "moba(page_size={})", "random(seed={})",
    "streaming_llm(sink=4, window={})", "keep(sign(), sink={}, window=0)", "refine(sign(), factor={})",
)  # fmt: skip
BUDGETS = (16, 32, 64, 128)


def cells(count: int) -> list[tuple[str, int]]:
    """So many cells: exact Top-k at each budget, then recipes at 32 keys."""
    names = (recipe.format(n) for n in range(4, 10_000) for recipe in RECIPES)
    made = {("exact()", k): None for k in BUDGETS}
    while len(made) < count - 1:
        made[next(names), 32] = None
    return list(made)[: count - 1]


def write_run(
    run: Path, count: int, haystacks: int, tasks: int, questions: int = 2, seed: int = 0
) -> Path:
    """A run's condensed tables in a folder: a truth a cell, drawn at random, and rows of it."""
    rng, every = np.random.default_rng(seed), cells(count)
    rows, heads = list[dict[str, object]](), list[dict[str, object]]()
    for task in range(tasks):
        setting = {"task": f"task-{task}", "length": 4096, "sparse_from": "question"}
        for name, k in [(DENSE, 0), *every]:
            recall, cost = (float(x) for x in rng.random(2))
            right = 0.95 if name == DENSE else 0.9 if name == "exact()" else recall**0.5 * 0.9
            cell = {"indexer": name, "budget": str(k or ""), "k": k}
            dense, exact = name == DENSE, name == "exact()"
            for haystack in range(haystacks):
                score = float(rng.binomial(questions, right)) / questions
                rows.append(
                    {**setting, **cell, "haystack": haystack, "questions": questions, "answer_tokens": 5.0,
                     "wording": "code", "family": "trained", "exact_match": score, "score": score,
                     "token_accuracy": score, "nll": 2 - right, "kl": 1 - right, "tokens": 4096.0,
                     "recall": None if dense else 1.0 if exact else recall, "own_recall": None if dense else recall,
                     "mass": None if dense else 0.9 * recall**0.5, "output_error": None if dense else 1 - recall,
                     "kept": None if dense else float(k), "index_bytes": None if dense else 4096.0,
                     "bytes_read": None if dense else 262144.0 if exact else 262144 * cost}
                )  # fmt: skip
            if not dense and not exact:
                grid = np.clip(recall + rng.normal(0, 0.1, (LAYERS, HEADS)), 0, 1)
                heads += [
                    {**setting, **cell, "layer": layer, "head": head, "recall": float(value)}
                    for (layer, head), value in np.ndenumerate(grid)
                ]
    for table, its in (("haystacks", rows), ("heads", heads)):
        folder = run / "curve" / table
        folder.mkdir(parents=True)
        write_part(folder, "rows", pa.Table.from_pylist(its), run=describe(run, {}))
    return run


def opened(page: Path) -> float:
    """Seconds until a page in headless Chromium has loaded and drawn its first figure."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from browser import browser  # pyright: ignore[reportMissingImports]

    with browser() as driver:
        begin = time.perf_counter()
        driver.get(page.as_uri())
        while not driver.find_elements("css selector", "[data-state=drawn]"):
            time.sleep(0.02)
        return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("cells", 30), ("haystacks", 128), ("tasks", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--keep", type=Path, help="a new folder for the run, which stays")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        run = write_run(
            asked.keep or Path(scratch) / "run", asked.cells, asked.haystacks, asked.tasks
        )
        begin = time.perf_counter()
        from topkit.experiments.study.report import write_report

        page = write_report(run)
        seconds = time.perf_counter() - begin
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        cpu = sum(one.ru_utime + one.ru_stime for one in used)
        print(f"{asked.cells} cells, {asked.haystacks} haystacks, {asked.tasks} tasks")
        print(f"written in {seconds:.1f} s (CPU, the run's making included: {cpu:.1f} s)")
        print(f"{page.stat().st_size / 1e6:.2f} MB")
        try:
            print(f"opens in {opened(page):.2f} s")
        except ImportError as error:
            print(f"not opened: {error}")


if __name__ == "__main__":
    main()

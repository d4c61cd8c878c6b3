"""What recording the answers' keys costs: a study's haystacks without hit, w and ws, with them, and with shadow, in turns.

    python tools/recording.py [STUDY] [--model reference] [--length 1k] [--haystacks 8] [--observe answer] [--out CSV]

Each haystack of the study's first task is evaluated in every way, in an order that turns from one to the next, in this one
process, so that the machine was as busy for all. Prints how many times as long a haystack takes as without: the geometric
mean over haystacks with its 95 % interval (Student's, of the logarithms), by the clock and by the processor's time, which
other processes change less. The first haystack prepares, and is left out.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from topkit.experiments.evaluate import answers
from topkit.experiments.evaluate.setting import OBSERVED
from topkit.experiments.model.compatibility import probe, unserved
from topkit.experiments.model.load import load_once
from topkit.experiments.study.keys import lengths
from topkit.experiments.study.study_file import read_study
from topkit.experiments.tasks import answer_keys, prompt, task_name

WAYS = ("without", "with keys", "with keys and shadow")
COLUMNS: tuple[str, ...] = ("haystack", "way", "seconds", "processor_seconds", "rows")


def main() -> None:
    given = arguments()
    study = read_study(given.study, model=[given.model])
    model, tokenizer = load_once(given.model, given.device, given.dtype)
    task, own = study.tasks[0]
    length = lengths(given.length)[0] if given.length else (own or study.lengths)[0]
    every = [cell for cell in study.of(given.model).cells if cell.indexer is not None]
    recipes = dict.fromkeys(cell.indexer for cell in every if cell.indexer is not None)
    reasons = unserved(model, recipes, probe(model, purpose="evaluated", softmax=True))
    cells = [cell for cell in every if cell.indexer not in reasons]
    print(
        f"{given.model}: {task_name(task)}, {length} tokens, {len(cells)} cells and full attention"
    )
    for reason in reasons.values():
        print(f"left out: {reason}")
    rows: list[dict[str, Any]] = []
    if given.out:
        write(given.out, rows)  # whatever cannot be written is told before anything is timed
    for number in range(given.haystacks + 1):
        made = prompt(task, tokenizer, length, number, seed=0)
        if answer_keys(made, tokenizer) is None:
            sys.exit(f"{task_name(task)} has no known answer keys: nothing would be recorded")
        for turn in range(len(WAYS)):
            way = WAYS[(number + turn) % len(WAYS)]
            took = evaluated(way, model, made, cells, tokenizer, length, OBSERVED[given.observe])
            if number:
                rows.append({"haystack": number, "way": way, **took})
        if given.out:
            write(given.out, rows)
    for way in WAYS[1:]:
        for clock in ("seconds", "processor_seconds"):
            mean, low, high = ratio(rows, way, clock)
            print(f"{way}, {clock}: {mean:.3f} times as long [{low:.3f}, {high:.3f}]")


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """The rows by now: a run that is cut short has those of the haystacks that it did."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def evaluated(
    way: str,
    model: Any,
    made: Any,
    cells: Sequence[Any],
    tokenizer: Any,
    length: int,
    observe: bool | str,
) -> dict[str, float]:
    """Evaluate a haystack in a way, and how long that takes."""
    known = answers.answer_keys
    if way == WAYS[0]:
        answers.answer_keys = lambda *_: None
    try:
        began, busy = time.perf_counter(), time.process_time()
        haystack = answers.Haystack(
            model,
            made,
            cells,
            tokenizer=tokenizer,
            context=length,
            seed=0,
            observe=observe,
            shadow=way == WAYS[2],
        )
        haystack.answers("question", 128)
        rows = sum(table.num_rows for table in haystack.fidelity)
        now = {"seconds": time.perf_counter() - began}
        return {**now, "processor_seconds": time.process_time() - busy, "rows": rows}
    finally:
        answers.answer_keys = known


def ratio(rows: Sequence[dict[str, Any]], way: str, clock: str) -> tuple[float, float, float]:
    """How many times as long as without, and the ends of the interval."""
    of = {(row["haystack"], row["way"]): row[clock] for row in rows}
    logs = np.log([of[n, way] / of[n, WAYS[0]] for n, name in of if name == way])
    mean = float(logs.mean())
    if len(logs) < 2:
        return math.exp(mean), math.nan, math.nan
    reach = stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs))
    return math.exp(mean), math.exp(mean - reach), math.exp(mean + reach)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", nargs="?", default="quick")
    parser.add_argument("--model", default="reference")
    parser.add_argument("--length", default="")
    parser.add_argument("--haystacks", type=int, default=8)
    parser.add_argument("--observe", default="answer", choices=[o for o in OBSERVED if o != "no"])
    parser.add_argument("--device")
    parser.add_argument("--dtype")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()

"""model + tasks + indexers -> accuracy, with the fidelity observed in the same run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from transformers import PreTrainedModel

from topkit.documents import path_of
from topkit.errors import InputError
from topkit.experiments.evaluate.plan import Part, plan_parts
from topkit.experiments.evaluate.setting import ROWS, Setting
from topkit.experiments.model.load import load_once, named
from topkit.experiments.runs.cells import Cell, parse_cells
from topkit.experiments.runs.jobs import Runner, serial
from topkit.experiments.runs.plan import Plan, planned
from topkit.experiments.runs.runners import crew
from topkit.experiments.runs.shards import Shard, parse_shard
from topkit.experiments.tasks import Task, make_task
from topkit.indexers.base import Indexer
from topkit.indexers.budget import Budgets
from topkit.indexers.equal_bytes import ByteBudgets, parse_byte_budgets
from topkit.kernels.checks import at_least_one


@planned
def evaluate(
    model: str | Path | PreTrainedModel,
    tasks: str | Task | Sequence[str | Task],
    lengths: int | Sequence[int],
    samples: int,
    indexers: str | Indexer | Cell | Sequence[str | Indexer | Cell] = (),
    k: Budgets = (),
    *,
    out: str | Path,
    sparse_from: str = "question",
    dense: bool = True,
    observe: bool | str = True,
    shadow: bool = False,
    text: str | Path | None = None,
    seed: int = 0,
    device: str | None = None,
    dtype: str | None = None,
    jobs: int | None = None,
    batch_size: int | None = None,
    force: bool = False,
    tokenizer: Any = None,
    runner: str | Runner | None = None,
    shard: str | Shard | None = None,
    budget: ByteBudgets = None,
    memory: float | None = None,
) -> Plan[pa.Table]:
    """Accuracy of a model on the questions of some tasks, for full attention and for each indexer.

    Every haystack is prefilled dense, or by the lists of the model's own indexer. What comes after it goes through the selector: the question
    and the answer (sparse_from="question"), or, as in the paper's protocol, the answer alone
    (sparse_from="answer"): the question's last token is then the first to go through it, for that
    step gives the first token of the answer. A rerun computes what is missing, also when cells or
    samples were added. observe: fidelity at the question's positions and at the answer's, averaged over
    each; "answer" at the answer's alone, which is what reports read; "rows" keeps every position, "answer-rows" the answer's; False none. shadow: each cell's selections are judged for
    the queries of the unchanged model too. k in per cent counts of the length. runner: serial, pool or ray, with jobs= at one
    time; shard: "0/4" is the first of four shares, which may write to `out` at the same time. budget:
    "bytes=0.06" or "bytes=64", as `measure` has it, at each length. memory: GB that a process may take, of the GPU's, or of
    the host's without one; fewer rows go together where batch_size would take more.
    Files: out/accuracy, out/fidelity and, of their means, out/curve (Parquet), out/predictions.jsonl,
    out/run.json.
    Returns: the accuracy rows; of a shard, its own.
    Raises: InputError for bad input, and a folder that holds another run (unless `force`).
    """
    samples = at_least_one("samples", samples)
    cells = parse_cells(indexers, k, dense)
    chosen = _listed("tasks", tasks, _task)
    share = isinstance(model, PreTrainedModel)
    workers = crew(runner, jobs, device or "")
    if share and (tokenizer is None or workers.runner is not serial):
        raise InputError("a loaded model needs its tokenizer, and runs with jobs=1")
    name = "" if isinstance(model, PreTrainedModel) else named(model)
    setting = Setting(
        out=path_of(out, "a folder for the run"),
        model=name,
        device=device,
        dtype=dtype,
        seed=seed,
        sparse_from=sparse_from,
        observe=observe,
        shadow=shadow,
        rows=ROWS if batch_size is None else batch_size,
        text=None if text is None else path_of(text, "a text"),
        threads=workers.threads,
        memory=memory,
    )
    part = Part(
        tuple(chosen),
        tuple(_listed("lengths", lengths, _length)),
        samples,
        tuple(cells),
    )
    loaded = (model, tokenizer) if share else load_once(name, device, dtype)
    return plan_parts(
        loaded,
        setting,
        [part],
        workers=workers.workers,
        runner=workers.runner,
        shard=parse_shard(shard),
        force=force,
        share=share,
        budgets=parse_byte_budgets(budget),
    )


def _task(task: Any) -> Task:
    return task if isinstance(task, Task) else make_task(task)


def _length(length: Any) -> int:
    digits = isinstance(length, str) and length.isdecimal()
    return at_least_one("lengths", int(length) if digits else length)


def _listed(name: str, values: Any, make: Callable[[Any], Any]) -> list[Any]:
    """What `make` makes of one value or several, without duplicates. Raises: InputError for none."""
    several = isinstance(values, Iterable) and not isinstance(values, str | bytes)
    made = list(dict.fromkeys(map(make, values if several else [values])))
    if not made:
        raise InputError(f"{name} must be one or more; got none")
    return made

"""A study in one call: a file's cells evaluated, then the report."""

# pyright: strict, reportUnknownMemberType=false
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from topkit.documents import path_of, quote
from topkit.errors import InputError
from topkit.experiments.model.load import named
from topkit.experiments.runs.jobs import Runner
from topkit.experiments.runs.plan import Plan, planned
from topkit.experiments.runs.runners import crew
from topkit.experiments.runs.shards import Shard, parse_shard
from topkit.experiments.study.course import Course
from topkit.experiments.study.design import Pilot, Study
from topkit.experiments.study.ending import page_writer
from topkit.experiments.study.equal_recipes import LEADERBOARD
from topkit.experiments.study.own_kinds import CAPTURED, KIND, planner
from topkit.experiments.study.readers import listed
from topkit.experiments.study.reading import HEADS, LAW, PREDICT
from topkit.experiments.study.study_file import read_study
from topkit.experiments.study.study_plan import plan_of
from topkit.grammar import nearest
from topkit.indexers.budget import Budgets
from topkit.indexers.equal_bytes import ByteBudgets

# The one study of 0.1, whose presets are studies now.
NAME = "fidelity-vs-accuracy"
PRESETS = ("quick", "full", "tasks")


@planned
def run_study(
    name: str | Path,
    preset: str | None = None,
    out: str | Path | None = None,
    model: Any = None,
    *,
    tasks: Any = None,
    lengths: Any = None,
    haystacks: int | Mapping[Any, int] | None = None,
    budgets: Budgets = None,
    indexers: Any = None,
    seed: Any = None,
    pilot: bool | Mapping[str, Any] | Pilot | None = None,
    sparse_from: Any = None,
    observe: bool | str | None = None,
    shadow: bool | None = None,
    text: str | Path | None = None,
    device: str | None = None,
    dtype: str | None = None,
    batch_size: int | None = None,
    reach: float | None = None,
    margin: float | None = None,
    law: str | Path | None = None,
    jobs: int | None = None,
    force: bool = False,
    runner: str | Runner | None = None,
    shard: str | Shard | None = None,
    budget: ByteBudgets = None,
    captures: Any = None,
    corpus: str | Path | None = None,
    groups: Any = None,
    memory: float | None = None,
) -> Plan[Path]:
    """Evaluate a study's cells into OUT and write the report; a rerun computes what is missing.

    name: a YAML file, or a study of topkit's own (docs/studies.md). Arguments that are not None stand over
    the file's keys. model and seed may be several: each model has a folder below OUT, each seed one below
    its model's, and the report is of all. Cells that a model cannot serve are left out, with a note in the
    plan and in the report that says why. preset: of the study `fidelity-vs-accuracy`, quick, full or tasks.
    runner and shard: as `evaluate` has them; a pilot is no shard's, but run by the first to come. budget:
    of bytes, as `measure` has it; indexers that read more are left out, with a note. captures: folders or
    files of tensors, which lightning-precision and leaderboards measure in place of models and tasks. corpus: the
    folder of books that a study that trains reads; without one, the bundled excerpt. groups: KV groups in which
    alone each indexer is exact, as "3/1,4/0", or "all". memory: GB that a process may take, as `evaluate` has it.
    Returns: the report's path; of a shard that others outlast, or whose machine cannot draw, OUT.
    Raises: InputError for an unknown study, key or value, for a study whose pilot finds nothing to tell
    indexers apart by, and as `evaluate` does.
    """
    about: dict[str, Any] = {"study": str(name)}
    if name == NAME:
        name = preset or PRESETS[0]
        about["preset"] = name
        if name not in PRESETS:
            raise InputError(f"unknown preset {quote(name)}; {nearest(str(name), PRESETS)}")
    elif preset is not None:
        raise InputError(
            f"a preset is one of the study {NAME}; got the study {quote(name)} with {quote(preset)}"
        )
    study = read_study(
        name,
        model=None if model is None else [named(one) for one in listed(model)],
        tasks=tasks,
        lengths=lengths,
        haystacks=haystacks,
        budgets=budgets,
        budget=budget,
        indexers=indexers,
        seed=seed,
        pilot=pilot,
        sparse_from=sparse_from,
        observe=observe,
        shadow=shadow,
        text=text,
        device=device,
        dtype=dtype,
        batch_size=batch_size,
        reach=reach,
        margin=margin,
        captures=captures,
        corpus=corpus,
        law=None if law is None else str(law),
        groups=groups,
    )
    kind = study.kind or (CAPTURED if study.captures and study.leaderboard else "")
    if study.captures and not kind:
        raise InputError(
            "captures are of a leaderboard, or of a study of its own kind, as lightning-precision is"
        )
    if memory is not None and kind:
        raise InputError(
            f"a study of kind {kind} keeps to no memory that is said; leave memory out"
        )
    share = parse_shard(shard)
    if share.whole:
        # What its page lacks is said now, and not when hours have passed.
        page_writer()
    course = Course(
        study=study,
        out=path_of(out, "a folder for the study"),
        about={**about, **_about(study), **({KIND: kind} if kind else {})},
        crew=crew(runner, jobs, study.device or ""),
        shard=share,
        force=force,
        memory=memory,
    )
    return planner(kind)(course) if kind else plan_of(course)


def _about(study: Study) -> dict[str, Any]:
    """What study.json says whatever the stage."""
    asked = {"reach": study.reach, "margin": study.margin}
    aims: dict[str, Any] = {name: aim for name, aim in asked.items() if aim is not None}
    terms = study.pilot or Pilot()
    aims["exact_between"] = list(terms.exact_between)
    if study.groups is not None:
        return {"model": ", ".join(study.model), HEADS: True, "about": study.about}
    if study.leaderboard:
        model = {} if study.captures else {"model": ", ".join(study.model)}
        return {**model, LEADERBOARD: True, "about": study.about}
    law = study.law and {"name": study.law.written, "sha256": study.law.sha256}
    said = {"about": study.about, PREDICT: study.predict, LAW: law}
    return {
        "model": ", ".join(study.model),
        "aims": aims,
        **{key: x for key, x in said.items() if x},
    }

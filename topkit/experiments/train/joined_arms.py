"""Studies that train, as shards or starts leave them, joined into one folder by what was found of their models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from topkit.documents import Text, read_json
from topkit.errors import InputError
from topkit.experiments.runs import folder, run_file
from topkit.experiments.runs.lock import locked
from topkit.experiments.runs.parts import write_whole
from topkit.experiments.runs.union import require_alike
from topkit.experiments.study.reading import STUDY
from topkit.experiments.train.arms import PARTS
from topkit.experiments.train.found import read_part

# Of study.json, what is joined; the rest must be the same.
MODEL, ARMS = "model", "arms"
_JOINED = (MODEL, ARMS, PARTS)
_NAME = Text(r"[^/\\\0.][^/\\\0]*\.json", "the name of a JSON file")
_SAID = {MODEL: str, ARMS: [str], PARTS: [_NAME], str: object}
_REMEDY = "it is not as a study that trains wrote it"


def merge(runs: Sequence[Path], out: Path) -> None:
    """Join studies of one kind, version and device: the models' parts, and what study.json says of them.

    Weights stay where they are. Raises: InputError for studies that say different things, a part that no study
    wrote or that was found twice and differs, and a folder that holds another run.
    """
    described = {run: _described(run) for run in runs}
    require_alike(described)
    said = _joined({run: _said(run) for run in runs})
    found = _parts(runs, said[PARTS])
    if not found:
        raise InputError(f"nothing was measured of a model yet in {', '.join(map(str, runs))}")
    with locked(out) as hold:
        folder.require_same(out, next(iter(described.values()))["identity"])
        if (out / STUDY).exists():  # of an earlier call, which may have joined more
            said = _joined({out: _said(out), runs[0]: said})
        _parts([out, *runs], said[PARTS])
        run_file.join(out, list(described.values()))
        hold.begun()
        for name, path in found.items():
            if not (out / PARTS / name).exists():
                write_whole(out / PARTS / name, partial(shutil.copyfile, path))
        text = json.dumps(said, indent=1) + "\n"
        write_whole(out / STUDY, lambda to: to.write_text(text, encoding="utf-8"))


def _described(run: Path) -> Mapping[str, Any]:
    described = run_file.read(run)
    if described is None:
        raise InputError(f"{run} holds no run; name the folder of one")
    return described


def _said(run: Path) -> dict[str, Any]:
    if not (run / STUDY).exists():
        raise InputError(f"{run} lacks {STUDY}: {_REMEDY}")
    said: dict[str, Any] = read_json(run / STUDY, _SAID, _REMEDY)
    if len(said[ARMS]) != len(said[PARTS]):
        raise InputError(
            f"{run / STUDY} has {len(said[ARMS])} arms and {len(said[PARTS])} parts: {_REMEDY}"
        )
    return said


def _joined(said: Mapping[Path, dict[str, Any]]) -> dict[str, Any]:
    """What all say of the study, with the models of all, each once."""
    (where, first), *_ = said.items()
    for run, one in said.items():
        apart = [k for k in {**first, **one} if k not in _JOINED and first.get(k) != one.get(k)]
        if apart:
            raise InputError(
                f"{run} and {where} are different studies ({', '.join(apart)} differ): they are not joined"
            )
    models = dict.fromkeys(model for one in said.values() for model in one[MODEL].split(", "))
    both = dict.fromkeys(
        pair for one in said.values() for pair in zip(one[ARMS], one[PARTS], strict=True)
    )
    arms = [arm for arm, _ in both]
    if len(set(arms)) < len(arms):
        again = next(arm for arm in arms if arms.count(arm) > 1)
        raise InputError(
            f"{again} was trained or asked in two ways: such studies are reported apart, and not joined"
        )
    return {**first, MODEL: ", ".join(models), ARMS: arms, PARTS: [part for _, part in both]}


def _parts(runs: Sequence[Path], names: Sequence[str]) -> dict[str, Path]:
    """The first file of each part that is there; files of one name hold the same."""
    found = dict[str, Path]()
    for run in runs:
        for name in names:
            path = run / PARTS / name
            if not path.exists():
                continue
            read_part(path)
            if path.read_bytes() != found.setdefault(name, path).read_bytes():
                raise InputError(
                    f"{path} and {found[name]} differ: one model was trained or evaluated twice, and rounded "
                    "otherwise; leave one out"
                )
    return found

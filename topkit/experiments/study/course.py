"""Where a study goes: its stages, and the folder of each."""

# pyright: strict
from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from topkit.experiments.runs.parts import digest
from topkit.experiments.runs.runners import Crew
from topkit.experiments.runs.shards import WHOLE, Shard
from topkit.experiments.study.design import Study
from topkit.experiments.study.pilot import asked, seed_of
from topkit.experiments.study.reading import SPLIT

PILOT = "pilot"


@dataclass(frozen=True)
class Stage:
    """A model's pilot, the split that shows the heads of a law, or a run of a seed."""

    model: str
    seed: int
    out: Path
    pilot: bool = False
    split: bool = False
    sparse_from: str = "question"


@dataclass(frozen=True, kw_only=True)
class Course:
    """A study and where it goes. about: what study.json says of it beside what a stage adds; memory: GB of a process."""

    study: Study
    out: Path
    about: Mapping[str, Any]
    crew: Crew
    shard: Shard = WHOLE
    force: bool = False
    memory: float | None = None

    @property
    def stages(self) -> list[Stage]:
        """One model, protocol and seed fill the study's own folder; several have a folder each below it."""
        study, stages = self.study, list[Stage]()
        for model, name in zip(study.model, folders(study.model), strict=True):
            own = self.out / name if len(study.model) > 1 else self.out
            one = study.of(model)
            if one.pilot is not None and asked(one, one.pilot):
                first = next(iter(study.sparse_from))
                stages.append(Stage(model, seed_of(study), own / PILOT, True, sparse_from=first))
            if study.law is not None:
                first = next(iter(study.sparse_from))
                seed = seed_of(study) + 1
                stages.append(Stage(model, seed, own / SPLIT, split=True, sparse_from=first))
            for word, seed in product(study.sparse_from, study.seed):
                out = own / f"from-{word}" if len(study.sparse_from) > 1 else own
                out = out / f"seed-{seed}" if len(study.seed) > 1 else out
                stages.append(Stage(model, seed, out, sparse_from=word))
        return stages

    @property
    def runs(self) -> list[Stage]:
        """The stages that the report is of."""
        return [stage for stage in self.stages if not (stage.pilot or stage.split)]

    @property
    def several(self) -> bool:
        return len(self.runs) > 1

    def split_of(self, stage: Stage) -> Path | None:
        """The folder of the split that a run's law reads its heads from."""
        splits = (one.out for one in self.stages if one.split and one.model == stage.model)
        return next(splits, None)

    def pilot_of(self, stage: Stage) -> Stage | None:
        pilots = (one for one in self.stages if one.pilot and one.model == stage.model)
        return next(pilots, None)


def folders(models: Sequence[str]) -> list[str]:
    """A folder's name for each model, as short as tells them apart."""
    words = [re.sub(r"[^a-z0-9.]+", "-", model.lower()).strip("-.") for model in models]
    last = [re.sub(r"[^a-z0-9.]+", "-", Path(model).name.lower()).strip("-.") for model in models]
    names = last if len(set(last)) == len(last) else words
    if len(set(names)) < len(names) or not all(0 < len(name) <= 100 for name in names):
        names = [f"{name[:80]}-{digest(model)}" for name, model in zip(names, models, strict=True)]
    return names

"""How good must an approximate Top-k indexer be before a language model notices?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from topkit.errors import GateFailed, InputError, Undecided
from topkit.lazy import lazily

if TYPE_CHECKING:
    from topkit import testing
    from topkit.experiments.capture.capture import Capture
    from topkit.experiments.capture.from_model import capture_model as capture
    from topkit.experiments.compare.compare import compare
    from topkit.experiments.decode.attach import attach
    from topkit.experiments.evaluate.evaluate import evaluate
    from topkit.experiments.evaluate.merge import merge
    from topkit.experiments.measure.measure import measure
    from topkit.experiments.measure.survey import survey
    from topkit.experiments.model.load import load
    from topkit.experiments.runs.frames import to_pandas, to_polars
    from topkit.experiments.runs.plan import run
    from topkit.experiments.study.advice import advise
    from topkit.experiments.study.any_report import report
    from topkit.experiments.study.citation import cite
    from topkit.experiments.study.study import run_study as study
    from topkit.experiments.study.tidy import cells
    from topkit.experiments.study.verify import verify
    from topkit.experiments.tasks import make_task as task
    from topkit.indexers.spec import parse as indexer

__version__ = "0.2.0"

# Imported at first use, so that `import topkit` is instant.
__getattr__, __dir__ = lazily(
    __name__,
    {
        "Capture": "topkit.experiments.capture.capture",
        "advise": "topkit.experiments.study.advice",
        "attach": "topkit.experiments.decode.attach",
        "capture": "topkit.experiments.capture.from_model:capture_model",
        "cells": "topkit.experiments.study.tidy",
        "cite": "topkit.experiments.study.citation",
        "compare": "topkit.experiments.compare.compare",
        "evaluate": "topkit.experiments.evaluate.evaluate",
        "indexer": "topkit.indexers.spec:parse",
        "load": "topkit.experiments.model.load",
        "measure": "topkit.experiments.measure.measure",
        "merge": "topkit.experiments.evaluate.merge",
        "report": "topkit.experiments.study.any_report",
        "run": "topkit.experiments.runs.plan",
        "study": "topkit.experiments.study.study:run_study",
        "survey": "topkit.experiments.measure.survey",
        "task": "topkit.experiments.tasks:make_task",
        "testing": "topkit.testing:",
        "to_pandas": "topkit.experiments.runs.frames",
        "to_polars": "topkit.experiments.runs.frames",
        "verify": "topkit.experiments.study.verify",
    },
)

__all__ = [
    "Capture",
    "GateFailed",
    "InputError",
    "Undecided",
    "__version__",
    "advise",
    "attach",
    "capture",
    "cells",
    "cite",
    "compare",
    "evaluate",
    "indexer",
    "load",
    "measure",
    "merge",
    "report",
    "run",
    "study",
    "survey",
    "task",
    "testing",
    "to_pandas",
    "to_polars",
    "verify",
]

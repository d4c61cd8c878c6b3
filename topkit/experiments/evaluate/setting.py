"""What all jobs of an evaluation have in common."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from pathlib import Path

from topkit.errors import InputError

SPARSE_FROM = ("question", "answer")
# What is judged, as the command line and study files name it.
OBSERVED: dict[str, bool | str] = {
    "mean": True,
    "answer": "answer",
    "answer-rows": "answer-rows",
    "rows": "rows",
    "no": False,
}
# Those that keep every step, not the means over steps; and those that leave the question's out.
EACH, OF_ANSWERS = ("rows", "answer-rows"), ("answer", "answer-rows")
# Rows of one forward pass, by default: cells times questions of one haystack.
ROWS = 128


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all jobs of a run have in common; a worker loads the model from it.

    rows: of one forward pass; threads: of a worker, None where there is one; shadow: each cell's selection is
    judged for the queries of the unchanged model too; memory: GB that a process may take, of the GPU's, or of the host's
    without one, which `rows` were cut to; None: all.
    Raises: InputError for a value that has no meaning.
    """

    out: Path
    model: str
    device: str | None = None
    dtype: str | None = None
    seed: int = 0
    sparse_from: str = "question"
    observe: bool | str = True
    shadow: bool = False
    rows: int = ROWS
    text: Path | None = None
    threads: int | None = None
    memory: float | None = None
    # The id of the run that the rows are of, once its folder is claimed.
    run: str = ""

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise InputError(f"batch_size must be at least 1; got {self.rows}")
        given = self.memory
        if given is not None and not (isinstance(given, int | float) and 0 < given < inf):
            raise InputError(f"memory must be a number of GB above 0; got {given!r}")
        if self.sparse_from not in SPARSE_FROM:
            raise InputError(f"sparse_from must be question or answer; got {self.sparse_from!r}")
        if self.observe not in OBSERVED.values():
            raise InputError(
                f"observe must be True, 'answer', 'answer-rows', 'rows' or False; got {self.observe!r}"
            )
        if self.shadow and not self.observe:
            raise InputError(
                "shadow judges what is observed; expected observe=True, 'answer', 'answer-rows' or 'rows' "
                f"beside it; got {self.observe!r}"
            )

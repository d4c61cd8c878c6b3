"""What all jobs of an evaluation have in common."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from topkit.errors import InputError

SPARSE_FROM = ("question", "answer")
# What is judged, as the command line and study files name it.
OBSERVED: dict[str, bool | str] = {"mean": True, "answer": "answer", "rows": "rows", "no": False}
# Rows of one forward pass, by default: cells times questions of one haystack.
ROWS = 128


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all jobs of a run have in common; a worker loads the model from it.

    rows: of one forward pass; threads: of a worker, None where there is one.
    Raises: InputError for a value that has no meaning.
    """

    out: Path
    model: str
    device: str | None = None
    dtype: str | None = None
    seed: int = 0
    sparse_from: str = "question"
    observe: bool | str = True
    rows: int = ROWS
    text: Path | None = None
    threads: int | None = None
    # The id of the run that the rows are of, once its folder is claimed.
    run: str = ""

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise InputError(f"batch_size must be at least 1; got {self.rows}")
        if self.sparse_from not in SPARSE_FROM:
            raise InputError(f"sparse_from must be question or answer; got {self.sparse_from!r}")
        if self.observe not in OBSERVED.values():
            raise InputError(
                f"observe must be True, 'answer', 'rows' or False; got {self.observe!r}"
            )

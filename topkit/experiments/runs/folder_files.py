"""The files of a run's folder: which there are, deleting them, and leaving them as they were."""

# pyright: strict
from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from topkit.experiments.runs import manifest, run_file

# The tables that a run may hold, each a folder of parts.
TABLES = ("accuracy", "fidelity", "curve/haystacks", "curve/heads", "curve/law")
# Files in a run's own folder; temporary files that a killed run left bear these names. run.json goes
# last where they are deleted: rows without it would belong to nobody.
FILES = ("predictions.jsonl", "study.json", "report.html", run_file.NAME)


def parts(out: Path) -> Iterator[Path]:
    """The parts of all tables of a folder."""
    return (path for name in TABLES for path in sorted((out / name).glob("*.parquet")))


def clear(out: Path, everything: bool) -> None:
    """Delete what a killed run left half-written; or `everything` that a run wrote."""
    halves = [half for name in TABLES for half in (out / name).glob(".*.tmp")]
    for half in [*halves, *(half for name in FILES for half in out.glob(f".{name}.*.tmp"))]:
        half.unlink(missing_ok=True)
    if not everything:
        return
    # The parts before the manifests: without these they would be another's.
    for pattern in ("*.parquet", manifest.FILES):
        for old in [path for name in TABLES for path in (out / name).glob(pattern)]:
            old.unlink(missing_ok=True)
    for kind in ("png", "svg"):
        for old in (out / "figures").glob(f"*.{kind}"):
            old.unlink(missing_ok=True)
    for name in FILES:
        (out / name).unlink(missing_ok=True)


@dataclass(frozen=True)
class Before:
    """What stood in a folder before a run wrote to it."""

    run: bytes | None
    files: set[str]
    parts: set[Path]

    @classmethod
    def of(cls, out: Path) -> Before:
        files = {name for name in FILES if (out / name).exists()}
        run = (out / run_file.NAME).read_bytes() if run_file.NAME in files else None
        return cls(run, files, set(parts(out)))

    def restore(self, out: Path) -> None:
        """Leave nothing of a run that was refused before it wrote a part."""
        with suppress(OSError):
            if self.run is not None:
                (out / run_file.NAME).write_bytes(self.run)
                return
            for path in (path for name in TABLES for path in (out / name).glob(manifest.FILES)):
                path.unlink()
            for name in set(FILES) - self.files:
                (out / name).unlink(missing_ok=True)
        for name in (*TABLES, "curve"):
            with suppress(OSError):
                (out / name).rmdir()

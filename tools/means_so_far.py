"""The means of runs that are still written to, without their rows: what is taken from a machine before it goes back.

    python tools/means_so_far.py OUT RUN...

Of each run, by what has been written by now: OUT/NAME with run.json, study.json, curve and, of a law, the split's. Such
folders are joined by `topkit merge`, once their haystacks are whole. Rows are read from links, so that the run goes on.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from topkit.experiments.evaluate.condensed import keep_condensed
from topkit.experiments.runs import manifest, run_file
from topkit.experiments.study.law import read_law
from topkit.experiments.study.law_rows import law_table
from topkit.experiments.study.reading import SPLIT, STUDY, study_of

KEPT = (run_file.NAME, STUDY, "curve", f"{SPLIT}/{run_file.NAME}", f"{SPLIT}/curve")
TABLES = ("accuracy", "fidelity")


def main() -> None:
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    out, *runs = map(Path, sys.argv[1:])
    for run in runs:
        keep(run, out / run.name)
        print(f"{out / run.name}: {len(list((run / 'accuracy').glob('*.parquet')))} parts")


def keep(run: Path, to: Path) -> None:
    """Write the means of what a run has by now, in place of those of before."""
    with tempfile.TemporaryDirectory(dir=run.parent, prefix=".means-") as folder:
        linked, new = Path(folder) / run.name, Path(folder) / "means"
        link(run, linked)
        keep_condensed(linked)
        if (run / SPLIT).is_dir():
            link(run / SPLIT, linked / SPLIT)
            keep_condensed(linked / SPLIT)
            law_table(linked, linked / SPLIT, read_law(study_of(linked / STUDY)["law"]["name"]))
        for name in KEPT:
            if (linked / name).is_dir():
                shutil.copytree(linked / name, new / name)
            elif (linked / name).exists():
                (new / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(linked / name, new / name)
        shutil.rmtree(to, ignore_errors=True)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(new, to)


def link(run: Path, to: Path) -> None:
    """A run as it stood at one moment: the parts that its manifests had by then, as links.

    Manifests are copied before parts are linked, and a part is entered before it takes its name: one without an entry
    is newer, an entry without its part is of one that was still to come.
    """
    for table in TABLES:
        (to / table).mkdir(parents=True)
        for path in (run / table).glob(manifest.FILES):
            shutil.copy(path, to / table / path.name)
    for name in (run_file.NAME, STUDY):
        if (run / name).exists():
            shutil.copy(run / name, to / name)
    described = run_file.read(run)
    if described is None:
        sys.exit(f"{run} holds no run: expected {run / run_file.NAME}")
    for table in TABLES:
        entered = {name for name, _ in manifest.entries(to / table, described["id"])}
        for name in entered:
            with suppress(FileNotFoundError):
                os.link(run / table / name, to / table / name)
        manifest.settle(to / table, described["id"])


if __name__ == "__main__":
    main()

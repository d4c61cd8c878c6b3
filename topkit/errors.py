"""What topkit raises; the console script turns each into an exit code."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

# Which extra of topkit brings an optional package, by the name that is imported.
EXTRA_OF = {
    "faiss": "faiss",
    "transformers": "hf",
    "tokenizers": "hf",
    "huggingface_hub": "hf",
    "altair": "report",
    "vl_convert": "report",
    "jinja2": "report",
    "markupsafe": "report",
    "triton": "triton",
    "gguf": "gguf",
    "lm_eval": "harness",
    "accelerate": "harness",
    "ray": "ray",
    "pandas": "frames",
    "polars": "frames",
}
# Characters of an error's line; of a longer one the middle is left out.
LONGEST = 1500


# As torch says it of a host, of CUDA's own calls (a graph, a context), and of cuBLAS: none has an error of its own.
_FULL = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


class InputError(ValueError):
    """Bad input: what was expected, what came, what to do (exit 2); always one line."""

    def __init__(self, message: object = "") -> None:
        line = " ".join(str(message).splitlines())
        half = LONGEST // 2
        super().__init__(line if len(line) <= LONGEST else f"{line[:half]} ... {line[-half:]}")


class MissingExtra(InputError):
    """An optional package that is not installed, and the extra that brings it (exit 2)."""

    def __init__(self, package: str) -> None:
        super().__init__(f"this needs {package}; pip install 'topkit[{EXTRA_OF[package]}]'")
        self.package = package

    def __reduce__(self) -> tuple[type[MissingExtra], tuple[str]]:
        return MissingExtra, (self.package,)  # it comes back from worker processes


class NoRows(InputError):
    """A run that is there and holds nothing to show yet (exit 2, where a page cannot say so)."""


class GateFailed(RuntimeError):
    """A gate that the caller set was not met (exit 1)."""


class Undecided(RuntimeError):
    """The data do not decide the question (exit 3)."""


def memory_is_full(error: BaseException) -> bool:
    """Whether an error says that a host's or a GPU's memory was full."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _FULL)


@contextmanager
def extras_named() -> Generator[None]:
    """Let an import of an optional package that is not installed raise MissingExtra."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in EXTRA_OF:
            raise
        raise MissingExtra(error.name) from error

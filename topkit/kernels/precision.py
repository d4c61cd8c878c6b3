"""Plain float32, whatever the process that calls is set to."""

# pyright: strict
from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from threading import Lock
from typing import Any

import torch

_KINDS = ("cpu", "cuda", "xpu", "mps")
# Whose products a process may be told to make in fewer bits.
_BACKENDS: Any = torch.backends
_MATMULS: tuple[Any, ...] = (_BACKENDS.cuda.matmul, _BACKENDS.mkldnn.matmul)
_IEEE = ("ieee", "none")


@contextmanager
def full_precision() -> Generator[None]:
    """Within it no autocast, TF32 or bfloat16 product; float32 and the CPU are the defaults.

    Also a decorator. What was set before is given back.
    """
    with ExitStack() as stack:
        plain = torch.empty(0)
        if plain.device.type != "cpu":
            stack.enter_context(torch.device("cpu"))
        for kind in _KINDS:
            if torch.is_autocast_enabled(kind):
                torch.set_autocast_enabled(kind, False)
                stack.callback(torch.set_autocast_enabled, kind, True)
        if _PROCESS.inside or plain.dtype != torch.float32 or _reduced():
            stack.enter_context(_PROCESS)
        yield


def _reduced() -> bool:
    return any(matmul.fp32_precision not in _IEEE for matmul in _MATMULS)


class _ProcessWide:
    """The settings that all threads share: kept by the first to enter, given back by the last to leave."""

    def __init__(self) -> None:
        self.inside = 0
        self._lock = Lock()
        self._before: tuple[torch.dtype, list[str]] = torch.float32, []

    def __enter__(self) -> None:
        with self._lock:
            if self.inside == 0:
                precisions = [matmul.fp32_precision for matmul in _MATMULS]
                self._before = torch.get_default_dtype(), precisions
                self._set(torch.float32, [p if p in _IEEE else "ieee" for p in precisions])
            self.inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.inside -= 1
            if self.inside == 0:
                self._set(*self._before)

    @staticmethod
    def _set(dtype: torch.dtype, precisions: list[str]) -> None:
        torch.set_default_dtype(dtype)
        for matmul, precision in zip(_MATMULS, precisions, strict=True):
            if matmul.fp32_precision != precision:
                matmul.fp32_precision = precision


_PROCESS = _ProcessWide()

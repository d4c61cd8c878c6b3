"""What tests of kernels share."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is allocated for a kernel begins as NaN."""
    empty = torch.Tensor.new_empty

    def filled(self: torch.Tensor, *size: Any, **options: Any) -> torch.Tensor:
        new = empty(self, *size, **options)
        return new.fill_(math.nan) if new.is_floating_point() else new

    monkeypatch.setattr(torch.Tensor, "new_empty", filled)

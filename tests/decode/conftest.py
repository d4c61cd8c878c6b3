"""The model that tests of attach share."""

from __future__ import annotations

from typing import Any

import pytest

from tiny import tiny


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny()

"""Errors: one line, of a length that people read, also from another process."""

from __future__ import annotations

import pickle

import pytest

from topkit.errors import LONGEST, InputError, MissingExtra


def test_an_error_is_one_line_that_ends_with_what_to_do():
    said = str(InputError("expected\na number\r\n" + "9" * 100_000 + "; write 16"))
    assert said.startswith("expected a number 999") and said.endswith("999; write 16")
    assert len(said) <= LONGEST + 5 and len(said.splitlines()) == 1


@pytest.mark.parametrize("error", [InputError("x; y"), MissingExtra("faiss")])
def test_an_error_crosses_processes(error: InputError):
    back = pickle.loads(pickle.dumps(error))
    assert (type(back), str(back)) == (type(error), str(error))

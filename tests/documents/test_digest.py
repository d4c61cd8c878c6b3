"""A file's digest follows its content, however alike another file is."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from topkit.documents.digest import file_digest, state_of


def test_a_file_in_anothers_place_has_its_own_digest(tmp_path: Path) -> None:
    path, other = tmp_path / "one", tmp_path / "other"
    for file, content in ((path, b"abc"), (other, b"xyz")):
        file.write_bytes(content)
        os.utime(file, ns=(1, 1))
    before = state_of(path)
    assert file_digest(path) == hashlib.sha256(b"abc").hexdigest()
    other.replace(path)
    assert state_of(path)[:2] == before[:2] and state_of(path) != before
    assert file_digest(path) == hashlib.sha256(b"xyz").hexdigest()


def test_what_is_not_there_is_no_digest(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        file_digest(tmp_path / "none")

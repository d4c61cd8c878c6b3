"""Files of weights: a name that promises a hash is held to it, and what is no file is refused in one line."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from topkit.errors import InputError
from topkit.indexers.spec import parse
from topkit.indexers.weights_file import path_of, read_tensors


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    save_file({"0.x": torch.arange(3.0)}, path, {"kind": "some"})
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    return path.rename(tmp_path / f"weights-{digest}.safetensors")


def test_contents_are_those_that_were_saved(saved: Path) -> None:
    metadata, tensors = read_tensors(saved, "some", "give another")
    assert metadata == {"kind": "some"} and tensors["0.x"].tolist() == [0, 1, 2]


def test_an_altered_file_is_refused_where_its_name_promises_a_hash(saved: Path) -> None:
    save_file({"0.x": torch.zeros(3)}, saved)
    with pytest.raises(InputError, match="is altered"):
        read_tensors(saved, "some", "give another")
    plain = saved.rename(saved.with_name("weights.safetensors"))
    assert read_tensors(plain, "some", "give another")[1]["0.x"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("content", [b"", b"\0" * 64, b"no tensors"])
def test_other_contents_are_refused_by_method_file_and_remedy(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_tensors(path, "some", "give another")
    said = str(caught.value)
    assert said.startswith(f"some: cannot read {path} as safetensors: ") and "\n" not in said
    assert said.endswith("; give another")


@pytest.mark.parametrize("name", ["nowhere", "*", "a\0b", "x" * 5000, "/a/**"])
def test_a_name_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="some: no weights at"):
        path_of("some", name)


def test_a_bundled_name_stands_before_a_file_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("reference").touch()
    assert path_of("projected", "reference").parent.name == "projected"
    assert path_of("projected", "./reference") == Path("reference")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("loki(calibration={!r})", "loki: no calibration"),
        ("double_sparsity(calibration={!r})", "double_sparsity: no calibration"),
        ("hashattention(weights={!r})", "hashattention: no weights"),
        ("indices(file={!r})", "indices: no file"),
        ("lightning(weights={!r})", "lightning: no weights"),
        ("projected(weights={!r})", "projected: no weights"),
    ],
)
def test_a_folder_or_nothing_in_a_files_place_is_refused_in_one_line_with_a_remedy(
    tmp_path: Path, text: str, said: str
) -> None:
    for path in (tmp_path, tmp_path / "nothing", "a\0b", "x" * 5000):
        with pytest.raises(InputError, match=f"^{said} at '") as caught:
            parse(text.format(str(path)))
        told = str(caught.value)
        assert "\n" not in told and "Errno" not in told and "device" not in told
        assert told.rpartition("; ")[2].startswith(("give ", "expected "))

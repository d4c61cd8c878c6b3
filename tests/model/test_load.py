"""Models are loaded whole, or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from topkit.errors import InputError
from topkit.experiments.model.load import REFERENCE, load, named, resolve

WEIGHT = "model.layers.3.self_attn.k_proj.weight"


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[dict[str, Tensor]], Path]:
    """The bundled model's folder with other weights."""

    def made(changes: dict[str, Tensor]) -> Path:
        shutil.copytree(REFERENCE, tmp_path / "model")
        weights = load_file(REFERENCE / "model.safetensors") | changes
        kept = {name: x for name, x in weights.items() if x.numel()}
        save_file(kept, tmp_path / "model" / "model.safetensors", {"format": "pt"})
        return tmp_path / "model"

    return made


@pytest.mark.parametrize("changed", [torch.empty(0), torch.ones(5, 384)])
def test_weights_are_never_drawn_at_random(copy, changed: Tensor, capsys) -> None:
    with pytest.raises(InputError, match=rf"lacks weights .*: {WEIGHT}$"):
        load(copy({WEIGHT: changed}))
    assert capsys.readouterr().err == ""


def test_tied_embeddings_are_not_missing(copy) -> None:
    model, _ = load(copy({}))
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_pickle_is_not_read(copy) -> None:
    folder = copy({})
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"no file named model\.safetensors"):
        load(folder)


@pytest.mark.parametrize("spoil", [lambda b: b[:-1000], lambda b: b"x" * 1000, lambda b: b""])
def test_a_spoilt_file_is_refused(copy, spoil: Callable[[bytes], bytes]) -> None:
    folder = copy({})
    path = folder / "model.safetensors"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(InputError, match="cannot load a causal model"):
        load(folder)


@pytest.mark.parametrize(
    "changed", [{"quantization_config": {"quant_method": "gptq", "bits": 4}}, {"hidden_size": "x"}]
)
def test_a_config_that_cannot_be_served_is_refused(copy, changed: dict) -> None:
    folder = copy({})
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(InputError, match="cannot load a causal model"):
        load(folder)


@pytest.mark.parametrize(
    ("asked", "said"), [({"device": "gpu"}, "cuda:N"), ({"dtype": "float8_e4m3fn"}, "bfloat16")]
)
def test_what_no_model_runs_in_is_refused(asked: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load(REFERENCE, **asked)


def test_the_code_of_a_folder_never_runs(copy) -> None:
    folder = copy({})
    path = folder / "config.json"
    own = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    changed = {"auto_map": own, "model_type": "own"}
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    (folder / "own.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\n")
    with pytest.raises(InputError, match="cannot load a causal model"):
        load(folder)
    assert not (folder / "ran").exists()


def test_the_bundled_model_stands_before_a_folder_of_its_name(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("reference").mkdir()
    Path("reference/config.json").write_text("{}")
    assert resolve("reference") == REFERENCE
    for own in (Path("reference"), Path("./reference"), "./reference"):
        assert resolve(own).resolve() == tmp_path / "reference"
        assert resolve(named(own)).resolve() == tmp_path / "reference"
    assert resolve(named("reference")) == REFERENCE


@pytest.mark.parametrize("path", ["", "x" * 300, "a\0b", "nowhere", "."])
def test_a_path_that_leads_to_no_model_is_refused(path: str) -> None:
    with pytest.raises(InputError, match=r"expected .*a folder with config"):
        resolve(path)

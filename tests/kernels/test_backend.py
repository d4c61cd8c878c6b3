"""Which GPUs "auto" takes kernels on: by the tensor's own device, and by what compiles for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from topkit.errors import InputError
from topkit.kernels import backend
from topkit.kernels.backend import LEAST, LEAST_FP8, has_gluon, has_pdl, resolve
from topkit.kernels.score.boundary import least_capability

# A machine of several GPUs: Volta, Ampere, Ada, Hopper, Blackwell.
GPUS = ((7, 0), (8, 0), (8, 9), (9, 0), (10, 0))


@pytest.fixture
def mixed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Tensors on the GPUs of a mixed machine, which are not there."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: GPUS[device.index])
    monkeypatch.setattr(backend, "interpreted", lambda: False)
    monkeypatch.setattr(backend, "_installed", lambda: True)
    for cached in (has_pdl, has_gluon, backend.capability):
        cached.cache_clear()
    yield [SimpleNamespace(is_cuda=True, device=torch.device("cuda", i)) for i in range(len(GPUS))]
    for cached in (has_pdl, has_gluon, backend.capability):
        cached.cache_clear()


@pytest.mark.parametrize("order", [1, -1])
def test_each_tensor_is_judged_by_its_own_gpu(mixed: Any, order: int) -> None:
    for least, taken in ((LEAST, (0, 1, 1, 1, 1)), (LEAST_FP8, (0, 0, 1, 1, 1))):
        chosen = {x.device.index: resolve("auto", x, None, least) for x in mixed[::order]}
        assert chosen == {i: "triton" if yes else "torch" for i, yes in enumerate(taken)}
    assert [has_pdl(x.device) for x in mixed] == [False, False, False, True, True]
    with pytest.raises(InputError, match=r"compute capability 8.9 or more; cuda:1 has 8.0"):
        resolve("triton", mixed[1], None, LEAST_FP8)
    with pytest.raises(InputError, match=r"compute capability 8.0 or more; cuda:0 has 7.0"):
        resolve("triton", mixed[0])


@pytest.mark.parametrize(
    ("there", "taken"), [("3.5.1", False), ("3.6.0", True), ("3.10.0+git", True), ("4.0.0", True)]
)
def test_gluon_is_for_hopper(
    mixed: Any, monkeypatch: pytest.MonkeyPatch, there: str, taken: bool
) -> None:
    monkeypatch.setattr(pytest.importorskip("triton"), "__version__", there)
    assert [has_gluon(x.device) for x in mixed] == [False, False, False, taken, False]


def test_rocm_has_no_kernels(mixed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.4")
    for x in mixed:
        assert resolve("auto", x) == "torch" and not has_pdl(x.device)
        with pytest.raises(InputError, match="needs an NVIDIA GPU"):
            resolve("triton", x)


# What compiles: kernels of PTX do not for AMD's, and fp8 is not read before sm_89.
PTX = {
    *("select_topk", "select_mass", "keys 64", "keys 128"),
    *(f"score {c}" for c in ("sign", "int2", "int4", "int8", "fp8_e4m3", "mxfp4", "nvfp4")),
    *(f"score lightning {c}" for c in ("fp8_e4m3", "mxfp4", "nvfp4")),
}
FP8 = {"score fp8_e4m3", "score lightning fp8_e4m3"}
TARGETS = {
    ("cuda", "80"): (FP8, 163),
    ("cuda", "89"): (set(), 99),
    ("cuda", "90"): (set(), 227),
    ("cuda", "100"): (set(), 227),
    ("hip", "gfx942"): (PTX, 96),  # what compiles; "auto" takes none of it there
}


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS, ids=" ".join)
def test_what_compiles_for_a_gpu_that_is_not_there(target: tuple[str, str], tmp_path: Path) -> None:
    pytest.importorskip("triton")
    space = {n: x for n, x in os.environ.items() if n != "TRITON_INTERPRET"}
    space["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("compiled.py")), *target],
        capture_output=True, text=True, env={**space, "TRITON_CACHE_DIR": str(tmp_path)},
    )  # fmt: skip
    said = json.loads(done.stdout.splitlines()[-1])
    refused, most = TARGETS[target]
    broken = {name: why for name, why in said.items() if isinstance(why, str)}
    assert set(broken) == refused, broken
    for name, shared in said.items():
        if name not in refused:
            assert shared and max(shared.values()) <= most * 1024, f"{name}: {shared}"
        if target[0] == "cuda":  # "auto" takes what compiles, and nothing else
            least = least_capability(name.removeprefix("score ").removeprefix("lightning "))
            there = int(target[1]) // 10, int(target[1]) % 10
            assert (there >= least) == (name not in refused)

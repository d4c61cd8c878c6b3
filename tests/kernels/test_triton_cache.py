"""A token written into a cache: the kernel, on a GPU or in Triton's interpreter, and its definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from device import CUDA, DEVICE
from topkit.errors import InputError
from topkit.kernels.cache_append import cache_append

pytest.importorskip("triton")


def case(dim=64, wide=48, dtype=torch.float16, room=9, at=4) -> dict[str, Any]:
    keys, values = (torch.randn(2, 3, room, d, device=DEVICE).to(dtype) for d in (dim, wide))
    # As a projection's heads lie: one behind the other.
    new = (torch.randn(2, 1, 3, d, device=DEVICE).to(dtype).transpose(1, 2) for d in (dim, wide))
    new_keys, new_values = new
    place = torch.tensor([at], device=DEVICE)
    return dict(keys=keys, values=values, new_keys=new_keys, new_values=new_values, at=place)


def expected(given: dict[str, Any]) -> tuple[Tensor, Tensor]:
    keys, values, slot = given["keys"].clone(), given["values"].clone(), int(given["at"])
    for row in range(2):
        for head in range(3):
            keys[row, head, slot] = given["new_keys"][row, head, 0]
            values[row, head, slot] = given["new_values"][row, head, 0]
    return keys, values


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("at", [0, 4, 8])
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32], ids=lambda d: str(d)[6:]
)
def test_one_slot_is_written_and_no_other(backend: str, at: int, dtype: torch.dtype) -> None:
    given = case(dtype=dtype, at=at)
    keys, values = expected(given)
    cache_append(**given, backend=backend)
    assert torch.equal(given["keys"], keys) and torch.equal(given["values"], values)


def test_a_part_of_a_longer_buffer() -> None:
    given = case(room=6, at=5)
    whole = torch.zeros(2, 3, 20, 64, dtype=torch.float16, device=DEVICE)
    given["keys"] = whole[:, :, :6]
    cache_append(**given, backend="triton")
    assert torch.equal(whole[:, :, 5], given["new_keys"][:, :, 0])
    assert not whole[:, :, :5].any() and not whole[:, :, 6:].any()


BAD: dict[str, dict[str, Any]] = {
    "new_keys must be (2, 3, 1, 64); got (2, 3, 1, 48)": dict(new_keys=torch.zeros(2, 3, 1, 48).half()),
    "new_values must be float16; got torch.float32": dict(new_values=torch.zeros(2, 3, 1, 48)),
    "values must be (2, 3, 9, 48); got (2, 3, 8, 48)": dict(values=torch.zeros(2, 3, 8, 48).half()),
    "keys must not be expanded": dict(keys=torch.zeros(2, 3, 1, 64).half().expand(2, 3, 9, 64)),
    "at must be (1,); got (2,)": dict(at=torch.zeros(2, dtype=torch.int64)),
    "at must be int64 or int32; got torch.float32": dict(at=torch.zeros(1)),
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_refused_by_name(message: str) -> None:
    given = case()
    # A copy to a device is no longer expanded.
    given |= {n: x.to(DEVICE).as_strided(x.shape, x.stride()) for n, x in BAD[message].items()}
    with pytest.raises(InputError) as refused:
        cache_append(**given)
    assert message in str(refused.value)


@pytest.mark.skipif(CUDA, reason="a GPU is not asked")
@pytest.mark.parametrize("at", [-1, 9])
def test_a_slot_beyond_the_room_is_refused(at: int) -> None:
    with pytest.raises(InputError, match=f"at must be 0 to 8; got {at}"):
        cache_append(**case(at=at))


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
@pytest.mark.parametrize("at", [-1, 9, 1 << 40])
def test_a_slot_beyond_the_room_is_left_out(at: int) -> None:
    given = case(at=at)
    before = given["keys"].clone(), given["values"].clone()
    cache_append(**given)
    assert torch.equal(given["keys"], before[0]) and torch.equal(given["values"], before[1])

"""A token's keys and values, into a cache with room for them."""

# pyright: strict

from __future__ import annotations

from torch import Tensor

from topkit.errors import InputError
from topkit.kernels import checks
from topkit.kernels.backend import resolve
from topkit.kernels.cache_append import reference

__all__ = ["cache_append"]


def cache_append(
    keys: Tensor,
    values: Tensor,
    new_keys: Tensor,
    new_values: Tensor,
    at: Tensor,
    *,
    backend: str = "auto",
) -> None:
    """Writes a token's keys and values at a slot of a cache, in place and in one launch.

    Shapes: keys [B, Hk, C, D], values [B, Hk, C, Dv]; new_keys [B, Hk, 1, D], new_values
    [B, Hk, 1, Dv]; at [1], which on a GPU is not looked at: the kernel leaves out a slot
    beyond C.
    Raises: InputError where shapes, dtypes or devices do not belong together, or there is no room.
    """
    checks.tensors(keys=keys, values=values, new_keys=new_keys, new_values=new_values)
    for name, buffer, new in (("keys", keys, new_keys), ("values", values, new_values)):
        checks.dims(name, buffer, 4)
        checks.beside(keys.device, **{name: buffer, f"new_{name}": new})
        checks.typed(f"new_{name}", new, (buffer.dtype,))
        checks.shaped(f"new_{name}", new, (*keys.shape[:2], 1, buffer.shape[3]))
        checks.shaped(name, buffer, (*keys.shape[:3], buffer.shape[3]))
        checks.unexpanded(**{name: buffer})
    checks.typed("at", at, checks.PLACES)
    checks.shaped("at", at, (1,))
    checks.beside(keys.device, at=at)
    if not at.is_cuda and not 0 <= int(at) < keys.shape[2]:
        raise InputError(f"at must be 0 to {keys.shape[2] - 1}; got {int(at)}")
    tensors = (keys, values, new_keys, new_values)
    if resolve(backend, keys, checks.ungraded(new_keys=new_keys, new_values=new_values)) == "torch":
        reference.cache_append(*tensors, at)
        return
    from topkit.kernels.cache_append import triton_impl

    triton_impl.cache_append(*tensors, at)

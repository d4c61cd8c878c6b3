"""Top-k attention for training, forward and backward, beside dense attention: time and memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from topkit.experiments.bench import timing
from topkit.experiments.bench.rows import OURS, Row
from topkit.experiments.bench.scale import length_of
from topkit.experiments.bench.session import Case, Session
from topkit.kernels.topk_attention import cuts_of, keys_kept, most_kept, topk_attention

FLASH, RATIO = "SDPA flash", "0.01"
SELECTED = "bmm and select_topk"
MEMORY = "times q, k, v and gradients"
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def topk_attention_cases(session: Session) -> Iterator[Case]:
    """Each length and head dimension: 8 heads, bf16, 1 % of the visible keys."""
    for length in session.scale.attended:
        for dim in session.scale.attended_dims:
            yield (
                f"{length_of(length)}, d {dim}",
                lambda length=length, dim=dim: _case(session, length, dim),
            )


def _case(session: Session, length: int, dim: int) -> Iterator[Row]:
    heads, what = session.scale.attended_heads, f"{length_of(length)}, d {dim}"
    dtype = torch.bfloat16 if session.cuda else torch.float32
    inputs = [session.drawn(1, heads, length, dim, dtype=dtype) for _ in range(3)]
    grad = session.drawn(1, heads, length, dim, dtype=dtype)
    kept = keys_kept(RATIO, length, length, device=session.device)
    shape = {"dtype": str(dtype).removeprefix("torch."), "batch": 1, "length": length}
    k = most_kept(RATIO, length)
    dense: tuple[str, float] | None = None
    for name, attend in _dense(session).items():
        row = session.attempt(
            "topk-attention", what, name, lambda a=attend: {"spans": _spans(session, a, inputs, grad), **shape}
        )  # fmt: skip
        if dense is None and row["median"] is not None:
            dense = name, row["median"]
        yield row
    masked: Attend = lambda q, key, v: topk_attention(q, key, v, kept, backend="torch")  # noqa: E731
    ours: Attend = lambda q, key, v: topk_attention(q, key, v, kept, most=k)  # noqa: E731
    for name, attend in {"masked dense": masked, OURS: ours}.items():
        against = dense if name == OURS else None

        def measure(attend: Attend = attend, against: tuple[str, float] | None = against) -> Row:
            spans = _spans(session, attend, inputs, grad)
            return {"spans": spans, "against": against, "k": k, **shape}

        yield session.attempt("topk-attention", what, name, measure)
    if session.cuda:
        yield session.attempt(
            "topk-attention", f"memory, {what}", OURS,
            lambda: {"spans": [_peak(ours, inputs, grad)], "unit": MEMORY, "k": k, **shape},
        )  # fmt: skip
    # Of few scores, where a GPU has the kernels; and of all, which are written.
    for name, backend in {SELECTED: "torch", OURS: "auto"}.items():
        yield session.attempt(
            "topk-attention", f"thresholds, {what}", name,
            lambda b=backend: {"spans": _thresholds(session, inputs, kept, k, b), "k": k, **shape},
        )  # fmt: skip


def _dense(session: Session) -> dict[str, Attend]:
    """The first is what Top-k attention is compared with."""
    if not session.cuda:
        return {"SDPA math": _sdpa(SDPBackend.MATH)}
    return {
        FLASH: _sdpa(SDPBackend.FLASH_ATTENTION),
        "SDPA cuDNN": _sdpa(SDPBackend.CUDNN_ATTENTION),
    }


def _sdpa(backend: SDPBackend) -> Attend:
    def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(queries, keys, values, is_causal=True)

    return attend


def _both(attend: Attend, inputs: list[Tensor], grad: Tensor) -> None:
    own = [x.detach().requires_grad_() for x in inputs]
    attend(*own).backward(grad)


def _spans(session: Session, attend: Attend, inputs: list[Tensor], grad: Tensor) -> list[float]:
    """Microseconds of forward and backward."""
    return timing.streamed(lambda: _both(attend, inputs, grad), session.device)


def _thresholds(
    session: Session, inputs: list[Tensor], kept: Tensor, most: int, backend: str
) -> list[float]:
    """Microseconds of finding where each query's list is cut."""
    queries, keys, _ = inputs
    return timing.streamed(
        lambda: cuts_of(queries, keys, kept, backend=backend, most=most), session.device
    )


def _peak(attend: Attend, inputs: list[Tensor], grad: Tensor) -> float:
    """The most that a pass holds beyond what was there, over the bytes of q, k, v and their gradients."""
    _both(attend, inputs, grad)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    _both(attend, inputs, grad)
    torch.cuda.synchronize()
    own = sum(x.nbytes for x in inputs)
    # q, k and v were there before.
    return (torch.cuda.max_memory_allocated() - before + own) / (2 * own)

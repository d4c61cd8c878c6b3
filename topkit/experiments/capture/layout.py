"""The order of a tensor's dimensions: [batch, heads, tokens, ...], or as engines hold them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from topkit.errors import InputError
from topkit.experiments.capture.tensors import SHAPES

LAYOUTS = ("bhtd", "bthd", "thd")
# No model has more heads: tokens stand in their place.
HEADS = 128
# Of fewer "heads" than this nothing is guessed: no dump has so few tokens.
FEWEST = 10


def require_layout(layout: str | None) -> str:
    """The layout that is meant, bhtd where none is said. Raises: InputError for another."""
    if layout is not None and layout not in LAYOUTS:
        raise InputError(f"layout must be {', '.join(LAYOUTS)}; got {str(layout)[:40]!r}")
    return layout or "bhtd"


def form_of(name: str, layout: str) -> list[str]:
    """The dimensions of a tensor in a layout, by SHAPES' symbols; of thd without the batch's."""
    form = SHAPES[name].split()
    if layout != "bhtd" and len(form) == 4:
        form[1], form[2] = form[2], form[1]
    return form[1:] if layout == "thd" else form


def arranged(name: str, x: Tensor, layout: str, batched: bool) -> Tensor:
    """A tensor of a layout as SHAPES says, with a batch; thd is a batch of one, its sequences end to end.

    A dimension of one that the form has and the tensor has not, as the head of index keys, is added; one that
    only the tensor has is taken away.
    Raises: InputError for another number of dimensions.
    """
    form = form_of(name, layout)
    if not batched and layout != "thd":
        form = form[1:]
    if name == "index_keys" and x.ndim == len(form) - 1:
        x = x.unsqueeze(form.index("1", 1 if batched and layout != "thd" else 0))
    elif name in ("keys", "values") and layout == "thd" and x.ndim == len(form) - 1:
        x = x.unsqueeze(1)  # MLA's latent has no heads
    elif name == "native" and x.ndim == len(form) + 1 and x.shape[-2] == 1:
        x = x.squeeze(-2)
    elif name == "index_weights" and x.ndim == len(form) + 1 and x.shape[-1] == 1:
        x = x.squeeze(-1)
    if x.ndim != len(form):
        said = "" if layout == "bhtd" else f" in layout {layout}"
        words = [symbol.replace("1", "B") if i == 0 else symbol for i, symbol in enumerate(form)]
        words = words if batched and layout != "thd" else form
        raise InputError(f"{name} must be [{', '.join(words)}]{said}; got {list(x.shape)}")
    if not batched or layout == "thd":
        x = x[None]
    return x.transpose(1, 2) if layout != "bhtd" and x.ndim == 4 else x


def require_likely(
    named: Mapping[str, Tensor], layout: str, said: bool, batched: bool = True
) -> None:
    """Refuse shapes that another layout explains, and this one only with heads that no model has.

    named: tensors arranged as SHAPES says, by `layout`; said: the caller named it, and is believed more;
    batched: the tensors came with a batch.
    Raises: InputError that names the likely layout.
    """
    for asks, keeps in (("queries", "keys"), ("index_queries", "index_keys")):
        if asks not in named or keeps not in named or 0 in named[keeps].shape:
            continue
        q, k = named[asks], named[keeps]
        heads, count, kv_heads, length = q.shape[1], q.shape[2], k.shape[1], k.shape[2]
        # One key head says nothing of the order: of MLA and of index keys its dimension may be left out.
        fits = count % length == 0 and heads <= kv_heads if kv_heads > 1 else heads <= length
        strange = max(heads, kv_heads) > HEADS or count > length
        if not said and max(heads, kv_heads) >= FEWEST:
            strange |= kv_heads > length or (count == length and heads > count)
        if strange and fits:
            raise _unlikely(asks, q, keeps, k, layout, batched)
    weights, q = named.get("index_weights"), named.get("index_queries")
    if weights is None or q is None or q.shape[1] == q.shape[2]:
        return
    if weights.shape[1:] == (q.shape[1], q.shape[2]):
        raise _unlikely("index_queries", q, "index_weights", weights, layout, batched)


def _unlikely(one: str, x: Tensor, other: str, y: Tensor, layout: str, batched: bool) -> InputError:
    likely = "bhtd" if layout != "bhtd" else "bthd" if batched else "thd"
    return InputError(
        f"layout {layout} makes {x.shape[1]} heads of {x.shape[2]} tokens of {one}, beside {other} "
        f"{list(y.shape)}: the dimensions seem to stand in another order; say layout={likely} (--layout {likely})"
    )

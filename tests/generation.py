"""What a model generates, and a slow rendering of how an attached one should attend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from plainly import best

WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "temperature": 1.5},
    "beams": {"num_beams": 3},
    "beam sampling": {"num_beams": 2, "do_sample": True, "num_return_sequences": 2},
}


def generated(model: Any, given: dict[str, Any], new: int = 12, **how: Any) -> tuple[Tensor, Any]:
    """Sequences, and logits where every step gives some."""
    torch.manual_seed(5)
    out = model.generate(
        **given,
        max_new_tokens=new,
        return_dict_in_generate=True,
        output_logits=True,
        **{"do_sample": False, **how},
    )
    return out.sequences, out.logits


def assert_same(ours: tuple[Tensor, Any], theirs: tuple[Tensor, Any]) -> None:
    assert torch.equal(ours[0], theirs[0])
    for a, b in zip(ours[1], theirs[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def by_score(query: Tensor, keys: Tensor, k: int, key_of: Callable[[Tensor], Tensor]) -> list[int]:
    scores = [float(query.double() @ key_of(key).double()) for key in keys]
    return best(scores, k)


def choose_sign(query: Tensor, keys: Tensor, k: int) -> list[int]:
    return by_score(query, keys, k, lambda key: torch.where(key >= 0, 1.0, -1.0))


def choose_exact(query: Tensor, keys: Tensor, k: int) -> list[int]:
    return by_score(query, keys, k, lambda key: key)


def choose_quest(query: Tensor, keys: Tensor, k: int) -> list[int]:
    """Pages of 4 from the row's first key, by their bound; the last that k reaches, newest first."""
    bounds = []
    for at in range(0, len(keys), 4):
        page = keys[at : at + 4].double()
        bounds.append(
            sum(
                max(float(q * low), float(q * high))
                for q, low, high in zip(query.double(), page.amin(0), page.amax(0), strict=True)
            )
        )
    chosen: list[int] = []
    for page in best(bounds):
        last = min(4 * page + 4, len(keys))
        chosen += range(last - 1, 4 * page - 1, -1)
    return chosen[:k]


CHOICES = {"sign()": choose_sign, "exact()": choose_exact, "quest(page_size=4)": choose_quest}


# Row, query and head.
Place = tuple[int, int, int]


class Slowly:
    """A model that attends as an attached one should, by the definition, query by query."""

    def __init__(self, model: Any, spec: str, k: float, until: int) -> None:
        self.model, self.choose, self.k, self.until = model, CHOICES[spec], k, until

    def __enter__(self) -> Slowly:
        AttentionInterface.register("slowly", self.attend)
        AttentionMaskInterface.register("slowly", sdpa_mask)
        self.model.set_attn_implementation("slowly")
        return self

    def __exit__(self, *_: object) -> None:
        self.model.set_attn_implementation("sdpa")

    def kept(self, layer: int, place: Place, query: Tensor, keys: Tensor, stop: int) -> list[int]:
        """Which of the keys that a query sees it attends to; `stop` slots are there, padding included."""
        return self.choose(query, keys, int(self.k))

    def attend(self, module, query, key, value, mask, scaling=None, **_: Any):
        rows, heads, count, _width = query.shape
        length, group = key.shape[2], heads // key.shape[1]
        out = torch.zeros(rows, count, heads, value.shape[3])
        for row in range(rows):
            for i in range(count):
                stop = length - count + i + 1
                slots = torch.arange(stop)
                if mask is not None:
                    slots = mask[row, 0, i].nonzero()[:, 0]
                if len(slots) == 0:
                    continue
                for head in range(heads):
                    keys = key[row, head // group, slots]
                    values = value[row, head // group, slots]
                    kept = list(range(len(slots)))
                    if stop > self.until:
                        place = row, i, head
                        kept = self.kept(module.layer_idx, place, query[row, head, i], keys, stop)
                    logits = scaling * keys[kept].double() @ query[row, head, i].double()
                    out[row, i, head] = (logits.softmax(-1) @ values[kept].double()).float()
        return out, None

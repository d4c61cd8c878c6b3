"""InfLLM's context manager, fed a prompt and then the newest token; it notes the blocks that it chose for that."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from public.case import Case, Choices
from public.checkout import Checkout, OnCPU

REPOSITORY = "thunlp/InfLLM"
CODE = {"inf_llm/attention/context_manager.py": ["ContextManager.append"]}
NOTE = "What it puts on a GPU is put on the CPU; RoPE is left out."
DEPARTS = (
    "A key's local score is its summed softmax weight over its own query and those that follow in the window; "
    "equation 1 has the mean dot product with those that follow. The recipe is the paper's: handed these scores, "
    "this code chooses the same blocks (the last cases)."
)
RECIPE = "keep(shared(infllm(page_size=8, representatives=2, local=16), per='layer', how='sum'), window=17)"
OPTIONS = {"n_local": 16, "block_size": 8, "topk": 4, "repr_topk": 2, "exc_block_size": 16}
CASES = tuple(
    Case(
        RECIPE,
        RECIPE.replace("representatives=2", "representatives=1"),
        seed=seed,
        length=137,
        options={**OPTIONS, "equation_1": paper},
    )
    for paper in (False, True)
    for seed in range(3)
)
# Of what was chosen, the recipe's share, by case.
AGREEMENT = (0.67, 0.67, 0.67, 1.0, 1.0, 1.0)


def choices(checkout: Checkout, case: Case, tensors: dict[str, Tensor]) -> Choices:
    doors = ("inf_llm", "inf_llm.attention")
    code = checkout.module("inf_llm.attention.context_manager", doors)
    stream = SimpleNamespace(wait_stream=lambda _: None)
    code.torch.cuda.stream = lambda _: nullcontext()
    code.torch.cuda.current_stream = lambda: stream
    code.torch.cuda.Event = lambda: SimpleNamespace(record=lambda _: None, wait=lambda: None)
    plain = type("Plain", (), {
        "__call__": lambda _, queries, keys: (queries, keys),
        "apply_rotary_pos_emb_one_angle": lambda _, x, at: x,
        "_update_cos_sin_tables_len": lambda *_: None,
    })()  # fmt: skip
    options = dict(case.options)
    paper = options.pop("equation_1")
    manager = code.ContextManager(plain, n_init=0, max_cached_block=32, fattn=False, **options)
    kept: list[list[int]] = []

    def noted(queries: Tensor) -> list[list[int]]:
        kept[:] = type(manager).calc_block_topk(manager, queries)
        return [list(blocks) for blocks in kept]

    manager.calc_block_topk = noted
    if paper:
        _by_equation_1(manager)
    queries, keys, values = (tensors[name] for name in ("queries", "keys", "values"))
    with OnCPU():
        for part in (slice(0, -1), slice(-1, None)):
            own = [x[:, :, part].contiguous() for x in (queries, keys, values)]
            blocks = getattr(manager, "num_global_block", 0)
            manager.append(*own, *own)
    size = case.options["block_size"]
    slots = {slot for block in kept[0] for slot in range(block * size, (block + 1) * size)}
    # What is in no block yet is attended to as it is.
    return [sorted(slots | set(range(blocks * size, case.length)))]


def _by_equation_1(manager: Any) -> None:
    """Make local scores the dot products of keys with the queries that follow in the window, summed."""
    plain = manager._append

    def append(queries: Tensor, keys: Tensor, values: Tensor, asked: Tensor) -> tuple[Any, Tensor]:
        out, _ = plain(queries, keys, values, asked)
        each = keys.repeat_interleave(queries.shape[1] // keys.shape[1], 1)
        apart = torch.arange(keys.shape[2] - queries.shape[2], keys.shape[2])[:, None]
        apart = apart - torch.arange(keys.shape[2])
        follow = (apart >= 1) & (apart <= manager.n_local)
        return out, (queries @ each.mT).masked_fill(~follow, 0).sum(2)

    manager._append = append

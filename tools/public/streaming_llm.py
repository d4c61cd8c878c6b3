"""StreamingLLM's cache, of values that are the numbers of their slots."""

from __future__ import annotations

from torch import Tensor

from public.case import Case, Choices
from public.checkout import Checkout, numbered

REPOSITORY = "mit-han-lab/streaming-llm"
CODE = {"streaming_llm/kv_cache.py": ["StartRecentKVCache.__call__"]}
CASES = (
    Case("streaming_llm(sink=4, window=12)", "streaming_llm(sink=2, window=12)", k=16, options={"start_size": 4, "recent_size": 12}),
    Case("streaming_llm(sink=1)", "streaming_llm(sink=3)", seed=1, length=90, k=30, options={"start_size": 1, "recent_size": 29}),
)  # fmt: skip


def choices(checkout: Checkout, case: Case, tensors: dict[str, Tensor]) -> Choices:
    code = checkout.file("streaming_llm/kv_cache.py")
    keys = tensors["keys"]
    ((_, kept),) = code.StartRecentKVCache(**case.options)([[keys, numbered(keys)]])
    # One list for all heads.
    return [kept[0, 0, :, 0].int().tolist()]

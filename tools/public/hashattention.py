"""HashAttention's masker, by its authors."""

from __future__ import annotations

from torch import Tensor

from public import skylight
from public.case import Case, Choices
from public.checkout import Checkout
from public.files import HASH

REPOSITORY = skylight.REPOSITORY
CODE = {f"{skylight.PATH}/hashattention_top_k.py": ["HashAttentionTopKMasker.add_mask"]}
NOTE = "Weights are drawn. Which of equal Hamming distances comes first is each one's own."
CASES = (
    Case("hashattention({file})", "quest(page_size=1)", file="hashes", options={"heavy_size": 16}),
    Case("hashattention({file})", "sign()", file="hashes", seed=1, length=150, heads=(6, 2), options={"heavy_size": 20}),
)  # fmt: skip


def choices(checkout: Checkout, case: Case, tensors: dict[str, Tensor]) -> Choices:
    code = skylight.module(checkout, "hashattention_top_k")
    weights = {}
    for side in ("query", "key"):
        each = range(len(HASH))
        weights[f"{side}_matrix"] = [tensors[f"0.{side}.{n}.weight"].mT for n in each]
        weights[f"{side}_bias"] = [tensors[f"0.{side}.{n}.bias"] for n in each]
    config = code.HashAttentionTopKMaskerConfig(
        hat_bits=HASH[-1], hat_mlp_layers=len(HASH), hat_mlp_hidden_size=HASH[0],
        hat_mlp_activation="silu", hat_weights={0: weights}, **case.options,
    )  # fmt: skip
    return skylight.chosen(checkout, code.HashAttentionTopKMasker(config), tensors)

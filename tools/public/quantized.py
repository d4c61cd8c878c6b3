"""DeepGEMM's four-bit and eight-bit floats, as which keys are stored, and read again for exact products."""

from __future__ import annotations

import torch
from torch import Tensor

from public.case import Case, Choices
from public.checkout import Checkout

REPOSITORY = "deepseek-ai/DeepGEMM"
CODE = {
    "deep_gemm/utils/math.py": ["per_token_cast_to_fp4", "cast_back_from_fp4", "per_token_cast_to_fp8"]
}  # fmt: skip
NOTE = "The keys of the largest products of queries and of what it reads back; that is no function of its own."
CASES = (
    Case("quantized(dtype='mxfp4')", "quantized(dtype='nvfp4')", length=200, width=64, options={"fp4": True, "keys": 20}),
    Case("quantized(dtype='fp8_e4m3', scale='pow2')", "quantized(dtype='int4')", seed=1, length=200, width=64, options={"fp4": False, "keys": 50}),
)  # fmt: skip


def choices(checkout: Checkout, case: Case, tensors: dict[str, Tensor]) -> Choices:
    code = checkout.file("deep_gemm/utils/math.py")
    chosen: Choices = []
    for head in range(case.heads[0]):
        keys = tensors["keys"][0, head * case.heads[1] // case.heads[0]]
        if case.options["fp4"]:
            packed, scales = code.per_token_cast_to_fp4(keys, use_ue8m0=True, gran_k=32)
            read = code.cast_back_from_fp4(packed, scales, gran_k=32)
        else:
            stored, scales = code.per_token_cast_to_fp8(keys, use_ue8m0=True, gran_k=case.width)
            read = stored.float() * scales
        scores = read @ tensors["queries"][0, head, -1]
        chosen.append(sorted(torch.topk(scores, case.options["keys"]).indices.tolist()))
    return chosen

"""The oracle top-p masker of sparse-attention-hub."""

from __future__ import annotations

from torch import Tensor

from public import skylight
from public.case import Case, Choices
from public.checkout import Checkout

REPOSITORY = skylight.REPOSITORY
CODE = {f"{skylight.PATH}/oracle_top_p.py": ["OracleTopPMasker.add_mask"]}
CASES = (
    Case("top_p(mass=0.8)", "top_p(mass=0.5)", k=64, options={"top_p": 0.8}),
    Case("top_p(mass=0.95)", "top_p(mass=0.9)", seed=1, length=150, heads=(6, 2), k=150, options={"top_p": 0.95}),
)  # fmt: skip


def choices(checkout: Checkout, case: Case, tensors: dict[str, Tensor]) -> Choices:
    code = skylight.module(checkout, "oracle_top_p")
    masker = code.OracleTopPMasker(code.OracleTopPMaskerConfig(**case.options))
    return skylight.chosen(checkout, masker, tensors)

"""What the definitions of the kernels cost on a CPU: a decoding step, encoding, noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from topkit.experiments.bench.rows import Row
from topkit.experiments.bench.scale import length_of
from topkit.experiments.bench.session import Case, Session
from topkit.experiments.decode.attach import attach
from topkit.indexers.base import Step
from topkit.indexers.budget import parse_budget
from topkit.indexers.noise import noise
from topkit.indexers.spec import parse
from topkit.kernels.codes import quantize, stored
from topkit.kernels.gather_attention import gather_attention
from topkit.kernels.quantize_append import quantize_append

SPECS = ("sign()", "quantized()", "quantized(dtype='int4')")
BUDGET = "1%"
DTYPES = ("int8", "int4", "int2", "fp8_e4m3")
# A layer's own work is small beside its attention.
HIDDEN = 256
# Contexts of the bundled model in that of a decoding step.
LONGER = 4
# A step takes milliseconds, and is repeated so many times as often.
MORE = 4
DENSE = "the model's own step"
PACKED = "SDPA, heads packed"
WHOLE = "all at once"


def decode_cases(session: Session) -> Iterator[Case]:
    """A step of a model of one layer in bf16, batch 1, its keys drawn at random; its attention alone."""
    s = session.scale
    length = LONGER * s.context
    size = length_of(length)
    shape: Row = {"dtype": "bfloat16", "batch": 1, "length": length}
    turns = MORE * s.repeats

    def measure() -> Iterator[Row]:
        keys, values = (session.drawn(1, s.groups, length, s.dim) for _ in range(2))
        with ExitStack() as attached:

            def step(spec: str | None) -> Callable[[], object]:
                model = _model(session, length)
                if spec is not None:
                    attached.enter_context(attach(model, spec, BUDGET))
                cache = DynamicCache(config=model.config)
                cache.update(keys, values, 0)
                token = torch.ones(1, 1, dtype=torch.long)
                return torch.no_grad()(lambda: model(token, past_key_values=cache))

            steps = {f"a step, {spec}, {size}": step(spec) for spec in SPECS}
            yield from session.in_turns("decode", steps, DENSE, step(None), turns, "ms", **shape)

        queries = session.drawn(1, s.heads, 1, s.dim)
        # Faster than what a model calls where it has no mask: heads of a group as queries of one.
        packed = queries.view(1, s.groups, -1, s.dim)
        fastest = lambda: scaled_dot_product_attention(packed, keys, values)  # noqa: E731
        alone = {
            f"attention alone, {spec}, {size}": _attention(spec, queries, keys, values)
            for spec in SPECS
        }
        yield from session.in_turns("decode", alone, PACKED, fastest, turns, "ms", **shape)

    yield size, measure


def _attention(spec: str, queries: Tensor, keys: Tensor, values: Tensor) -> Callable[[], object]:
    """A selection, and attention over what was selected."""
    step = Step(kv_heads=keys.shape[1], ordered=False)
    index, k = parse(spec).build(keys, step), parse_budget(BUDGET).at(keys.shape[2])
    scaling = queries.shape[3] ** -0.5

    def attend() -> Tensor:
        slots = index.select(queries, k, step).indices
        return gather_attention(queries, keys, values, slots, scaling=scaling)

    return attend


def _model(session: Session, length: int) -> LlamaForCausalLM:
    s = session.scale
    config = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=HIDDEN,
        num_hidden_layers=1,
        num_attention_heads=s.heads,
        num_key_value_heads=s.groups,
        head_dim=s.dim,
        vocab_size=HIDDEN,
        max_position_embeddings=2 * length,
    )
    return LlamaForCausalLM(config).bfloat16().eval()


def encode_cases(session: Session) -> Iterator[Case]:
    """The keys of a prompt, encoded into an index block by block, and by the formula all at once."""
    s = session.scale
    for kind in (torch.float32, torch.bfloat16):
        for dtype in DTYPES:
            name = str(kind).removeprefix("torch.")
            what = f"{dtype} of {name}, {s.groups} heads x {length_of(s.captured)}"

            def measure(
                kind: torch.dtype = kind, dtype: str = dtype, what: str = what
            ) -> Iterator[Row]:
                keys = session.drawn(1, s.groups, s.captured, s.dim, dtype=kind)
                element, width = stored(dtype, s.dim)
                codes = torch.empty(*keys.shape[:3], width, dtype=element)
                scale = torch.empty(*keys.shape[:3], 1)
                ours = {what: lambda: quantize_append(keys, codes, scale, 0, dtype=dtype)}
                shape: Row = {"dtype": dtype, "batch": 1, "length": s.captured}
                plain = lambda: quantize(keys, dtype)  # noqa: E731
                yield from session.in_turns("encode", ours, WHOLE, plain, unit="ms", **shape)

            yield what, measure


def noise_cases(session: Session) -> Iterator[Case]:
    """A number for every query and key, block by block in int32, and all at once in int64."""
    s = session.scale
    size = f"{s.heads} heads x {s.captured_queries} queries x {length_of(s.captured)}"

    def measure() -> Iterator[Row]:
        queries = torch.empty(1, s.heads, s.captured_queries, 0)
        ours = {size: lambda: noise(Step(), s.captured, queries)}
        plain = lambda: noise_at_once(s.heads, s.captured_queries, s.captured)  # noqa: E731
        shape: Row = {"batch": 1, "length": s.captured}
        yield from session.in_turns("noise", ours, "int64, all at once", plain, unit="ms", **shape)

    yield size, measure


def noise_at_once(heads: int, count: int, length: int) -> Tensor:
    """The numbers of `noise` at `Step()` [1, heads, count, length], by its formula."""
    head, key = torch.arange(heads)[:, None, None], torch.arange(length)
    position = torch.arange(length - count + 1, length + 1)[:, None]
    places = _mixed(position * 0x85EBCA77 + head * 0xC2B2AE3D)
    return ((_mixed(key * 0x9E3779B1 + places) >> 8).float() / (1 << 24))[None]


def _mixed(x: Tensor) -> Tensor:
    x = x & 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & 0xFFFFFFFF
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & 0xFFFFFFFF
    return x ^ (x >> 16)

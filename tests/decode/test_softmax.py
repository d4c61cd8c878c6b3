"""Models whose softmax has sinks or a softcap decode through an indexer as by transformers' own eager attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.models.gemma2 import modeling_gemma2
from transformers.models.gpt_oss import modeling_gpt_oss

from generation import CHOICES, Slowly, assert_same, generated
from tiny import EXPERTS, prompt, tiny
from topkit.errors import InputError
from topkit.experiments.decode import reader
from topkit.experiments.decode.attach import attach
from topkit.experiments.runs.judged import Exact
from topkit.indexers import Selection
from topkit.kernels.gather_attention import Softmax, attend_all, gather_attention

KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "gpt_oss": (modeling_gpt_oss, EXPERTS),
    "gemma2": (modeling_gemma2, {"attn_logit_softcapping": 3.0}),
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request: Any) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(kind: str) -> Any:
    made = tiny(kind, **KINDS[kind][1])
    generator = torch.Generator().manual_seed(1)
    for name, parameter in made.named_parameters():
        if name.endswith("sinks"):
            parameter.data = 2 * torch.randn(parameter.shape, generator=generator)
    return made


class Masked(Slowly):
    """The model's own eager attention, whose mask leaves each head what was chosen for it."""

    def __init__(self, model: Any, spec: str, k: int, until: int, kind: str) -> None:
        super().__init__(model, spec, k, until)
        self.eager = KINDS[kind][0].eager_attention_forward

    def __exit__(self, *_: object) -> None:
        self.model.set_attn_implementation("eager")

    def attend(self, module, query, key, value, mask, scaling=None, **options: Any):
        rows, heads, count, _ = query.shape
        length, group = key.shape[2], heads // key.shape[1]
        least = torch.finfo(torch.float32).min
        own = torch.full((rows, heads, count, length), least)
        for row in range(rows):
            for i in range(count):
                stop = length - count + i + 1
                slots = torch.arange(stop) if mask is None else mask[row, 0, i].nonzero()[:, 0]
                for head in range(heads):
                    kept = list(range(len(slots)))
                    sparse = stop > self.until and options.get("sliding_window") is None
                    if sparse and len(slots):
                        keys = key[row, head // group, slots]
                        kept = self.choose(query[row, head, i], keys, int(self.k))
                    own[row, head, i, slots[kept]] = 0.0
        return self.eager(module, query, key, value, own, scaling=scaling, **options)


@pytest.mark.parametrize("spec", CHOICES)
def test_decodes_as_eager_attention_over_what_was_chosen(model: Any, kind: str, spec: str) -> None:
    given = prompt(2, padded=True)
    with Masked(model, spec, 6, 24, kind):
        slow = generated(model, given, 6)
    with attach(model, spec, k=6):
        fast = generated(model, given, 6)
    assert_same(fast, slow)
    dense = generated(model, given, 6)
    assert max((a - b).abs().max() for a, b in zip(dense[1], fast[1], strict=True)) > 1e-2


@pytest.mark.parametrize("how", [{"indexer": "exact"}, {"indexer": "dense", "k": None}])
def test_all_keys_are_the_models_own_attention(model: Any, how: dict[str, Any]) -> None:
    given = prompt(2, padded=True)
    model.set_attn_implementation("eager")
    eager = generated(model, given, 6)
    with attach(model, **{"k": 64, **how}):
        assert_same(generated(model, given, 6), eager)


def test_sparse_attention_without_the_softmax_of_the_model_is_caught(
    model: Any, kind: str, monkeypatch: Any
) -> None:
    """The mutant: what was chosen is attended to without sinks and softcap."""
    given, real = prompt(2, padded=True), reader.sparse_attention
    with Masked(model, "exact()", 6, 24, kind):
        slow = generated(model, given, 6)
    monkeypatch.setattr(reader, "sparse_attention", lambda *args: real(*args[:5]))
    with attach(model, "exact", k=6), pytest.raises(AssertionError):
        assert_same(generated(model, given, 6), slow)


def test_what_is_observed_counts_the_softmax_of_the_model(model: Any, kind: str) -> None:
    given = prompt()
    with attach(model, "exact", k=64, observe=True) as attached:
        generated(model, given, 4)
    rows = attached.fidelity().to_pylist()
    assert rows
    for row in rows:
        assert row["output_error"] == pytest.approx(0, abs=1e-4) and row["recall"] == 1
        assert row["mass_ratio"] == pytest.approx(1)
    # Sinks have weight that no key has.
    assert (min(row["mass"] for row in rows) < 0.99) == (kind == "gpt_oss")
    with attach(model, "exact", k=3, observe=True) as attached:
        generated(model, given, 4)
    assert all(0 < row["output_error"] < 10 for row in attached.fidelity().to_pylist())


def tensors(seed: int = 0) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(2, heads, count, 8, generator=g) for heads, count in ((4, 3), (2, 20), (2, 20))
    )


@pytest.mark.parametrize(("softcap", "with_sinks"), [(None, True), (2.0, False), (2.0, True)])
def test_judged_by_the_softmax_of_the_model(softcap: float | None, with_sinks: bool) -> None:
    queries, keys, values = tensors(3)
    sinks = torch.tensor([0.5, -3.0, 40.0, -1.0]) if with_sinks else None
    indices = torch.randperm(18, generator=torch.Generator().manual_seed(2))[:5].expand(2, 4, 3, 5)
    how: dict[str, Any] = {"scaling": 0.3, "softmax": Softmax(sinks, softcap)}
    (judged,) = Exact(queries, keys, values, 5, **how).judged(Selection(indices), 5)
    scores = 0.3 * queries @ keys.repeat_interleave(2, 1).mT
    scores = scores if softcap is None else softcap * (scores / softcap).tanh()
    unseen = torch.ones(3, 20).tril(17) == 0
    weights = scores.masked_fill(unseen, -torch.inf).exp()
    total = weights.sum(-1) + (0 if sinks is None else sinks.exp()[:, None])
    chosen = weights.gather(-1, indices)
    torch.testing.assert_close(judged.columns["mass"], chosen.sum(-1) / total, rtol=1e-4, atol=1e-6)
    every = values.repeat_interleave(2, 1)
    dense = (weights / total[..., None]) @ every
    own = chosen.sum(-1) + (0 if sinks is None else sinks.exp()[:, None])
    left = torch.zeros_like(weights).scatter(-1, indices, chosen / own[..., None]) @ every
    error = (left - dense).norm(dim=-1) / dense.norm(dim=-1)
    torch.testing.assert_close(judged.columns["output_error"], error, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("lists", [4, 2, 1])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("with_sinks", [True, False])
def test_gathered_attention_by_a_loop(lists: int, softcap: float | None, with_sinks: bool) -> None:
    queries, keys, values = tensors()
    sinks = torch.tensor([0.5, -3.0, 4.0, -torch.inf]) if with_sinks else None
    g = torch.Generator().manual_seed(1)
    indices = torch.stack([torch.randperm(20, generator=g)[:6] for _ in range(2 * lists * 3)])
    indices = indices.view(2, lists, 3, 6)
    indices[0, 0, 0, 4:] = -1
    indices[1, 0, 1] = -1
    out = gather_attention(
        queries, keys, values, indices, scaling=0.3, softmax=Softmax(sinks, softcap)
    )
    for row in range(2):
        for head in range(4):
            for i in range(3):
                slots = [s for s in indices[row, head * lists // 4, i].tolist() if s >= 0]
                logits = [
                    0.3 * float(queries[row, head, i] @ keys[row, head // 2, s]) for s in slots
                ]
                if softcap:
                    logits = [softcap * torch.tensor(x / softcap).tanh().item() for x in logits]
                weights = torch.tensor(logits).exp()
                total = weights.sum() + (0 if sinks is None else sinks[head].exp())
                want = torch.zeros(8)
                if slots:
                    want = (weights / total) @ values[row, head // 2, slots]
                torch.testing.assert_close(out[row, head, i], want, rtol=1e-4, atol=1e-5)


def test_all_slots_chosen_are_all_slots() -> None:
    queries, keys, values = tensors(2)
    softmax = Softmax(torch.tensor([0.5, -3.0, 4.0, 1.0]), 2.0)
    indices = torch.arange(20).expand(2, 1, 3, 20)
    chosen = gather_attention(queries, keys, values, indices, scaling=0.3, softmax=softmax)
    every = attend_all(queries, keys, values, scaling=0.3, softmax=softmax)
    torch.testing.assert_close(chosen, every)


@pytest.mark.parametrize(
    ("softmax", "more", "said"),
    [
        (Softmax(torch.zeros(3)), {}, r"a logit for each of 4 query heads; got \[3\]"),
        (Softmax(softcap=0.0), {}, "softcap must be above 0; got 0"),
        (Softmax(torch.zeros(4)), {"backend": "triton"}, "sinks or a softcap|GPU"),
    ],
)
def test_what_a_softmax_cannot_be_is_refused(softmax: Any, more: dict[str, Any], said: str) -> None:
    queries, keys, values = tensors()
    indices = torch.zeros(2, 4, 3, 1, dtype=torch.long)
    with pytest.raises(InputError, match=said):
        gather_attention(queries, keys, values, indices, scaling=1.0, softmax=softmax, **more)

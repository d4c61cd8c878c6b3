"""The two stages of a lightning indexer's training: what is learnt, kept, gone on with and refused."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tiny import DSA, EXPERTS, tiny, tokens
from topkit.errors import InputError
from topkit.experiments.model.digests import weights_digest
from topkit.experiments.model.record import record
from topkit.experiments.train.divergence import Attended, divergence
from topkit.experiments.train.stages import Stages, train_for, train_weights
from topkit.experiments.train.teacher import Teacher
from topkit.indexers import keep
from topkit.indexers.lightning import lightning
from topkit.indexers.lightning_weights import load

SHORT = Stages(heads=2, dim=32, steps=3, sparse_steps=3, keep=6, queries=9, rate=1e-2)


def drawn(start: int, vocabulary: int = 32, shape: tuple[int, int] = (2, 24)) -> Iterator[Tensor]:
    """The batches from a step on, each by its number."""
    while True:
        generator = torch.Generator().manual_seed(start)
        yield torch.randint(0, vocabulary, shape, generator=generator)
        start += 1


def test_both_stages_learn_where_a_frozen_model_looks(tmp_path: Path) -> None:
    model = tiny(vocab_size=32, head_dim=16)
    before = {name: p.clone() for name, p in model.named_parameters()}
    stages = Stages(heads=4, dim=16, steps=30, sparse_steps=10, keep=8, queries=24, rate=1e-2, sparse_rate=1e-3)  # fmt: skip
    batches = lambda start: drawn(start, shape=(4, 48))  # noqa: E731
    path = train_weights(model, batches, tmp_path, stages, data="books")
    assert path is not None
    first, last = (divergence_of(model, None, stages), divergence_of(model, path, stages))
    assert last < 0.8 * first
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert model.config._attn_implementation == "sdpa"
    # They know whose they are, whatever dtype the model is loaded in, and what they were learnt on.
    recipe = lightning(str(path))
    assert weights_digest(model) in recipe.models() == keep(recipe, sink=1).models()
    assert weights_digest(copy.deepcopy(model).half()) in recipe.models()
    assert load(str(path)).metadata["data"] == "books" and load(str(path)).heads == 4


def divergence_of(model: Any, path: Path | None, stages: Stages) -> float:
    """The mean divergence of a batch that was not trained on."""
    begin = None if path is None else load(str(path))
    teacher = Teacher(model, stages.heads, stages.dim, None, 0, begin=begin)
    return teacher.loss(next(drawn(10_000, shape=(4, 48))), 0)[1].item()


def test_a_training_that_stopped_comes_to_the_same_file(tmp_path: Path) -> None:
    model = tiny(vocab_size=32)
    whole = train_weights(model, drawn, tmp_path / "whole", SHORT)
    for _ in range(SHORT.every - 1):
        assert train_weights(model, drawn, tmp_path / "parts", SHORT, stop_after=0) is None
    parts = train_weights(model, drawn, tmp_path / "parts", SHORT, stop_after=0)
    assert whole is not None and parts is not None and whole.name == parts.name
    other = train_weights(model, drawn, tmp_path / "other", replace(SHORT, seed=1))
    assert other is not None and other.name != whole.name


def test_a_half_written_checkpoint_is_passed_over_and_said(tmp_path: Path) -> None:
    model, said = tiny(vocab_size=32), list[str]()
    whole = train_weights(model, drawn, tmp_path / "whole", SHORT)
    for _ in range(3):
        train_weights(model, drawn, tmp_path / "cut", SHORT, stop_after=0)
    newest = next((tmp_path / "cut" / "checkpoints").glob("step-3-*.pt"))
    newest.write_bytes(newest.read_bytes()[:-100])
    path = train_weights(model, drawn, tmp_path / "cut", SHORT, report=said.append)
    assert path is not None and whole is not None and path.name == whole.name
    assert any("half-written" in line for line in said)
    assert any("from step 2, the last whole checkpoint" in line for line in said)


def test_a_loss_that_is_nan_stops_and_keeps_the_weights_before_it(
    tmp_path: Path, monkeypatch: Any
) -> None:
    model, loss = tiny(vocab_size=32), Teacher.loss

    def failing(self: Teacher, ids: Tensor, number: int, kept: int | None = None) -> Any:
        one, beside = loss(self, ids, number, kept)
        return (one * torch.nan if number == 4 else one), beside

    monkeypatch.setattr(Teacher, "loss", failing)
    with pytest.raises(InputError, match="step 4: loss is nan"):
        train_weights(model, drawn, tmp_path, SHORT)
    kept = next((tmp_path / "checkpoints").glob("step-4-*.pt"))
    state = torch.load(kept, weights_only=True)["model"]
    assert all(x.isfinite().all() for x in state.values()) and not list(tmp_path.glob("*.safetensors"))  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"keep": 0}, "keep must be at least 1; got 0"),
        ({"answers": 0.5}, "answers must count once or more; got 0.5 times"),
        ({"steps": 0, "sparse_steps": 0}, "a training has steps"),
        ({"model_too": True, "sparse_steps": 0}, "the sparse stage, which has no steps"),
    ],
)
def test_stages_that_are_none_are_refused(changed: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        replace(SHORT, **changed)


def test_another_folder_data_or_beginning_is_refused(tmp_path: Path) -> None:
    model = tiny(vocab_size=32)
    path = train_weights(model, drawn, tmp_path, SHORT)
    with pytest.raises(InputError, match="was begun with other settings"):
        train_weights(model, drawn, tmp_path, replace(SHORT, keep=5))
    with pytest.raises(InputError, match="data must be books or mixture; got 'poems'"):
        train_for("reference", tmp_path, tmp_path / "x", data="poems", device="cpu")
    with pytest.raises(InputError, match=r"of another shape: 0\.gates is \(2, 32\), of \(1, 32\)"):
        train_weights(model, drawn, tmp_path / "few", replace(SHORT, heads=1), start_from=str(path))


def test_more_heads_go_on_from_a_files_scores(tmp_path: Path) -> None:
    """Those that it has not begin with gates of zero: the divergence is the file's."""
    model, ids = tiny(vocab_size=32), next(drawn(77))
    begin = load(str(train_weights(model, drawn, tmp_path, SHORT)))
    same, more = (Teacher(model, heads, 32, None, 3, begin=begin) for heads in (2, 5))
    assert more.loss(ids, 0)[1].item() == pytest.approx(same.loss(ids, 0)[1].item(), rel=1e-4)


@pytest.mark.parametrize("alike", [True, False])
def test_the_loss_is_that_of_every_query_that_was_drawn(alike: bool) -> None:
    """From what a pass of the model records, layer by layer."""
    model, ids = tiny(), tokens(1, 30)
    counts = None if alike else 1.0 + torch.arange(30.0)[None] % 4
    teacher = Teacher(model, heads=3, dim=32, queries=7, seed=5)
    for kept in (None, 4):
        loss, beside = teacher.loss(ids, 2, kept, counts)
        random = torch.Generator().manual_seed(5 * 1_000_003 + 2)
        at = torch.randperm(30, generator=random)[:7].sort().values
        records, slow = record(model, ids, torch.arange(30), inputs=True), []
        for layer, seen in records.items():
            weights, hidden, rope = teacher.weights(layer), seen.hidden, seen.rope
            assert hidden is not None and rope is not None
            some = rope[0][:, at], rope[1][:, at]
            own = weights.queries(hidden[:, at], some), weights.keys(hidden, rope)
            own_counts = None if counts is None else counts[:, at]
            attended = Attended(seen.queries[:, :, at], seen.keys, seen.scaling, at, own_counts)
            slow.append(divergence(*own, weights.gates(hidden[:, at]), attended, kept))
        assert loss.item() == pytest.approx(torch.stack(slow).mean().item(), rel=1e-5)
        assert beside.item() == loss.item()
        loss.backward()
    assert all(x.grad is not None and x.grad.any() for x in teacher.parameters())
    assert all(p.grad is None for p in model.parameters())


def test_the_model_learns_by_its_own_loss_alone_where_it_is_asked(tmp_path: Path) -> None:
    """Indexer and model are apart: neither's loss moves the other."""
    model, ids = tiny(vocab_size=32), next(drawn(5))
    teacher = Teacher(model, 2, 32, None, 0, model_too=True)
    loss, beside = teacher.loss(ids, 0, 24)  # all keys: the model as it is
    dense = torch.nn.functional.cross_entropy(
        model(ids, use_cache=False).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
    )
    assert (loss - beside).item() == pytest.approx(dense.item(), rel=1e-4)
    of_model = torch.autograd.grad(dense, list(model.parameters()))
    loss.backward()
    for p, wanted in zip(model.parameters(), of_model, strict=True):
        assert p.grad is not None
        torch.testing.assert_close(p.grad, wanted, rtol=1e-3, atol=1e-5)
    before = weights_digest(model)
    path = train_weights(model, drawn, tmp_path, replace(SHORT, model_too=True))
    assert path is not None and (tmp_path / "model" / "model.safetensors").is_file()
    assert (
        before != weights_digest(model) and weights_digest(model) in lightning(str(path)).models()
    )


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("gpt_oss", EXPERTS, "sinks"),
        ("gemma2", {"attn_logit_softcapping": 5.0}, "softcapped"),
        ("gptj", {"rotary_dim": 4}, "AttentionInterface"),
        ("deepseek_v32", DSA, "no attention modules with a q_proj|keys of its own choice"),
    ],
)
def test_nothing_is_learnt_from_attention_of_another_kind(
    kind: str, changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    model = tiny(kind, **changes)
    with pytest.raises(InputError, match=reason):
        train_weights(model, lambda start: [tokens(1, 30)], tmp_path, SHORT)
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize("stages", [Stages(), SHORT, Stages(steps=0, sparse_steps=5)])
def test_rates_rise_and_fall_in_each_stage(stages: Stages) -> None:
    rates = [stages.rate_of(step) for step in range(stages.every)]
    dense, sparse = rates[: stages.steps], rates[stages.steps :]
    assert all(0 < rate <= stages.rate for rate in dense)
    assert all(0 < rate <= stages.sparse_rate for rate in sparse)
    if len(dense) > 50:
        assert max(dense) > 0.9 * stages.rate and dense[-1] < 0.15 * stages.rate

"""Training of projected's maps: its loss by hand, what it learns, and going on where it stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tiny import DSA, tiny, tokens
from topkit.errors import InputError
from topkit.experiments.model.compatibility import probe, unserved
from topkit.experiments.model.digests import weights_digest
from topkit.experiments.model.record import record
from topkit.experiments.train.projected import Student, train_projected
from topkit.indexers import keep
from topkit.indexers.projected import projected
from topkit.indexers.projected_file import load


def batches(start: int = 0):
    """Batch after batch from a step on, each of its own."""
    while True:
        yield torch.randint(0, 32, (2, 40), generator=torch.Generator().manual_seed(start))
        start += 1


def trained(model, folder: Path, **options):
    settings: dict[str, Any] = {"rank": 2, "steps": 12, "queries": 16} | options
    return train_projected(model, batches, folder, name="tiny", **settings)


def test_the_loss_is_the_formula():
    """KL of every query and head that was drawn, one at a time, from what a pass of the model records."""
    model, ids = tiny(), tokens(1, 30)
    student = Student(model, rank=3, queries=7, seed=5)
    student.begin(ids)
    # Maps that are not what they begin as.
    g = torch.Generator().manual_seed(0)
    for name, x in student.maps.items():
        student.maps[name] = torch.randn(x.shape, generator=g).requires_grad_()
    loss = student.loss(ids, 4)
    drawn = torch.Generator().manual_seed(5 * 1_000_003 + 4)
    records, slow = record(model, ids, torch.arange(30)), []
    for layer in (0, 1):
        seen = records[layer]
        heads, groups = seen.queries.shape[1], seen.keys.shape[1]
        for at in torch.randint(1, 30, (7,), generator=drawn).tolist():
            for head in range(heads):
                group = head // (heads // groups)
                q, keys = seen.queries[0, head, at], seen.keys[0, group, : at + 1]
                target = (seen.scaling * keys.double() @ q.double()).softmax(-1)
                low_q = student.maps[f"{layer}.queries"][head] @ q
                low = keys @ student.maps[f"{layer}.keys"][group].mT @ low_q
                logs = (seen.scaling * low.double()).log_softmax(-1)
                slow.append((target * (target.log() - logs)).sum())
    assert loss.item() == pytest.approx(torch.stack(slow).mean().item(), rel=1e-4)
    loss.backward()
    assert all(x.grad is not None and x.grad.any() for x in student.maps.values())
    assert all(p.grad is None for p in model.parameters())


def test_maps_begin_as_the_leading_directions_of_the_keys():
    """At full rank they keep every product; at any, as much of the keys as any directions do."""
    model, ids = tiny(), tokens(2, 30)
    width = model.config.head_dim
    records = record(model, ids[:1], torch.arange(30))
    student = Student(model, rank=width, queries=3, seed=0)
    student.begin(ids[:1])
    assert student.loss(ids[:1], 0).item() == pytest.approx(0, abs=1e-4)
    student = Student(model, rank=2, queries=3, seed=0)
    student.begin(ids[:1])
    for layer in (0, 1):
        keys = records[layer].keys[0, 0].double()
        onto = student.maps[f"{layer}.keys"][0].double()
        torch.testing.assert_close(onto @ onto.mT, torch.eye(2).double(), atol=1e-5, rtol=0)
        values = torch.linalg.svdvals(keys)
        assert (keys @ onto.mT).norm().item() == pytest.approx(values[:2].norm().item(), rel=1e-5)


def test_it_learns_where_each_head_looks(tmp_path):
    model = tiny(vocab_size=32, head_dim=16)
    before = {name: p.clone() for name, p in model.named_parameters()}
    path = trained(model, tmp_path, steps=75, learning_rate=3e-2)
    assert path is not None
    # Of tokens that were in no batch, from the same places.
    held = next(batches(1000))
    begun, learnt = (Student(model, 2, 16, seed=9) for _ in range(2))
    begun.begin(next(batches()))
    learnt.maps = {name: x.float() for name, x in load(str(path)).tensors.items()}
    assert learnt.loss(held, 0) < 0.95 * begun.loss(held, 0)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    recipe = projected(str(path))
    assert weights_digest(model) in recipe.models()
    assert recipe.widths()["head_dim"] == 16 and load(str(path)).rank == 2


def test_it_goes_on_where_it_stopped(tmp_path):
    model = tiny(vocab_size=32, head_dim=16)
    whole = trained(model, tmp_path / "whole")
    assert whole is not None
    steps = 0
    while (parts := trained(model, tmp_path / "parts", stop_after=-1)) is None:
        steps += 1
    assert steps == 11  # one step a call, and the last one ends it
    assert parts.read_bytes() == whole.read_bytes() and parts.name == whole.name
    again = trained(model, tmp_path / "parts")
    assert again == parts
    with pytest.raises(InputError, match="was begun with another model or other settings"):
        trained(model, tmp_path / "parts", rank=3)
    with pytest.raises(InputError, match="was begun with another model or other settings"):
        trained(tiny(vocab_size=32, head_dim=16, seed=2), tmp_path / "parts")
    state = tmp_path / "parts" / "tiny-projected.pt"
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(InputError, match="delete it to begin anew"):
        trained(model, tmp_path / "parts")


def test_another_model_is_refused_by_name(tmp_path):
    model = tiny(vocab_size=32, head_dim=16)
    recipe = keep(projected(str(trained(model, tmp_path, steps=1))), sink=1)
    assert not unserved(model, [recipe], probe(model))
    for other in (
        tiny(vocab_size=32, head_dim=16, seed=2),
        tiny(vocab_size=32, head_dim=8),
    ):
        (reason,) = unserved(other, [recipe], probe(other)).values()
        assert "was made for another model than this" in reason


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"num_attention_heads": 8}, "for 4 heads"), ({"num_key_value_heads": 4}, "for 2 kv_heads")],
)
def test_heads_that_maps_are_not_for_are_named(tmp_path, changes, says):
    """Of a file that says of no model, too."""
    from safetensors.torch import load_file, save_file

    path = trained(tiny(vocab_size=32, head_dim=16), tmp_path, steps=1)
    assert path is not None
    plain = tmp_path / "plain.safetensors"
    save_file(load_file(path), plain, {"kind": "projected"})
    other = tiny(vocab_size=32, head_dim=16, **changes)
    (reason,) = unserved(other, [projected(str(plain))], probe(other)).values()
    assert says in reason


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("gemma2", {"attn_logit_softcapping": 5.0}, "softcapped"),
        ("deepseek_v32", DSA, "keys of its own choice"),
    ],
)
def test_nothing_is_learnt_from_attention_of_another_kind(kind, changes, reason, tmp_path):
    with pytest.raises(InputError, match=reason):
        trained(tiny(kind, **changes), tmp_path, steps=1)
    assert not list(tmp_path.iterdir())


def test_a_rank_above_the_heads_width_is_refused(tmp_path):
    with pytest.raises(InputError, match="rank must be at most the head's 16 dimensions; got 17"):
        trained(tiny(vocab_size=32, head_dim=16), tmp_path, rank=17)
    assert not list(tmp_path.iterdir())

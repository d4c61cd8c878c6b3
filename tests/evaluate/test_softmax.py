"""Models whose softmax has sinks or a softcap are evaluated with it, and judged by it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from transformers import AutoTokenizer

import topkit
from own_indexers import OWN
from tiny import EXPERTS, READS_REFERENCE, tiny
from topkit.experiments.capture.from_model import capture_passages
from topkit.experiments.capture.prompts import Passage
from topkit.experiments.evaluate import lists
from topkit.experiments.model.load import REFERENCE
from topkit.experiments.runs.parts import read_table
from topkit.experiments.tasks import make_task
from topkit.indexers.base import Step
from topkit.indexers.scored import Codes
from topkit.indexers.sign import sign

SHAPE = {**READS_REFERENCE, "max_position_embeddings": 1024}
KINDS: dict[str, dict[str, Any]] = {
    "gpt_oss": EXPERTS,
    "gemma2": {"attn_logit_softcapping": 3.0, "layer_types": ["full_attention"] * 2},
}
TASK = make_task("niah-multikey", questions=2, distractors=2)
LENGTH = 220


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(REFERENCE)


@pytest.fixture(scope="module", params=KINDS)
def model(request: Any) -> Any:
    made = tiny(request.param, **{**SHAPE, **KINDS[request.param]})
    generator = torch.Generator().manual_seed(1)
    for name, parameter in made.named_parameters():
        if name.endswith("sinks"):
            parameter.data = 2 * torch.randn(parameter.shape, generator=generator)
    return made


def evaluated(model: Any, out: Path, tokenizer: Any, *cells: Any, **how: Any) -> list[dict]:
    given = {"tokenizer": tokenizer, "observe": False, **how}
    return topkit.evaluate(model, TASK, LENGTH, 1, *cells, out=out, **given).to_pylist()


def asked(tokenizer: Any) -> Iterator[tuple[int, torch.Tensor, list[int]]]:
    """The number of each question, all that is read before its answer, and the answer."""
    prompt = TASK.sample(tokenizer, LENGTH, 0, seed=0)
    for number, question in enumerate(prompt.questions):
        yield number, torch.tensor([[*prompt.ids, *question.ids]]), list(question.answer_ids)


@torch.no_grad()
def nll(model: Any, ids: torch.Tensor, answer: list[int]) -> list[float]:
    """What each of the answer's tokens costs, read one by one behind the question's last."""
    past = model(ids[:, :-1], use_cache=True).past_key_values
    costs, fed = list[float](), [int(ids[0, -1]), *answer[:-1]]
    for token, wanted in zip(fed, answer, strict=True):
        out = model(torch.tensor([[token]]), past_key_values=past, use_cache=True)
        costs.append(-float(out.logits[0, -1].float().log_softmax(-1)[wanted]))
    return costs


def test_full_attention_says_what_eager_attention_says(
    model: Any, tmp_path: Path, tokenizer: Any
) -> None:
    assert model.config._attn_implementation == "eager"
    rows = evaluated(model, tmp_path, tokenizer)
    for (number, ids, answer), row in zip(asked(tokenizer), rows, strict=True):
        assert row["question"] == number
        out = model.generate(ids, max_new_tokens=row["said_tokens"], do_sample=False)
        assert row["said"] == tokenizer.decode(out[0, ids.shape[1] :]).partition("\n")[0]
        assert row["nll"] == pytest.approx(sum(nll(model, ids, answer)) / len(answer), abs=1e-4)


def test_all_keys_are_full_attention_and_some_are_not(
    model: Any, tmp_path: Path, tokenizer: Any
) -> None:
    rows = evaluated(model, tmp_path, tokenizer, ["exact", "sampled"], [4, 2 * LENGTH])
    for row in rows:
        if row["budget"] == str(2 * LENGTH):
            dense = next(r for r in rows if not r["budget"] and r["question"] == row["question"])
            assert row["kl"] == pytest.approx(0, abs=1e-5)
            assert row["nll"] == pytest.approx(dense["nll"], abs=1e-4)
            assert row["said"] == dense["said"]
        elif row["budget"]:
            assert row["kl"] > 1e-3


def by_attach(model: Any, tokenizer: Any) -> list[float]:
    with topkit.attach(model, "exact", k=6):
        every = [nll(model, ids, answer) for _, ids, answer in asked(tokenizer)]
    return [sum(costs) / len(costs) for costs in every]


def test_what_is_chosen_is_attended_to_as_attach_has_it(
    model: Any, tmp_path: Path, tokenizer: Any, monkeypatch: Any
) -> None:
    """And the mutant: chosen keys without sinks and softcap are noticed."""
    slow, own = by_attach(model, tokenizer), lists.Lists.attend
    for mutant in (False, True):
        if mutant:
            monkeypatch.setattr(lists.Lists, "attend", lambda *given: own(*given[:4]))
        given: dict[str, Any] = {"sparse_from": "answer"}
        rows = evaluated(model, tmp_path / str(mutant), tokenizer, "exact", 6, **given)
        fast = [row["nll"] for row in rows if row["budget"]]
        assert (fast == pytest.approx(slow, abs=1e-4)) != mutant


def test_what_is_observed_counts_the_softmax_of_the_model(
    model: Any, tmp_path: Path, tokenizer: Any
) -> None:
    """As an attachment judges it; and all keys give no error, but less than all of the mass beside a sink."""
    given: dict[str, Any] = {"sparse_from": "answer", "observe": "rows"}
    evaluated(model, tmp_path, tokenizer, "exact", [6, 2 * LENGTH], **given)
    table = read_table(tmp_path / "fidelity").to_pylist()
    sinks = model.config.model_type == "gpt_oss"
    every = [row for row in table if row["budget"] != "6"]
    assert every and all(row["output_error"] == pytest.approx(0, abs=1e-4) for row in every)
    assert (min(row["mass"] for row in every) < 0.999) == sinks
    for number, ids, answer in asked(tokenizer):
        with topkit.attach(model, "exact", k=6, observe=True) as attached:
            nll(model, ids, answer)
        slow = {(r["position"], r["layer"], r["head"]): r for r in attached.fidelity().to_pylist()}
        fast = [r for r in table if r["budget"] == "6" and r["question"] == number]
        assert len(fast) == len(slow) > 0
        for row in fast:
            other = slow[row["position"], row["layer"], row["head"]]
            for name in ("recall", "mass", "mass_ratio", "output_error", "entropy"):
                assert row[name] == pytest.approx(other[name], abs=1e-4), name


def test_sinks_beside_an_indexer_of_the_models_own(tmp_path: Path, tokenizer: Any) -> None:
    reads = {name: x for name, x in READS_REFERENCE.items() if name != "head_dim"}
    made = tiny("hy_v4", **{**OWN["glm_moe_dsa"][0], **reads})
    for name, parameter in made.named_parameters():
        if name.endswith("sinks"):
            parameter.data = torch.linspace(-1, 3, parameter.numel())
    rows = evaluated(made, tmp_path, tokenizer, "native", 8)
    own = [sum(nll(made, ids, answer)) / len(answer) for _, ids, answer in asked(tokenizer)]
    assert [row["nll"] for row in rows if row["budget"]] == pytest.approx(own, abs=1e-4)


@dataclass(frozen=True)
class looks(sign):
    """Keeps what its steps say of the softmax, by layer."""

    seen: ClassVar[dict[int, Any]] = {}

    def encode(self, keys: torch.Tensor, step: Step) -> Codes:
        self.seen[step.layer] = step.softmax
        return super().encode(keys, step)

    def score(self, queries: torch.Tensor, codes: Codes, step: Step) -> torch.Tensor:
        self.seen[step.layer] = step.softmax
        return super().score(queries, codes, step)


@pytest.mark.parametrize("way", ["evaluate", "attach", "capture and measure"])
def test_a_step_shows_the_softmax_of_its_layer(
    model: Any, way: str, tmp_path: Path, tokenizer: Any
) -> None:
    looks.seen.clear()
    if way == "evaluate":
        evaluated(model, tmp_path, tokenizer, looks(), 4)
    elif way == "attach":
        with topkit.attach(model, looks(), k=4):
            for _, ids, answer in asked(tokenizer):
                nll(model, ids, answer)
    else:
        ids = next(asked(tokenizer))[1][0].tolist()
        passage = Passage(tuple(ids), (len(ids) - 1,))
        capture = capture_passages(model, [passage], out=tmp_path / "c", origin={"model": "tiny"})
        topkit.measure(capture, looks(), 4)
    assert looks.seen
    for layer, softmax in looks.seen.items():
        sinks = getattr(model.model.layers[layer].self_attn, "sinks", None)
        assert softmax.softcap == getattr(model.config, "attn_logit_softcapping", None)
        assert (softmax.sinks is None) == (sinks is None)
        assert sinks is None or (softmax.sinks.equal(sinks) and not softmax.sinks.requires_grad)

"""Models with an indexer of their own: those that can be driven, their line, and the others' refusals."""

from __future__ import annotations

from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch

from own_indexers import OTHERS, OWN, with_indexer
from tiny import READS_REFERENCE, folder, prompt, tiny
from topkit import attach
from topkit.cli.commands import app
from topkit.cli.exits import run
from topkit.errors import InputError
from topkit.experiments.capture.from_model import capture_passages
from topkit.experiments.capture.prompts import Passage
from topkit.experiments.evaluate.evaluate import evaluate
from topkit.experiments.model.load import REFERENCE, load
from topkit.experiments.model.own_indexer import choosing, indexers
from topkit.experiments.model.record import record


@pytest.mark.parametrize("kind", OTHERS)
def test_what_cannot_be_driven_is_refused_alike_before_anything_runs(
    kind: str, tmp_path: Path
) -> None:
    model = with_indexer(kind, vocab_size=4096)
    own_tokens = model.generate(**prompt(), max_new_tokens=2, do_sample=False)
    name, tokenizer = type(model).__name__, load(REFERENCE)[1]
    said = rf"the indexer of {kind}\w* \(\w+\) chooses blocks, or pooled or compressed keys.* deepseek_v32"
    with pytest.raises(InputError, match=f"{name} cannot be attached to: {said}"):
        attach(model, "sign", k=4)
    passages = [Passage(range(2, 40), [36, 37])]
    with pytest.raises(InputError, match=f"{name} cannot be captured: {said}"):
        capture_passages(model, passages, origin={}, out=tmp_path / "capture")
    with pytest.raises(InputError, match=f"{name} cannot be evaluated: {said}"):
        evaluate(model, "niah-single", 200, 1, "sign", 4, out=tmp_path / "run", tokenizer=tokenizer)
    assert not list(tmp_path.iterdir())
    again = model.generate(**prompt(), max_new_tokens=2, do_sample=False)
    assert again.equal(own_tokens)


def test_a_refusal_is_one_line(tmp_path: Path, capsys: Any) -> None:
    path = folder(tmp_path / "model", with_indexer("qwen4_exp_text", **_reads("qwen4_exp_text")))
    words = "--task niah-single --samples 1 --length 200 --indexer exact -k 8 --out".split()
    assert run(app, ["evaluate", str(path), *words, str(tmp_path / "run")]) == 2
    (line,) = (x for x in capsys.readouterr().err.splitlines() if "cannot" in x)
    assert "the indexer of qwen4_exp_text (Qwen4ExpTextQSAIndexer)" in line


def _reads(kind: str) -> dict[str, Any]:
    return {name: x for name, x in READS_REFERENCE.items() if name not in OTHERS[kind]}


def test_sinks_beside_an_indexer_are_attended_to_with_its_lists() -> None:
    model = tiny("hy_v4", **OWN["glm_moe_dsa"][0])
    for name, parameter in model.named_parameters():
        if name.endswith("sinks"):
            parameter.data = torch.linspace(-1, 3, parameter.numel())
    model.set_attn_implementation("eager")
    own = model.generate(**prompt(), max_new_tokens=4, do_sample=False, output_logits=True,
                         return_dict_in_generate=True)  # fmt: skip
    with attach(model, "native", k=8):
        same = model.generate(**prompt(), max_new_tokens=4, do_sample=False, output_logits=True,
                              return_dict_in_generate=True)  # fmt: skip
    for one, other in zip(own.logits, same.logits, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_sinks_beside_an_indexer_are_what_capture_refuses() -> None:
    with pytest.raises(InputError, match=r"HYV4ForCausalLM cannot be captured: .*sinks"):
        record(tiny("hy_v4", **OWN["glm_moe_dsa"][0]), torch.arange(8)[None], torch.arange(8))


@pytest.mark.parametrize("kind", OWN)
def test_the_line_says_where_an_indexer_chooses_and_where_its_lists_are_reused(kind: str) -> None:
    model = with_indexer(kind)
    with attach(model, "sign", k=4) as attached:
        assert attached.outline.endswith(f"; an indexer of its own (8 keys) in {OWN[kind][1]}")
        model.generate(**prompt(), max_new_tokens=2, do_sample=False)


@pytest.mark.parametrize("kind", ["mistral_large4", "glm5_next"])
def test_models_that_also_see_pictures_are_loaded_whole(
    kind: str, tmp_path: Path, capsys: Any
) -> None:
    path = folder(
        tmp_path / "model", with_indexer(kind, vocab_size=4096, max_position_embeddings=512)
    )
    words = "--task niah-single --samples 1 --length 200 --indexer native -k 8 --out".split()
    code = run(app, ["evaluate", str(path), *words, str(tmp_path / "run")])
    said = capsys.readouterr()
    if kind in OTHERS:
        assert code == 2 and "the indexer of glm5_next" in said.err
    else:
        assert code == 0 and "native()" in said.out


def test_lists_are_another_s_in_the_thread_that_asked_alone() -> None:
    model, given = with_indexer("deepseek_v32"), prompt()
    own = model.generate(**given, max_new_tokens=3, do_sample=False)
    seen: list[int] = []

    def choose(forward: Any, layer: int, arguments: dict[str, Any]) -> torch.Tensor:
        seen.append(layer)
        return forward(**arguments)

    said = []
    with choosing(model, choose):
        run = Thread(
            target=lambda: said.append(model.generate(**given, max_new_tokens=3, do_sample=False))
        )
        run.start()
        run.join()
        assert said[0].equal(own) and not seen
        model(given["input_ids"])
    assert seen == [0, 1]
    model(given["input_ids"])
    assert seen == [0, 1] and "forward" not in vars(indexers(model)[0])

"""Threads that share an attached model have passes of their own, or are refused."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from device import gpu
from generation import generated
from steps import attached, close, forced, half
from steps import prompt as gpu_prompt
from tiny import prompt, tiny
from topkit.errors import InputError
from topkit.experiments.decode.attach import Attachment, attach
from topkit.experiments.decode.running import Running

pytestmark = pytest.mark.filterwarnings("ignore:.*selected nothing")


def together(*jobs: Callable[[], None]) -> None:
    """Run jobs in threads of their own, begun at once; the first error of any is raised."""
    ready, errors = threading.Barrier(len(jobs)), []

    def run(job: Callable[[], None]) -> None:
        try:
            ready.wait()
            job()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@torch.no_grad()
def stepped(model: Any, ids: Tensor, steps: int) -> Tensor:
    """Logits of a prompt and of tokens that follow one by one, by the model's forward alone."""
    out = model(ids)
    logits = [out.logits]
    for step in range(steps):
        out = model(ids[:, step : step + 1], past_key_values=out.past_key_values)
        logits.append(out.logits)
    return torch.cat(logits, 1)


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["sign", "random", "quest(page_size=4)"])
def test_generate_beside_generate_and_forward(spec: str) -> None:
    model, given, other = tiny(), prompt(2, padded=True), prompt(1, 31, seed=4)
    with attach(model, spec, 4):
        said, also = generated(model, given, 16)[0], generated(model, other, 16)[0]
        logits = stepped(model, other["input_ids"], 16)

        def generate(what: dict[str, Any], want: Tensor) -> None:
            for _ in range(3):
                out = model.generate(**what, max_new_tokens=16, do_sample=False)
                assert torch.equal(out, want)

        def forward() -> None:
            for _ in range(3):
                assert torch.equal(stepped(model, other["input_ids"], 16), logits)

        together(lambda: generate(given, said), lambda: generate(other, also), forward)


def test_a_slot_is_one_threads() -> None:
    model, ids = tiny(), prompt(1, 40)["input_ids"]
    with torch.no_grad(), attach(model, "random", 3) as ours:
        want = {}
        for slot in (5, 20):
            with ours.sparse_from(slot):
                want[slot] = model(ids).logits

        def score(slot: int) -> None:
            for _ in range(5):
                with torch.no_grad(), ours.sparse_from(slot):
                    assert torch.equal(model(ids).logits, want[slot])

        together(lambda: score(5), lambda: score(20))
        assert not torch.equal(want[5], want[20])


def test_nobody_detaches_under_another_thread() -> None:
    model, inside, go = tiny(), threading.Event(), threading.Event()
    ours = attach(model, "random", 3)
    want, said = generated(model, prompt())[0], []

    def pause(*_: Any) -> None:
        inside.set()
        assert go.wait(60)

    for way in ("generate", "forward", "decoder"):
        inside.clear()
        go.clear()
        note = model.model.layers[1].register_forward_pre_hook(pause)
        calls = {
            "generate": lambda: said.append(generated(model, prompt())[0]),
            "forward": lambda: model(**prompt()),
            "decoder": lambda: model.model(**prompt()),
        }
        thread = threading.Thread(target=calls[way])
        thread.start()
        assert inside.wait(60)
        with pytest.raises(InputError, match="1 other thread runs the attached model") as refusal:
            ours.detach()
        assert "\n" not in str(refusal.value)
        with pytest.raises(InputError, match="other thread"), ours:
            pass
        go.set()
        thread.join()
        note.remove()
    assert torch.equal(said[0], want)
    ours.detach()
    assert "generate" not in vars(model)


def test_the_thread_that_generates_may_detach() -> None:
    """What it says from then on is dense: it was asked for."""
    model = tiny()
    ours, calls = attach(model, "random", 3), []

    def leave(_: Any, __: Any, ___: Any) -> None:
        calls.append(1)
        if len(calls) == 4:
            ours.detach()

    note = model.lm_head.register_forward_hook(leave)
    generated(model, prompt())
    note.remove()
    assert "generate" not in vars(model)
    ours.detach()


def test_one_of_many_threads_attaches() -> None:
    model, refused = tiny(), []
    dense = generated(model, prompt())[0]

    def take() -> None:
        try:
            attach(model, "random", 3)
        except InputError as error:
            refused.append(str(error))

    together(*[take] * 6)
    assert len(refused) == 5 and all("attached already" in line for line in refused)
    Attachment.of(model).detach()
    assert torch.equal(generated(model, prompt())[0], dense)


def test_models_that_share_at_most_a_config_are_attached_side_by_side() -> None:
    one, two = tiny(), tiny(seed=3)
    three = type(one)(one.config).eval()
    models, want = (one, two, three), []
    for model in models:
        with attach(model, "sign", 3):
            want.append(generated(model, prompt())[0])

    def run(place: int) -> None:
        for _ in range(4):
            with attach(models[place], "sign", 3):
                out = models[place].generate(**prompt(), max_new_tokens=12, do_sample=False)
            assert torch.equal(out, want[place])

    together(*(lambda place=place: run(place) for place in range(3)))
    assert {model.config._attn_implementation for model in models} == {"sdpa"}


def test_rows_observed_name_the_call_of_their_own_thread() -> None:
    model = tiny()
    with attach(model, "sign", 3, observe=True) as ours:
        together(*(lambda n=n: model.generate(**prompt(n), max_new_tokens=6) for n in (1, 2, 3)))
    rows = {call: set() for call in (1, 2, 3)}
    for line in ours.fidelity().select(["call", "row"]).to_pylist():
        rows[line["call"]].add(line["row"])
    assert sorted(map(len, rows.values())) == [1, 2, 3]


def test_calls_are_counted_by_thread() -> None:
    running = Running()
    running.leave()  # of a call whose beginning was prevented
    with running.here(), running.no_other():
        pass
    running.enter()
    with pytest.raises(InputError, match="thread"):
        together(lambda: _alone(running))
    running.leave()
    together(lambda: _alone(running))


def _alone(running: Running) -> None:
    with running.no_other():
        pass


@gpu
@pytest.mark.gpu
def test_threads_have_graphs_of_their_own() -> None:
    """Each captures the steps of its own cache, and replays no other's."""
    model = half()
    prompts = [gpu_prompt(rows) for rows in (1, 2, 3)]
    with attached(model) as ours:
        alone = [forced(model, given, 24) for given in prompts]
        before = ours.captured

        def run(place: int) -> None:
            for _ in range(4):
                close(forced(model, prompts[place], 24), alone[place])

        together(*(lambda place=place: run(place) for place in range(3)))
    assert ours.captured > before

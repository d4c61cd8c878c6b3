"""Where an answer ends, by its tokens and by its text."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
from transformers import AutoTokenizer

from tiny import tiny
from topkit.experiments.evaluate.own_words import Stops
from topkit.experiments.model.load import REFERENCE
from topkit.experiments.tasks import Prompt, Question


@functools.cache
def tokenizer():
    return AutoTokenizer.from_pretrained(REFERENCE, local_files_only=True)


def prompt(**changes):
    asked = Question("?", "17", ("17",), (5,), (6, 7))
    made = Prompt("own", 64, 0, 0, "plain", "own", "text", (0, 1), (asked,))
    return replace(made, **changes)


READ = [
    ("17.\nAnd more", ("\n",), ("17.", "stop")),
    ("17.<eos>And more\n", ("\n",), ("17.", "eos")),
    ("17. And more", ("\n",), ("17. And more", "budget")),
    ("\n\n17\nmore", ("\n",), ("\n\n17", "stop")),  # an empty line first is no answer
    ("\n", ("\n",), ("\n", "budget")),
    ("17; 18. 19", (". ", ";"), ("17", "stop")),
    ("17\n18", (), ("17\n18", "budget")),
    ("17\n18", ("",), ("17\n18", "budget")),
    ("", ("\n",), ("", "budget")),
]


@pytest.mark.parametrize(("said", "stop", "read"), READ)
def test_an_answer_ends_at_the_first_stop(said, stop, read):
    model = tiny()
    model.generation_config.eos_token_id = 1
    parts = said.split("<eos>")
    ids = tokenizer()(parts[0], add_special_tokens=False).input_ids
    for part in parts[1:]:
        ids += [1, *tokenizer()(part, add_special_tokens=False).input_ids]
    assert Stops.of(model, tokenizer(), prompt(stop=stop)).read(ids) == read


@pytest.mark.parametrize(("own", "ends"), [(None, {1}), (5, {1, 5}), ([5, 7], {1, 5, 7})])
def test_the_model_and_its_tokenizer_say_what_ends_a_turn(own, ends):
    model = tiny()
    model.generation_config.eos_token_id = own
    assert Stops.of(model, tokenizer(), prompt()).tokens == ends


def test_a_budget_is_the_tasks_or_follows_from_the_true_answer():
    assert prompt().most(0) == 2 + 10
    assert prompt(tokens_to_generate=3).most(0) == 3
    running = replace(prompt().questions[0], references=())
    assert prompt(questions=(running,), tokens_to_generate=3).most(0) == 0

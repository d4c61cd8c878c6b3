"""The bundled model answers; its training is apart from evaluation, runs, stops and goes on."""

from __future__ import annotations

import csv
import json
import lzma
import math
import re
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from topkit.errors import InputError
from topkit.experiments.model.load import REFERENCE
from topkit.experiments.tasks import TASKS, Haystack, books, make_task
from topkit.experiments.tasks import request as requests
from topkit.experiments.tasks.base import HELD_OUT
from topkit.experiments.tasks.request import random_for
from topkit.experiments.tasks.wordings import WORDINGS
from topkit.experiments.tasks.words import NOUNS
from topkit.experiments.train import corpus as corpora
from topkit.experiments.train import mixture as mixtures
from topkit.experiments.train.mixture import ANSWER, ASKED, DIGIT, Mixture
from topkit.experiments.train.prepared import drawn
from topkit.experiments.train.reference_text import examples
from topkit.experiments.train.scores import exact_match, interval, perplexity, rows
from topkit.experiments.train.stages import batches_of
from topkit.experiments.train.train import (
    Recipe,
    batches,
    new_model,
    train_reference,
    weighted_loss,
)

TRAINED = [name for name, wording in WORDINGS.items() if wording.kind != HELD_OUT]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(REFERENCE, local_files_only=True)


@pytest.fixture(scope="module")
def model() -> Any:
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        REFERENCE, dtype=torch.float32, local_files_only=True
    )
    return loaded.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two books to train on, the excerpt's halves, and one kept apart."""
    folder = tmp_path_factory.mktemp("corpus")
    paragraphs = Path(REFERENCE.parent / "excerpt.txt").read_text().split("\n\n")
    half = len(paragraphs) // 2
    parts = {"train": [paragraphs[:half], paragraphs[half:]], "valid": [["Xylophone. " * 99]]}
    for split, texts in parts.items():
        with lzma.open(folder / f"books-{split}.jsonl.xz", "wt", preset=0) as lines:
            for n, text in enumerate(texts):
                book = {"title": f"{split} {n}", "author": "", "text": "\n\n".join(text)}
                lines.write(json.dumps(book) + "\n")
    return folder


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory, corpus: Path, tokenizer: Any) -> Mixture:
    """The recipe's mixture in the bundled vocabulary."""
    folder = tmp_path_factory.mktemp("text")
    texts = (book["text"] for book in corpora.books(corpus, "train"))
    assert corpora.keep_tokens(texts, tokenizer.backend_tokenizer, folder)
    return Mixture(folder, (REFERENCE / "tokenizer.json").read_text())


def test_an_indexer_reads_the_same_batches_whatever_answers_count(mixture: Mixture) -> None:
    plain = list(drawn(mixture, range(4), 3, 256, 0))
    once, often = (list(batches_of(mixture, range(4), 3, 256, 0, n)) for n in (1.0, 7.0))
    for one, other in zip(plain, once, strict=True):
        assert isinstance(other, torch.Tensor) and torch.equal(one, other)
    for number, (ids, pair) in enumerate(zip(plain, often, strict=True)):
        same, counts = pair
        _, weights = mixture.batch(number, 3, 255)
        # A query says what follows it; behind the last nothing does.
        following = torch.from_numpy(weights[:, 1:] == ANSWER)
        assert torch.equal(ids, same) and following.any()
        assert torch.equal(counts[:, :-1], 1 + 6.0 * following) and (counts[:, -1] == 1).all()


# The model


def test_the_bundle_is_small_and_in_qwen3s_format() -> None:
    bundle = [path for path in REFERENCE.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in bundle) <= 32_000_000
    config = json.loads((REFERENCE / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"] and "auto_map" not in config
    weights = load_file(REFERENCE / "model.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.bfloat16}
    with torch.device("meta"):
        empty = new_model(Recipe())
    assert {n: w.shape for n, w in weights.items()} == {
        n: w.shape for n, w in empty.state_dict().items() if n != "lm_head.weight"
    }


def test_the_recipe_beside_it_is_the_one_that_runs() -> None:
    told = json.loads((REFERENCE / "recipe.json").read_text())
    runs = {"first": asdict(Recipe()), "second": asdict(Recipe.second())}
    assert told == json.loads(json.dumps(runs))
    log = list(csv.DictReader((REFERENCE / "training_log.csv").open()))
    for number, recipe in enumerate((Recipe(), Recipe.second()), 1):
        steps = [row for row in log if row["run"] == str(number)]
        assert int(steps[-1]["step"]) == recipe.steps
        assert all(
            float(row["learning_rate"])
            == pytest.approx(recipe.rate(int(row["step"]) - 1), rel=1e-3)
            for row in steps
        )


@pytest.mark.parametrize(
    "task",
    [
        "niah-multikey",
        *(pytest.param(task, marks=pytest.mark.slow) for task in ("niah-single", "kv-recall")),
    ],
)
def test_it_answers_what_stands_in_2048_tokens(task: str, model: Any, tokenizer: Any) -> None:
    given = {} if task == "kv-recall" else {"wording": "trained"}
    for sample in range(8 if task == "niah-single" else 1):
        prompt = make_task(task, **given).sample(tokenizer, 2048, sample)
        question = prompt.questions[0]
        ids = torch.tensor([[*prompt.ids, *question.ids]])
        said = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=len(question.answer_ids),
            do_sample=False,
        )
        assert tokenizer.decode(said[0, ids.shape[1] :]) == question.answer


@pytest.mark.slow
def test_exact_match_is_what_greedy_decoding_says(model: Any, tokenizer: Any) -> None:
    found = set()
    for wording, sample in [("code", 0), ("reward", 0)]:
        prompt = make_task("niah-single", wording=wording).sample(tokenizer, 512, sample)
        ids = torch.tensor([[*prompt.ids, *prompt.questions[0].ids]])
        wanted = list(prompt.questions[0].answer_ids)
        said: list[int] = []
        for _ in wanted:
            said.append(int(model(ids, logits_to_keep=1).logits[0, -1].argmax()))
            ids = torch.cat([ids, torch.tensor([[said[-1]]])], 1)
        assert exact_match(model, prompt) == (said == wanted)
        found.add(said == wanted)
    assert found == {True, False}


@pytest.mark.slow
def test_it_has_not_read_the_bundled_haystack(model: Any, tokenizer: Any) -> None:
    """Its perplexity there is that of a book kept apart, and its NLL is a mean over pieces."""
    text = " ".join(Haystack.bundled().sentences)
    ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])[:3072]
    found = perplexity(model, ids, 1024)
    slow = []
    for piece in ids.view(3, 1024):
        logits = model(piece[None]).logits[0, :-1].double().log_softmax(-1)
        slow.append(float(-logits.gather(1, piece[1:, None]).mean()))
    assert found == pytest.approx(math.exp(sum(slow) / 3), rel=1e-4)
    apart = json.loads((REFERENCE / "scores.json").read_text())["perplexity"]["Doctor Thorne"]
    assert found > 0.75 * apart


def test_stored_scores_are_of_every_row() -> None:
    held = json.loads((REFERENCE / "scores.json").read_text())
    told = {(r["row"], r["task"], r["wording"], r["length"]): r for r in held["rows"]}
    assert set(told) == {(r.name, r.task, r.wording, r.length) for r in rows((4096, 8192))}
    for row in told.values():
        assert row["prompts"] >= 200 and row["family"] == TASKS[row["task"]].family
        hits = round(row["exact_match"] * row["prompts"])
        assert row["interval"] == [round(x, 4) for x in interval(hits, row["prompts"])]


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_holds_what_the_share_is_tested_against(case: tuple[int, int]) -> None:
    """Wilson's ends are the shares that the observed one is 1.96 deviations from."""
    hits, count = case
    low, high = interval(hits, count)
    assert 0 <= low <= hits / count + 1e-12 and hits / count - 1e-12 <= high <= 1
    for end in (low, high):
        away = 1.959964 * math.sqrt(end * (1 - end) / count)
        assert abs(hits / count - end) == pytest.approx(away, rel=1e-6, abs=1e-7)


# The tokenizer


@settings(max_examples=200)
@given(text=st.text(max_size=60))
def test_the_tokenizer_splits_digits_and_loses_nothing(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    special = re.search(r"<\|(begin|end)\|>", text)
    assert special or tokenizer.decode(ids, skip_special_tokens=False) == text
    assert tokenizer(text)["input_ids"] == [tokenizer.bos_token_id, *ids]


@given(number=st.integers(0, 10**12))
def test_every_digit_is_a_token(tokenizer: Any, number: int) -> None:
    ids = tokenizer(f"in {number} steps", add_special_tokens=False)["input_ids"]
    pieces = [tokenizer.decode([i]) for i in ids]
    assert [p for p in pieces if re.search(r"\d", p)] == list(str(number))


# What training reads


def test_training_reads_the_training_books_alone(
    mixture: Mixture, corpus: Path, tokenizer: Any
) -> None:
    text = tokenizer.decode(mixture.text.tokens)
    trained = [" ".join(book["text"].split()) for book in corpora.books(corpus, "train")]
    assert " ".join(text.split()) == " ".join(trained)
    assert "Xylophone" in "".join(book["text"] for book in corpora.books(corpus, "valid"))
    ends = mixture.text.ends
    assert all(set(tokenizer.decode([t])) & set(".!?") for t in mixture.text.tokens[ends - 1])
    with pytest.raises(InputError, match="no books-train"):
        list(corpora.books(corpus / "nowhere", "train"))


@pytest.fixture(scope="module")
def read(mixture: Mixture) -> list[str]:
    """What 240 training sequences say."""
    said = []
    for number in range(20):
        ids, _ = mixture.batch(number, 12, 1024)
        said += [mixture.encoder.decode(row.tolist(), skip_special_tokens=False) for row in ids]
    return said


def facts(texts: list[str], wordings: list[str]) -> set[tuple[str, str]]:
    """(thing, value) of every needle told in some wordings."""
    found: set[tuple[str, str]] = set()
    for w in (WORDINGS[name] for name in wordings):
        form = re.escape(w.fact).replace(re.escape("{a}"), w.attribute)
        form = form.replace(re.escape("{key}"), r"([\w ]+?)")
        form = form.replace(re.escape("{value}"), r"(\w+)")
        found |= {fact for text in texts for fact in re.findall(form, text)}
    return found


def test_held_out_wordings_and_family_are_never_trained(read: list[str]) -> None:
    seen = facts(read, TRAINED)
    assert len(seen) > 500 and all(facts(read, [name]) for name in TRAINED)
    assert not facts(read, [name for name in WORDINGS if name not in TRAINED])
    for name in set(WORDINGS) - set(TRAINED):
        start = WORDINGS[name].fact.split("{")[0]
        assert not any(start in text for text in read)
    assert not {value for _, value in seen} & set(NOUNS)
    assert TASKS["niah-word"].family == HELD_OUT
    told = list(examples(random_for("tokenizer", 0)))
    assert facts(told, TRAINED)
    assert not facts(told, [name for name in WORDINGS if name not in TRAINED])
    assert not {value for _, value in facts(told, TRAINED)} & set(NOUNS)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in TASKS if n != "books"])
def test_evaluation_asks_nothing_that_training_asked(
    name: str, read: list[str], tokenizer: Any
) -> None:
    trained = "\n".join(read)
    for sample in range(12):
        wording = "plain"
        if name.startswith("niah"):
            wording = TRAINED[sample % len(TRAINED)]
        task = make_task(name, wording=wording)
        prompt = task.sample(tokenizer, 2048, sample)
        told = task.plant(random_for("evaluation", name, 0, sample), wording).sentences
        assert all(fact in prompt.text for fact in told)
        if name == "kv-recall":
            told = told[0].split(" ")
        assert not any(fact in trained for fact in told)
        assert not any(q.text.strip() + q.answer in trained for q in prompt.questions)


def test_generators_of_training_and_evaluation_have_other_names(
    mixture: Mixture, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A generator is drawn from its whole name, so that equal numbers give other draws."""
    places: list[tuple] = []

    def noted(*place: Any) -> np.random.Generator:
        places.append(place)
        return random_for(*place)

    for module in (mixtures, requests, books):
        monkeypatch.setattr(module, "random_for", noted)
    mixture.batch(0, 2, 512)
    trained = set(places)
    for name in TASKS:
        make_task(name).sample(tokenizer, 2048, 0)
    asked = set(places) - trained
    assert {place[0] for place in trained} == {"training"} and len(asked) == len(TASKS)
    assert {place[0] for place in asked} == {"evaluation"}
    draws = {tuple(random_for(*place).integers(0, 2**62, 4)) for place in places}
    assert len(draws) == len(trained | asked)


def test_a_batch_is_its_number_whoever_makes_it(mixture: Mixture) -> None:
    recipe = Recipe.tiny()
    made = list(batches(mixture, recipe, 0, 0))
    again = list(batches(mixture, recipe, 3, 0))
    assert len(made) == recipe.steps == len(again) + 3
    for (ids, weights), (same, alike) in zip(made[3:], again, strict=True):
        assert np.array_equal(ids, same) and np.array_equal(weights, alike)
    assert not np.array_equal(made[0][0], made[1][0])
    assert [ids.shape for ids, _ in made] == [(2, 257)] * 4 + [(2, 513)] * 2


def test_sequences_are_whole_and_weighted_by_what_can_be_known(mixture: Mixture) -> None:
    begin, answered = mixture.encoder.token_to_id("<|begin|>"), 0
    for number in range(12):
        ids, weights = mixture.batch(number, 4, 1024)
        assert ids.shape == weights.shape == (4, 1025)
        assert (ids[:, 0] == begin).all() and not (ids[:, 1:] == begin).any()
        assert (weights[:, 0] == 0).all()
        for row, weight in zip(ids, weights, strict=True):
            text = mixture.encoder.decode(row.tolist())
            edges = np.flatnonzero(np.diff(np.r_[0, weight == ANSWER, 0]))
            for first, past in edges.reshape(-1, 2):
                answer = mixture.encoder.decode(row[first:past].tolist()).strip()
                # An answer stands before the question too, or is put together of what does.
                assert all(text.index(word) < len(text) for word in answer.split())
                value = re.findall(r"\w+", answer)[-1]
                before = mixture.encoder.decode(row[:first].tolist())
                assert value in before
                answered += 1
            known = np.array([DIGIT, ASKED, 1.0, ANSWER], dtype=np.float32)
            assert np.isin(weight[np.isin(row, mixture.digits)], known).all()
    assert answered > 100


# The recipe


def weights(folder: Path) -> dict[str, torch.Tensor]:
    # Copies, because the file is mapped and a test writes over it.
    found = load_file(folder / "model" / "model.safetensors")
    return {name: x.clone() for name, x in found.items()}


def test_the_recipe_runs_stops_and_goes_on_to_the_same_weights(
    tmp_path: Path, corpus: Path
) -> None:
    recipe, how = Recipe.tiny(), {"device": "cpu", "workers": 0, "report": lambda line: None}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train_reference(corpus, whole, recipe=recipe, **how)
    # The first call makes tokens, and has no time left for a step.
    for _ in range(recipe.steps):
        assert not train_reference(corpus, parts, recipe=recipe, stop_after=0, **how)
        assert not (parts / "model" / "model.safetensors").exists()
    assert train_reference(corpus, parts, recipe=recipe, stop_after=0, **how)
    one, other = weights(whole), weights(parts)
    assert one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)
    fresh = new_model(recipe).to(torch.bfloat16).state_dict()
    assert any(not torch.equal(fresh[name], one[name]) for name in one)
    log = (parts / "training_log.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in log] == ["step", *map(str, range(1, recipe.steps + 1))]
    # A rerun has nothing left to do, and mends a model that was cut off while it was written.
    (whole / "model" / "model.safetensors").write_bytes(b"")
    assert train_reference(corpus, whole, recipe=recipe, **how)
    assert all(torch.equal(weights(whole)[name], one[name]) for name in one)
    trained: Any = AutoModelForCausalLM.from_pretrained(whole / "model", local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(whole / "model", local_files_only=True)
    ids = tokenizer("Whoever asks for 12345", return_tensors="pt")["input_ids"]
    assert trained(ids).logits.isfinite().all() and ids.max() < recipe.vocabulary

    second = tmp_path / "second"
    assert train_reference(corpus, second, recipe=recipe, start_from=whole / "model", **how)
    same = (whole / "model" / "tokenizer.json").read_text()
    assert (second / "model" / "tokenizer.json").read_text() == same
    with pytest.raises(InputError, match="begun with another recipe"):
        train_reference(corpus, whole, recipe=Recipe(seed=3), **how)
    with pytest.raises(InputError, match="no books-train"):
        train_reference(tmp_path, tmp_path / "third", recipe=recipe, **how)
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="asks for a CUDA GPU"):
            train_reference(corpus, whole, recipe=recipe, **{**how, "device": "cuda"})


@pytest.mark.parametrize("recipe", [Recipe(), Recipe.second(), Recipe.tiny()])
def test_the_rate_warms_up_and_comes_down(recipe: Recipe) -> None:
    rates = [recipe.rate(step) for step in range(recipe.steps)]
    top = int(np.argmax(rates))
    assert top in (recipe.warmup - 1, recipe.warmup) and rates[top] == pytest.approx(recipe.peak)
    assert all(a <= b for a, b in pairwise(rates[: top + 1]))
    assert all(a >= b for a, b in pairwise(rates[top:]))
    assert rates[-1] >= recipe.last > 0
    turn = recipe.steps * (1 - recipe.decay)
    assert all((rate > recipe.floor) == (step < turn) for step, rate in enumerate(rates[top:], top))
    lengths = [recipe.phase(step).length for step in range(recipe.steps)]
    assert lengths == sorted(lengths) and lengths[-1] == recipe.phases[-1].length
    with pytest.raises(InputError, match=f"has {recipe.steps} steps"):
        recipe.phase(recipe.steps)


def test_attention_is_causal_and_reads_no_mask_where_the_loss_is_compiled() -> None:
    """The mask is what transformers makes in a compiled function, and what makes attention slow."""
    model, given = new_model(Recipe.tiny()).train(), list[Any]()

    def noting(graph: Any, inputs: Any) -> Any:
        calls = [node.kwargs for node in graph.graph.nodes if "scaled_dot" in str(node.target)]
        given.extend((call["attn_mask"], call["is_causal"]) for call in calls)
        return graph

    ids = torch.randint(2, 512, (2, 33), generator=torch.Generator().manual_seed(0))
    both = ids, torch.ones(2, 33)
    compiled = torch.compile(weighted_loss, dynamic=False, backend=noting)
    assert torch.equal(compiled(model, *both)[0], weighted_loss(model, *both)[0])
    assert given == [(None, True)] * model.config.num_hidden_layers
    # As transformers itself has it, from no word about a mask.
    hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    losses = cross_entropy(model.lm_head(hidden).float().mT, ids[:, 1:])
    torch.testing.assert_close(losses, weighted_loss(model, *both)[0])

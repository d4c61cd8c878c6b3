"""lm-evaluation-harness over an attached model: dense under all keys, at chance under random ones."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tiny import READS_REFERENCE, tiny
from topkit.errors import InputError
from topkit.experiments.decode.attach import attach
from topkit.experiments.model.load import REFERENCE, load

lm_eval = pytest.importorskip("lm_eval", reason="lm_eval is not installed (the extra harness)")
datasets = pytest.importorskip("datasets")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from topkit.experiments.decode.harness import HFLM, AttachedLM  # noqa: E402

PAGE = (Path(__file__).parents[2] / "docs" / "harness.md").read_text()
# Prompts of the page's tasks that are asked here, of four choices each.
ASKED = 8


def asked(kind: Any, *arguments: tuple[Any, ...]) -> list[Instance]:
    """Requests of the harness."""
    return [Instance(kind, {}, one, place) for place, one in enumerate(arguments)]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load("reference")[1]


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny("llama", **READS_REFERENCE)


TEXT = "The road to the village is long, and the evening was near when they came upon the inn. "
PAIRS = [
    (TEXT, "They slept"),
    (TEXT * 2, "They slept"),
    (TEXT, "They"),
    (TEXT + "They", " slept"),
    ("", "At last they slept"),
    (TEXT * 2, "and the inn was full of people"),
]


@pytest.mark.parametrize("batch", [1, 4])
def test_scores_are_of_continuations_read_sparsely(model: Any, tokenizer: Any, batch: int) -> None:
    """By hand: a pass a request, sparse from the query that predicts the continuation's first token."""
    with attach(model, "random", 3) as ours:
        lm = AttachedLM(model, tokenizer=tokenizer, batch_size=batch)
        assert lm.attachment is ours
        scored = lm.loglikelihood(asked("loglikelihood", *PAIRS), disable_tqdm=True)
    for (context, continuation), (score, _) in zip(PAIRS, scored, strict=True):
        # Blanks at the end of a context are the continuation's; this tokenizer begins texts itself.
        before = tokenizer(context.rstrip())["input_ids"]
        ids = torch.tensor([tokenizer(context + continuation)["input_ids"]])
        with torch.no_grad(), attach(model, "random", 3, sparse_from_slot=len(before) - 1):
            rows = model(ids[:, :-1]).logits[0].log_softmax(-1)
        after = range(len(before) - 1, ids.shape[1] - 1)
        want = sum(float(rows[place, ids[0, place + 1]]) for place in after)
        assert score == pytest.approx(want, abs=1e-3)


def test_all_keys_are_dense_and_few_are_not(model: Any, tokenizer: Any) -> None:
    # Its cache of logits takes the wrong row where one text is split at two places.
    dense = HFLM(model, tokenizer=tokenizer, batch_size=3, logits_cache=False)
    pairs, texts = asked("loglikelihood", *PAIRS), asked("loglikelihood_rolling", (TEXT,))

    def scores(lm: Any) -> torch.Tensor:
        scored = [score for score, _ in lm.loglikelihood(pairs, disable_tqdm=True)]
        return torch.tensor([*scored, *lm.loglikelihood_rolling(texts, disable_tqdm=True)])

    want = scores(dense)
    with attach(model, "exact", 1000):
        ours = scores(AttachedLM(model, tokenizer=tokenizer, batch_size=3))
        torch.testing.assert_close(ours, want, rtol=1e-4, atol=1e-4)
    with attach(model, "random", 1):
        ours = scores(AttachedLM(model, tokenizer=tokenizer, batch_size=3))
        assert (ours - want).abs().min() > 1e-2  # a continuation of one token, too


def test_contexts_beyond_the_model_are_cut_on_the_left(model: Any, tokenizer: Any) -> None:
    long, short = asked("loglikelihood", (TEXT * 9, "They slept"), (TEXT, "They slept"))
    with attach(model, "random", 3):
        lm = AttachedLM(model, tokenizer=tokenizer, max_length=50)
        ours = lm.loglikelihood([long, short], disable_tqdm=True)
        ids = tokenizer((TEXT * 9).rstrip() + " They slept")["input_ids"]
        after = len(ids) - len(tokenizer((TEXT * 9).rstrip())["input_ids"])
        ids = torch.tensor([ids[-51:]])
        with torch.no_grad(), lm.attachment.sparse_from(50 - after):
            rows = model(ids[:, :-1]).logits[0].log_softmax(-1)
    want = sum(float(rows[place, ids[0, place + 1]]) for place in range(50 - after, 50))
    assert ours[0][0] == pytest.approx(want, abs=1e-3)


def test_it_attaches_by_itself_or_takes_what_is_attached() -> None:
    with pytest.raises(InputError, match="not attached"):
        AttachedLM(tiny("llama", **READS_REFERENCE), tokenizer=str(REFERENCE))
    with pytest.raises(InputError, match="needs its k"):
        AttachedLM("reference", indexer="sign")
    with pytest.raises(InputError, match="no model at"):
        AttachedLM("nowhere", indexer="sign", k=4)
    lm = AttachedLM("reference", indexer="sign", k="5%")
    assert repr(lm.attachment) and lm.model.config._attn_implementation == "topkit"
    model = lm.model
    with (
        attach(tiny("llama", **READS_REFERENCE), "sign", 4),
        pytest.raises(InputError, match="attached already"),
    ):
        AttachedLM(model, indexer="sign", k=4)
    lm.attachment.detach()


@pytest.fixture
def needles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TaskManager:
    """The tasks of the page, in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "needles").mkdir()
    for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL):
        (tmp_path / "needles" / f"{text.split()[1]}.yaml").write_text(text)
    exec(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[-1], {})
    return TaskManager(include_path="needles", include_defaults=False)


@pytest.mark.slow
def test_needles_are_answered_densely_and_under_exact_and_not_under_random(
    needles: TaskManager,
) -> None:
    model, tokenizer = load("reference")

    def ask(lm: Any) -> tuple[float, float, torch.Tensor, list[str]]:
        tasks = ["needle_choice", "needle_said"]
        how: dict[str, Any] = dict(task_manager=needles, limit=ASKED, bootstrap_iters=0)
        done = lm_eval.simple_evaluate(lm, tasks=tasks, **how)
        choice, said = (done["samples"][task] for task in tasks)
        scores = [[float(answer[0][0]) for answer in one["resps"]] for one in choice]
        return (
            done["results"]["needle_choice"]["acc,none"],
            float(done["results"]["needle_said"]["exact_match,trimmed"]),
            torch.tensor(scores),
            [one["resps"][0][0] for one in said],
        )

    dense = ask(HFLM(model, tokenizer=tokenizer, batch_size=4))
    assert dense[:2] == (1.0, 1.0)
    with attach(model, "exact", 4096):
        exact = ask(AttachedLM(model, tokenizer=tokenizer, batch_size=4))
    torch.testing.assert_close(exact[2], dense[2], rtol=1e-4, atol=1e-4)
    assert exact[3] == dense[3] and exact[:2] == dense[:2]
    with attach(model, "random", 8):
        chance = ask(AttachedLM(model, tokenizer=tokenizer, batch_size=4))
    assert chance[0] <= 0.625 and chance[1] == 0


@pytest.mark.slow
def test_the_command_of_the_page_runs(needles: TaskManager, tmp_path: Path) -> None:
    (line,) = [x for x in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) if "harness run" in x]
    words = shlex.split(line.replace("\\\n", " "))[1:]
    homes = {name: str(tmp_path / "home") for name in ("HF_HOME", "HF_DATASETS_CACHE")}
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, *words, "--limit", "2"],
        capture_output=True,
        text=True,
        env={**os.environ, **homes, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "needle_choice" in done.stdout and "needle_said" in done.stdout
    wrong = [x.replace("indexer=sign", "indexer=sing") for x in words]
    done = subprocess.run(
        [sys.executable, *wrong],
        capture_output=True,
        text=True,
        env={**os.environ, **homes, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 2
    assert "did you mean 'sign'" in done.stderr.splitlines()[-1]

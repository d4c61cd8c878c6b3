"""What the reference model reads: books, with facts and questions woven in."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from topkit.experiments.tasks.base import TRAINED, Planted, Task
from topkit.experiments.tasks.chains import VariableTracking
from topkit.experiments.tasks.needles import MultiKey, MultiQuery, MultiValue
from topkit.experiments.tasks.pairs import KeyValueRecall
from topkit.experiments.tasks.recite import Recite
from topkit.experiments.tasks.request import random_for
from topkit.experiments.train.corpus import Text

# Loss weights: what can be known counts, what is drawn at random does not.
ANSWER, PLANTED, DIGIT, ASKED = 6.0, 0.1, 0.02, 0.1


@dataclass(frozen=True)
class Mixture:
    """Batches of training sequences, each from a seed of its own, so that any worker may make any.

    shares: how often a sequence is plain text, needles, lists of needles, chains, pairs, passages.
    """

    folder: Path
    tokenizer: str
    seed: int = 0
    shares: tuple[float, ...] = (0.28, 0.28, 0.14, 0.13, 0.13, 0.04)

    @cached_property
    def text(self) -> Text:
        return Text.load(self.folder)

    @cached_property
    def encoder(self) -> Tokenizer:
        return Tokenizer.from_str(self.tokenizer)

    @cached_property
    def begin(self) -> np.ndarray:
        """The token that a sequence begins with, if the vocabulary has one."""
        token = self.encoder.token_to_id("<|begin|>")
        return np.array([] if token is None else [token], dtype=np.int64)

    @cached_property
    def digits(self) -> np.ndarray:
        return np.array([self.encoder.token_to_id(d) for d in "0123456789"])

    def batch(self, number: int, rows: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens [rows, length + 1] uint16, and the weight of predicting each, float32."""
        rng = random_for("training", self.seed, number, length)
        made = [self.sequence(rng, length + 1) for _ in range(rows)]
        return np.stack([ids for ids, _ in made]), np.stack([weights for _, weights in made])

    def sequence(self, rng: np.random.Generator, length: int) -> tuple[np.ndarray, np.ndarray]:
        kind = int(rng.choice(len(self.shares), p=np.array(self.shares) / sum(self.shares)))
        if kind == 0:
            return self._plain(rng, length)
        task, budget = self._task(kind, rng, length)
        wordings = [w for w, trained in task.wordings().items() if trained == TRAINED]
        return self._woven(rng, task.plant(rng, str(rng.choice(wordings))), length, budget)

    def _task(self, kind: int, rng: np.random.Generator, length: int) -> tuple[Task, float]:
        """A task whose facts take a random part of the sequence, often half of it."""
        share = rng.uniform(0.01, 0.55)
        room = share * length

        # Names stand well apart as tokens, and teach retrieval before the ten digits can.
        digits = 5 if rng.random() < 0.65 else 0

        def some(cost: float, most: int = 10**9) -> int:
            return int(np.clip(room / cost, 1, most))

        def some_of(count: int, most: int) -> int:
            return int(min(count, rng.integers(1, most + 1)))

        if kind == 1:
            n = some(24)
            questions = some_of(n, 32)
            return MultiKey(questions=questions, distractors=n - questions, digits=digits), share
        if kind == 2 and rng.random() < 0.5:
            n = some(110)
            questions = some_of(n, 6)
            return MultiValue(questions=questions, distractors=n - questions, digits=digits), share
        if kind == 2:
            n = max(some(24), 4)
            questions = some_of(n // 4, 6)
            return MultiQuery(
                questions=questions, distractors=n - 4 * questions, digits=digits
            ), share
        if kind == 3:
            hops = int(rng.choice([1, 2, 3], p=[0.4, 0.5, 0.1]))
            n = some(16 * hops)
            questions = some_of(n, 24)
            return (
                VariableTracking(
                    questions=questions, distractors=n - questions, hops=hops, digits=digits
                ),
                share,
            )
        if kind == 4:
            n = some(14)
            questions = some_of(n, 32)
            return KeyValueRecall(
                questions=questions, distractors=n - questions, digits=digits
            ), share
        words = int(rng.integers(20, 180))
        n = some(words * 3, 6)
        return Recite(questions=1, distractors=n - 1, words=words), share

    def _plain(self, rng: np.random.Generator, length: int) -> tuple[np.ndarray, np.ndarray]:
        run, _ = self._run(rng, length - len(self.begin))
        return self._joined(run, [])

    def _run(self, rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        """So many tokens of text, and where facts may stand: its start, sentence ends, its end."""
        at = int(rng.integers(len(self.text.tokens) - count))
        first, last = np.searchsorted(self.text.ends, [at, at + count])
        gaps = np.asarray(self.text.ends[first:last], dtype=np.int64) - at
        return np.asarray(self.text.tokens[at : at + count]), np.unique([0, *gaps, count])

    def _woven(
        self, rng: np.random.Generator, planted: Planted, length: int, share: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Facts at their depths in a run of text, each question after all facts or among text."""
        facts = [self._fact(s) for s in planted.sentences]
        questions = [self._question(q.text, q.answer) for q in planted.questions]
        room = length - len(self.begin) - sum(len(ids) for ids, _ in questions)
        room -= sum(len(ids) for ids, _ in facts)
        if room < 0:
            # More was drawn than fits, which is rare.
            return self._plain(rng, length)
        run, gaps = self._run(rng, room)
        # The last part may be kept free of facts, so that questions stand at any distance.
        last = len(run) if rng.random() < 0.5 else int(len(run) * rng.uniform(0.5, 1))
        depths = np.array(planted.depths) if planted.depths else np.sort(rng.random(len(facts)))
        places = gaps[np.searchsorted(gaps, depths * last)]
        after = gaps[gaps >= places.max(initial=0)]
        late = [len(run) if rng.random() < 0.5 else int(rng.choice(after)) for _ in questions]
        inserts = list(zip(places.tolist(), facts, strict=True))
        inserts += [(late[i], questions[i]) for i in rng.permutation(len(questions))]
        return self._joined(run, sorted(inserts, key=lambda insert: insert[0]))

    def _joined(self, run: np.ndarray, inserts: list) -> tuple[np.ndarray, np.ndarray]:
        ids = [self.begin]
        weights = [np.zeros(len(self.begin))]
        at = 0
        for place, (more, weight) in inserts:
            ids += [run[at:place], more]
            weights += [np.ones(place - at), weight]
            at = place
        ids.append(run[at:])
        weights.append(np.ones(len(run) - at))
        return np.concatenate(ids).astype(np.uint16), np.concatenate(weights).astype(np.float32)

    def _ids(self, text: str) -> np.ndarray:
        return np.array(self.encoder.encode(text, add_special_tokens=False).ids)

    def _fact(self, sentence: str) -> tuple[np.ndarray, np.ndarray]:
        ids = self._ids(" " + sentence)
        return ids, np.where(np.isin(ids, self.digits), DIGIT, PLANTED)

    def _question(self, text: str, answer: str) -> tuple[np.ndarray, np.ndarray]:
        question, reply, end = self._ids(text), self._ids(answer), self._ids(".\n")
        weights = [
            np.full(len(question), ASKED),
            np.full(len(reply), ANSWER),
            np.ones(len(end)),
        ]
        return np.concatenate([question, reply, end]), np.concatenate(weights)

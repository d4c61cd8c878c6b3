"""What a task is: sentences to plant in a haystack, and questions about them."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import numpy as np

from topkit.errors import InputError
from topkit.experiments.tasks.encoding import Tokenizer, begun, encode, together
from topkit.experiments.tasks.forms import CHAT, FEWSHOT, IN_CHAT, PLAIN, require_form
from topkit.experiments.tasks.haystack import Haystack
from topkit.experiments.tasks.prompt import Planted, Prompt, Question
from topkit.experiments.tasks.request import PromptRequest
from topkit.grammar import Named, Registry, later, nearest, unprinted

# Whether the reference model was trained on the like; of a task that says nothing of it, OWN.
TRAINED, HELD_OUT, OWN = "trained", "held-out", "own"
RULER = "RULER, arXiv 2404.06654"


@dataclass(frozen=True)
class Task(Named):
    """A recipe for prompts; its fields are the parameters that a run may set."""

    name: ClassVar[str] = ""
    family: ClassVar[str] = OWN
    source: ClassVar[str] = OWN
    asks: ClassVar[str] = ""
    # What ends an answer, beside the end of the model's turn; how many tokens it may take, see Prompt; and
    # how what was said is scored, a name in scoring.RULES.
    stop: ClassVar[tuple[str, ...]] = ("\n",)
    tokens_to_generate: ClassVar[int | None] = None
    rule: ClassVar[str] = "all"

    questions: int = 4
    wording: str = "any"
    form: str = later(PLAIN)
    # Worked examples before each question, where the form is fewshot.
    shots: int = later(1)

    @classmethod
    def registry(cls) -> Registry[Any]:
        from topkit.experiments.tasks import REGISTRY

        return REGISTRY

    def most_samples(self) -> int | None:
        """How many prompts there are; None: as many as are wanted."""
        return None

    def plant(self, rng: np.random.Generator, wording: str) -> Planted:
        """Draw the sentences to plant, and the questions about them."""
        raise NotImplementedError(f"{type(self).__name__}.plant")

    def wordings(self) -> dict[str, str]:
        """The wordings of this task, each trained, held-out or own."""
        return {"plain": self.family}

    def parameters(self) -> dict[str, Any]:
        """The values of its parameters, without those that its text leaves out."""
        return {name: x for name, x in asdict(self).items() if name not in unprinted(self)}

    def sample(
        self,
        tokenizer: Tokenizer,
        length: int,
        sample: int,
        *,
        seed: int = 0,
        haystack: Haystack | None = None,
        split: str = "evaluation",
    ) -> Prompt:
        """Prompt number `sample`: at most `length` tokens with its longest question and answer.

        Raises: InputError when the task does not fit into so few tokens, and for an unknown form.
        """
        most = self.most_samples()
        if most is not None and sample >= most:
            title = getattr(self, "title", self.name)
            raise InputError(
                f"{title} has {most:,} prompts; there is no prompt {sample}; ask for fewer samples"
            )
        return self.prompt_of(PromptRequest(tokenizer, length, sample, seed, haystack, split))

    def prompt_of(self, request: PromptRequest) -> Prompt:
        """The prompt that `sample` gives; most tasks say what they `plant` alone."""
        require_form(self.name, self.form, self.shots)
        rng = request.random(self.name)
        wording = self._wording(rng)
        planted, examples = self._planted(rng, wording)
        text, ids, questions = self._buried(planted, examples, request, rng)
        stop, most = self._ends(questions)
        return self.made(
            request,
            text,
            ids,
            questions,
            wording=wording,
            family=HELD_OUT if self.wordings()[wording] == HELD_OUT else self.family,
            stop=stop,
            tokens_to_generate=most,
            rule=self.rule,
        )

    def made(
        self,
        request: PromptRequest,
        text: str,
        ids: tuple[int, ...],
        questions: tuple[Question, ...],
        **rest: Any,
    ) -> Prompt:
        """A prompt of this task; `rest` are fields of Prompt, by default those of a task of one wording."""
        return Prompt(
            task=self.name,
            length=request.length,
            sample=request.sample,
            seed=request.seed,
            text=text,
            ids=ids,
            questions=questions,
            parameters=self.parameters(),
            **{"wording": "plain", "family": self.family, **rest},
        )

    def _planted(self, rng: np.random.Generator, wording: str) -> tuple[Planted, str]:
        """What is planted, and the worked examples in words: about facts beside those asked for."""
        shots = self.shots if self.form == FEWSHOT else 0
        count = self.questions + shots
        planted = (replace(self, questions=count) if shots else self).plant(rng, wording)
        if shots and len(planted.questions) != count:
            raise InputError(
                f"{self.name} plants {len(planted.questions)} questions where {count} are wanted, "
                f"{shots} of them as examples; ask with form={PLAIN} or form={CHAT}"
            )
        shown = "".join(q.text + q.answer for q in planted.questions[:shots])
        questions = tuple(
            # RULER's rule takes references as they stand, and drops the blanks of what was said.
            replace(q, references=tuple(text.strip() for text in q.references))
            for q in planted.questions[shots:]
        )
        return replace(planted, questions=questions), shown

    def _ends(self, questions: Sequence[Question]) -> tuple[tuple[str, ...], int | None]:
        """What ends an answer, and after how many tokens: in chat a turn may have several lines."""
        stop, most = self.stop, self.tokens_to_generate
        if self.form == CHAT:
            stop = () if stop is Task.stop else stop
            most = most or IN_CHAT + max(len(q.answer_ids) for q in questions)
        return stop, most

    def _buried(
        self,
        planted: Planted,
        examples: str,
        request: PromptRequest,
        rng: np.random.Generator,
    ) -> tuple[str, tuple[int, ...], tuple[Question, ...]]:
        """The haystack's text, its tokens, and the questions with theirs."""
        tokenizer, length, haystack = request.tokenizer, request.length, request.text
        fixed = len(begun(tokenizer, " ".join(planted.sentences)))
        tail = self._tail(planted, examples, tokenizer, fixed)
        room = length - tail
        while fixed <= room:
            text = haystack.bury(planted.sentences, planted.depths, tokenizer, room, deepcopy(rng))
            text += examples
            ids, questions = together(tokenizer, text, planted.questions, self.name, self.form)
            used = len(ids) + max(len(q.ids) + len(q.answer_ids) for q in questions)
            if used <= length:
                return text, ids, questions
            # Together they may be more tokens than apart.
            room -= used - length
        fewer = getattr(self, "distractors", 0)
        raise InputError(
            f"{self.name} plants {fixed:,} tokens in haystack {request.sample}, and its longest question and "
            f"answer take {tail:,}: they do not fit into a length of {length:,}; ask for a longer "
            f"length, of {fixed + tail:,} or more"
            + (f", or for fewer distractors (distractors={fewer} here)" if fewer else "")
        )

    def _tail(self, planted: Planted, examples: str, tokenizer: Tokenizer, fixed: int) -> int:
        """The tokens beside the haystack's, `fixed` where nothing but the planted stands there."""
        if self.form == CHAT:
            bare = " ".join(planted.sentences) or "."
            ids, questions = together(tokenizer, bare, planted.questions, self.name, self.form)
            return len(ids) + max(len(q.ids) + len(q.answer_ids) for q in questions) - fixed
        return len(encode(tokenizer, examples)) + max(
            len(encode(tokenizer, q.text)) + len(encode(tokenizer, q.answer))
            for q in planted.questions
        )

    def _wording(self, rng: np.random.Generator) -> str:
        known = self.wordings()
        if self.wording in known:
            return self.wording
        chosen = [w for w, kind in known.items() if self.wording in ("any", kind)]
        if not chosen:
            words = dict.fromkeys([*known, "any", *known.values()])
            raise InputError(
                f"{self.name} has no wording {self.wording!r}; {nearest(self.wording, words)}"
            )
        return str(rng.choice(chosen))

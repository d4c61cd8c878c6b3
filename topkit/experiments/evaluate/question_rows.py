"""Questions of one haystack as the rows of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from topkit.experiments.tasks import AnswerKeys, Prompt, Question, first_key


class QuestionRows:
    """Questions of one length, as rows: question [B, m]; answer [B, a] and which of it is real."""

    def __init__(self, prompt: Prompt, numbers: Sequence[int], device: torch.device) -> None:
        questions, self.numbers = [prompt.questions[n] for n in numbers], numbers
        self.lengths = [len(q.answer_ids) for q in questions]
        self.longest = max(self.lengths)
        answers = [[*q.answer_ids, *[0] * (self.longest - len(q.answer_ids))] for q in questions]
        self.question = torch.tensor([list(q.ids) for q in questions], device=device)
        self.answer = torch.tensor(answers, device=device)
        place = torch.arange(self.longest, device=device)
        self.real = place < torch.tensor(self.lengths, device=device)[:, None]

    @property
    def last(self) -> Tensor:
        """The question's last token [B, 1]: its step predicts the answer's first token."""
        return self.question[:, -1:]


@dataclass(frozen=True)
class Wanted:
    """The keys of the answers to a prompt's questions."""

    keys: Sequence[AnswerKeys]

    def slots(self, numbers: Sequence[int], real: Tensor, steps: str) -> Tensor:
        """The slot that each step of some questions is to find, as `real` [B, Tq] has them; -1 for none.

        A step of the answer: that of the token it says; every step of the question: that of the first token
        of the answer that has one.
        """
        if steps == "question":
            first = [[first_key(self.keys[n])] * real.shape[1] for n in numbers]
            return torch.tensor(first, device=real.device)
        width = real.shape[1]
        lines = [[*self.keys[n], *[-1] * (width - len(self.keys[n]))] for n in numbers]
        return torch.tensor(lines, device=real.device)


def alike(questions: Sequence[Question], most: int) -> list[list[int]]:
    """The numbers of the questions in runs of one token count, none longer than `most`."""
    by_length: dict[int, list[int]] = {}
    for number, question in enumerate(questions):
        by_length.setdefault(len(question.ids), []).append(number)
    return [
        numbers[at : at + most]
        for _, numbers in sorted(by_length.items())
        for at in range(0, len(numbers), most)
    ]

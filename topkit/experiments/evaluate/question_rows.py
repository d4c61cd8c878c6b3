"""Questions of one haystack as the rows of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from topkit.experiments.tasks import Prompt, Question


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

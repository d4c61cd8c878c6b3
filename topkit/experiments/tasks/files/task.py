"""A task whose prompts are rows of a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar

from topkit.errors import InputError
from topkit.experiments.tasks.base import HELD_OUT, Task
from topkit.experiments.tasks.files.lines import Rows, digest_of, rows_of
from topkit.experiments.tasks.files.row import Row, encoded
from topkit.experiments.tasks.forms import FEWSHOT, require_form
from topkit.experiments.tasks.prompt import Prompt
from topkit.experiments.tasks.request import PromptRequest
from topkit.grammar import flat


@dataclass(frozen=True)
class FileTask(Task):
    """Prompt n is row n of a file, in its order: one question, asked as the format asks it.

    tokens: to generate, 0: as the file or the format says. Worked examples are the rows behind. A seed
    changes no prompt.
    """

    family: ClassVar[str] = HELD_OUT
    # The parameters that are files.
    paths: ClassVar[tuple[str, ...]] = ("file",)
    example: ClassVar[str] = ""
    # Whether the format itself shows examples, in each of its forms.
    shots_of_its_own: ClassVar[bool] = False

    questions: int = field(default=1, init=False, repr=False)
    wording: str = field(default="any", init=False, repr=False)
    file: str = ""
    tokens: int = 0

    def __post_init__(self) -> None:
        require_form(
            self.name, self.form, max(self.shots, 1) if self.shots_of_its_own else self.shots
        )
        if self.tokens < 0:
            raise InputError(f"{self.name}: tokens must be 1 or more; got {self.tokens}")

    def parameters(self) -> dict[str, Any]:
        unsaid = {f.name for f in fields(self) if not f.init}
        return {name: x for name, x in super().parameters().items() if name not in unsaid}

    def most_samples(self) -> int | None:
        return len(self.rows)

    @property
    def title(self) -> str:
        """The name in tables: the end of each path, and the hash of what the file holds."""
        told = {name: path for name in self.paths if (path := getattr(self, name))}
        return flat(replace(self, **{name: self._short(path) for name, path in told.items()}))

    @property
    def remedy(self) -> str:
        """What to do, as errors about the file say it."""
        return f"{self.name} reads {self.example}"

    @property
    def rows(self) -> Rows:
        """The rows of the file. Raises: InputError where there is none."""
        if not self.file:
            raise InputError(f"{self.name} needs file=PATH; {self.remedy}")
        return rows_of(self.file, self.remedy)

    def row(self, number: int, length: int) -> Row:
        """Row `number`, in the words of the format."""
        raise NotImplementedError(f"{type(self).__name__}.row")

    def cut(self, row: Row, tokens: int, tokenizer: Any) -> Row | None:
        """A row that is so many tokens shorter; None where the format cuts no more."""
        return None

    def prompt_of(self, request: PromptRequest) -> Prompt:
        count, sample, length = self.most_samples() or 0, request.sample, request.length
        shown = [self.row((sample + n) % count, length) for n in self.examples]
        return self.asked(self.row(sample, length), request, shown)

    @property
    def examples(self) -> range:
        """Offsets of the rows that are a row's worked examples."""
        return range(1, 1 + self.shots if self.form == FEWSHOT and not self.shots_of_its_own else 1)

    def asked(self, row: Row, request: PromptRequest, examples: Sequence[Row] = ()) -> Prompt:
        """The prompt of a row: cut as the format cuts, until it fits with the answer's tokens."""
        tokenizer, length = request.tokenizer, request.length
        shown: Row | None = self.told(row, examples)
        while True:
            text, ids, question, used = encoded(shown, self.form, tokenizer, self.name)
            if used <= length:
                break
            shown = self.cut(shown, used - length, tokenizer)
            if shown is None:
                raise InputError(
                    f"{self.name}: {row.place or f'prompt {request.sample}'} takes {used:,} tokens with those "
                    f"of its answer, and does not fit into a length of {length:,}; ask for a longer "
                    f"length, of {used:,} or more"
                )
        return self.made(
            request,
            text,
            ids,
            (question,),
            wording=row.kind or "plain",
            stop=row.stop,
            tokens_to_generate=shown.tokens,
            rule=row.rule,
        )

    def told(self, row: Row, examples: Sequence[Row] = ()) -> Row:
        """A row behind worked examples, with as many tokens to generate as the task says."""
        before = "".join(f"{r.before}{r.context}{r.after}{r.cue}{r.answer}\n\n" for r in examples)
        return replace(row, tokens=self.tokens or row.tokens, before=before + row.before)

    def _short(self, path: str) -> str:
        parts = Path(path).absolute().parts[-2:]
        return f"{'/'.join(parts).lstrip('/')}@{digest_of(path, self.remedy)}"

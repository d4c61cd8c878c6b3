"""Plain, chat and few-shot: what a model reads in each form, against the texts and templates themselves."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest

from awkward import KINDS, tokenizer
from topkit.errors import InputError
from topkit.experiments.tasks import TASKS, Haystack, Prompt, make_task, task_name
from topkit.experiments.tasks.base import Planted, Question, Task
from topkit.experiments.tasks.encoding import begun, together

# Its own first token, a turn that is trimmed; a system's turn by itself; and turns as they stand.
TEMPLATES = {
    "trims": "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content | trim }}</s>\n"
    "{% endfor %}{% if add_generation_prompt %}[assistant]\n{% endif %}",
    "system": "{{ bos_token }}[system] Be brief.</s>{% for m in messages %}\n[{{ m.role }}]\n"
    "{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}\n[assistant]\n{% endif %}",
    "bare": "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}",
}
SMALL: dict[str, dict[str, Any]] = {
    "niah-multikey": {"distractors": 4},
    "niah-multiquery": {"distractors": 0, "questions": 1},
    "niah-multivalue": {"questions": 2},
    "niah-word": {"distractors": 2},
    "kv-recall": {"distractors": 12},
    "variable-tracking": {"distractors": 2},
    "recite": {"words": 12},
    "books": {"tokens": 32},
}
LENGTH = 1400


def chatty(kind: str, template: str, frame: Any = "both") -> Any:
    made = copy.deepcopy(tokenizer(kind, frame))
    made.chat_template = TEMPLATES[template]
    return made


def drawn(made: Any, name: str, length: int = LENGTH, sample: int = 0, **given: Any) -> Prompt:
    return make_task(name, **(SMALL.get(name, {}) | given)).sample(made, length, sample)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", KINDS)
def test_chat_is_the_tokenizers_own_template(kind: str, template: str) -> None:
    """What is read up to the answer is what `apply_chat_template` encodes, and the answer's start."""
    made = chatty(kind, template)
    for name in ("niah-multikey", "niah-multivalue", "kv-recall"):
        prompt = drawn(made, name, 3000 if kind == "merging" else LENGTH, form="chat")
        assert not prompt.stop and prompt.tokens_to_generate is not None
        for number, q in enumerate(prompt.questions):
            turn = {"role": "user", "content": prompt.text + q.text.removesuffix(q.prefix)}
            shown = made.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
            assert q.text.endswith(q.prefix) and ("[system]" in shown) == (template == "system")
            read = [*prompt.ids, *q.ids, *q.seam_ids]
            assert read == made(shown + q.prefix, add_special_tokens=False).input_ids
            if not q.prefix:
                (own,) = made.apply_chat_template(
                    [[turn]], add_generation_prompt=True, return_dict=False
                )
                assert read == own
            assert read.count(made.bos_token_id) == (template != "bare")
            assert prompt.tokens(number) == len(read)
            # The true answer follows, as one text with all before it.
            answer = q.answer if q.prefix else q.answer.strip()
            ids = made(shown + q.prefix + answer, add_special_tokens=False).input_ids
            assert [*prompt.ids, *q.ids, *q.answer_ids] == ids
            assert len(ids) <= prompt.length


@pytest.mark.parametrize("kind", KINDS)
def test_in_chat_the_haystack_ends_where_its_text_does(kind: str) -> None:
    made = chatty(kind, "system")
    prompt = drawn(made, "kv-recall", 3000 if kind == "merging" else LENGTH, form="chat")
    (q, *_) = prompt.questions
    turn = {"role": "user", "content": prompt.text + q.text.removesuffix(q.prefix)}
    shown = made.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
    end = shown.index(prompt.text) + len(prompt.text)
    offsets = made(
        shown + q.prefix + q.answer, add_special_tokens=False, return_offsets_mapping=True
    ).offset_mapping
    assert len(prompt.ids) == sum(stop <= end for _, stop in offsets)


@pytest.mark.parametrize("name", [name for name in TASKS if name != "books"])
def test_examples_are_of_the_same_task_and_of_other_values(name: str) -> None:
    made = tokenizer("byte level")
    for shots in (1, 2):
        prompt = drawn(made, name, 2000, form="fewshot", shots=shots)
        plain = drawn(made, name, 2000)
        assert len(prompt.questions) == len(plain.questions)
        haystack, *shown = prompt.text.split("\n")
        assert len(shown) == shots
        for line in shown:
            value = re.split("[ =]", line)[-1]
            assert value in haystack  # what an example says stands there
            assert not any(q.answer in line or line in q.text for q in prompt.questions)
        used = max(len(q.ids) + len(q.answer_ids) for q in prompt.questions)
        assert len(prompt.ids) + used <= 2000


def test_an_example_is_a_question_with_its_answer() -> None:
    made = tokenizer("byte level")
    prompt = drawn(made, "niah-single", form="fewshot", shots=3, wording="code")
    (q,) = prompt.questions
    *_, one, two, three = prompt.text.split("\n")
    for line in (one, two, three):
        ask, _, said = line.partition("? ")
        thing = ask.removeprefix("What is the access code of the ")
        assert said.startswith(f"The access code of the {thing} is ")
        value = said.rpartition(" ")[2]
        assert f"The access code of the {thing} is {value}." in prompt.text
        assert q.references != (value,) and thing not in q.text
    assert begun(made, prompt.text + q.text) == [*prompt.ids, *q.ids, *q.seam_ids]


@pytest.mark.parametrize("form", ["chat", "fewshot"])
@pytest.mark.parametrize("kind", ["byte level", "prepended", "word piece"])
def test_books_have_the_forms_too(form: str, kind: str) -> None:
    made = chatty(kind, "trims")
    prompt = drawn(made, "books", 600, form=form)
    (q,) = prompt.questions
    assert len(q.answer_ids) == 32 and q.ids and not q.references
    used = len(prompt.ids) + len(q.ids) + 32
    assert 500 < used <= 600
    if form == "fewshot":
        passage, _, _ = prompt.text.partition("\n")
        assert 16 < len(made(passage, add_special_tokens=False).input_ids) <= 32
        assert [*prompt.ids, *q.ids, *q.answer_ids] == begun(made, prompt.text)
    else:
        shown = made.decode([*prompt.ids, *q.ids])
        assert shown.count("assistant") == 1 and "user" in shown
        with pytest.raises(InputError, match="too short"):
            drawn(made, "books", 40, form=form)
    with pytest.raises(InputError, match="too short"):
        drawn(made, "books", 20, form=form)


def test_the_default_is_plain_and_no_name_tells_it() -> None:
    plain = make_task("niah-single")
    assert repr(plain) == (
        "niah-single(questions=1, wording='any', distractors=0, digits=5, depth=-1.0)"
    )
    assert task_name(make_task("niah-single:form=plain")) == "niah-single"
    for text in ("niah-single:form=chat", "niah-single:form=fewshot,shots=3"):
        assert task_name(make_task(text)) == text
        assert make_task(repr(make_task(text))) == make_task(text)
    # Parameters without names stand where they stood.
    assert make_task("niah-multikey(2, any, 7)") == make_task(
        "niah-multikey", questions=2, distractors=7
    )


@pytest.mark.parametrize("form", ["chat", "fewshot"])
def test_what_does_not_fit_is_refused_with_a_length_that_does(form: str) -> None:
    made = chatty("byte level", "system")
    with pytest.raises(InputError, match="do not fit into a length of 60; ask for") as error:
        drawn(made, "niah-single", 60, form=form)
    (least,) = re.findall(r"of (\d+) or more", str(error.value))
    assert int(least) > 60 and drawn(made, "niah-single", int(least) + 2, form=form)


REFUSED = [
    ({"form": "chat"}, "form=chat needs a chat template, and this model's tokenizer has none"),
    ({"form": "chta"}, "no form 'chta'; did you mean 'chat'"),
    ({"form": "fewshot", "shots": 0}, "shots must be at least 1; got 0"),
]


@pytest.mark.parametrize("name", ["niah-single", "books"])
@pytest.mark.parametrize(("given", "said"), REFUSED)
def test_bad_forms_are_refused(name: str, given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        drawn(tokenizer("byte level"), name, **given)


BROKEN = {
    "{{ raise_exception('only tools') }}": "failed: TemplateError: only tools",
    "{{ messages[0].content | upper }}": "changes the text of a turn",
    "{% for": "failed: TemplateSyntaxError",
}


@pytest.mark.parametrize(("template", "said"), BROKEN.items())
def test_a_template_that_cannot_hold_the_turn_is_refused(template: str, said: str) -> None:
    made = copy.deepcopy(tokenizer("byte level"))
    made.chat_template = template
    with pytest.raises(InputError, match=f"^niah-single: the chat template of this model {said}"):
        drawn(made, "niah-single", form="chat")


@dataclass(frozen=True)
class Fixed(Task):
    """One question, whatever is asked for."""

    name: ClassVar[str] = "fixed"

    def plant(self, rng: np.random.Generator, wording: str) -> Planted:
        return Planted(("It is 7.",), (Question("\nIt is", " 7", (" 7",)),))


def test_a_task_without_more_questions_has_no_examples() -> None:
    made = chatty("byte level", "bare")
    with pytest.raises(
        InputError, match="fixed plants 1 questions where 5 are wanted, 1 of them as"
    ):
        Fixed(form="fewshot").sample(made, 300, 0)
    (q,) = Fixed(form="chat").sample(made, 300, 0).questions
    assert q.references == ("7",)  # a blank of running text is no part of what is looked for


def test_a_ready_prompt_is_split_and_joined_again() -> None:
    """As a task of a file does: a haystack and a question of its own, its answer's start, a system's turn."""
    made = chatty("byte level", "trims")
    text, asked = "It was late. The number is 41.\n", "Which number is it? Answer:"
    q = Question(asked, " 41", ("41",), prefix=" Answer:")
    ids, (q,) = together(made, text, [q], "own", "chat", system="Be brief.")
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": text + "Which number is it?"},
    ]
    shown = made.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert [*ids, *q.ids, *q.answer_ids] == made(
        shown + " Answer: 41", add_special_tokens=False
    ).input_ids
    assert made.decode(ids).endswith("41.")
    assert Haystack.bundled().sentences  # the bundled text has no part in it

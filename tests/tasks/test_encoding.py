"""Haystack, question and answer are the tokens of the one text that they are, whatever the tokenizer."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers as pre
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer, WordPieceTrainer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from topkit.errors import InputError
from topkit.experiments.model.load import REFERENCE
from topkit.experiments.tasks import TASKS as OWN
from topkit.experiments.tasks import Haystack, Prompt, make_task
from topkit.experiments.tasks.base import Planted, Question, Task
from topkit.experiments.tasks.encoding import begun, together

MARKS = ["<s>", "</s>", "<unk>"]
FRAMES = {"bos": ("<s> $A", 1, 0), "eos": ("$A </s>", 0, 1), "both": ("<s> $A </s>", 1, 1)}
TASKS = ["niah-single", "niah-multikey", "kv-recall", "variable-tracking"]
SIZES = {"niah-multikey": {"distractors": 4}, "kv-recall": {"distractors": 12}}


def trained(tokenizer: Tokenizer, kind: Any = BpeTrainer, **options: Any) -> Tokenizer:
    """Its vocabulary from the bundled text, and what tasks say."""
    said = ["What is the access code of the amber lamp? = ; 0123456789\n"]
    text = [*Haystack.bundled().sentences[:400], *said]
    tokenizer.train_from_iterator(
        text, kind(vocab_size=600, special_tokens=MARKS, show_progress=False, **options)
    )
    return tokenizer


def byte_level() -> Tokenizer:
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return trained(made, initial_alphabet=pre.ByteLevel.alphabet())


def metaspace(scheme: Any) -> Tokenizer:
    """SentencePiece's kind: a space is a letter, and before a text there may stand one more."""
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre.Metaspace(prepend_scheme=scheme)
    made.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return trained(made)


def prepended() -> Tokenizer:
    """Llama-2's kind: its normalizer writes a space before every text, and nothing splits words."""
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)])
    made.pre_tokenizer = pre.Split("▁", "merged_with_next")
    return trained(made)


def merging() -> Tokenizer:
    """Merges across the seams: of a text's end and a line's, of a space or a sign and a digit."""
    letters = ["\n", *map(chr, range(32, 127))]
    pairs = [*((a, "\n") for a in letters), *((a, b) for a in " =:" for b in "0123456789")]
    pairs += [(a + b, c) for a, b in pairs if b.isdigit() for c in "0123456789"]
    tokens = [*MARKS, *letters, *dict.fromkeys(a + b for a, b in pairs)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, unk_token="<unk>"))
    made.decoder = decoders.Fuse()
    return made


def word_piece() -> Tokenizer:
    """BERT's kind: lower case, no spaces, and other tokens within a word."""
    made = Tokenizer(models.WordPiece(unk_token="<unk>"))  # type: ignore[call-arg]
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    return trained(made, WordPieceTrainer, limit_alphabet=200)


KINDS = {
    "byte level": byte_level,
    "always": lambda: metaspace("always"),
    "first": lambda: metaspace("first"),
    "never": lambda: metaspace("never"),
    "prepended": prepended,
    "merging": merging,
    "word piece": word_piece,
}


@lru_cache(None)
def tokenizer(kind: str, frame: str | None = "both") -> PreTrainedTokenizerFast:
    made = Tokenizer.from_str(plain(kind).to_str())
    made.add_special_tokens([AddedToken(mark, special=True) for mark in MARKS])
    if frame:
        made.post_processor = TemplateProcessing(
            single=FRAMES[frame][0], special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")


@cache
def plain(kind: str) -> Tokenizer:
    return KINDS[kind]()


def drawn(kind: str, name: str, frame: str | None = "both", length: int = 512) -> Prompt:
    task = make_task(name, questions=1 if name == "niah-single" else 3, **SIZES.get(name, {}))
    return task.sample(tokenizer(kind, frame), length, 0)  # type: ignore[arg-type]


def whole(kind: str, frame: str | None, text: str) -> Any:
    """The encoding of a text by the library itself, and how many of its tokens are the text's."""
    encoding = tokenizer(kind, frame).backend_tokenizer.encode(text)
    before, behind = FRAMES[frame][1:] if frame else (0, 0)
    return encoding, before, len(encoding.ids) - behind


@pytest.mark.parametrize("frame", [*FRAMES, None])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TASKS)
def test_joined_they_are_the_tokens_of_the_whole_text(kind: str, name: str, frame: Any) -> None:
    prompt = drawn(kind, name, frame, 2048 if kind == "merging" else 1024)
    for q in prompt.questions:
        encoding, _, stop = whole(kind, frame, prompt.text + q.text + q.answer)
        assert [*prompt.ids, *q.ids, *q.answer_ids] == encoding.ids[:stop]
        assert prompt.ids and q.ids and q.answer_ids


@pytest.mark.parametrize("frame", ["both", None])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TASKS)
def test_the_seams_fall_where_the_texts_meet(kind: str, name: str, frame: Any) -> None:
    """By the characters that each token covers: one that covers some of two texts is the later's."""
    prompt = drawn(kind, name, frame, 2048 if kind == "merging" else 1024)
    for q in prompt.questions:
        asked = len(prompt.text + q.text)
        encoding, first, stop = whole(kind, frame, prompt.text + q.text + q.answer)
        ends = [end for _, end in encoding.offsets[first:stop]]
        assert len(prompt.ids) == first + sum(end <= len(prompt.text) for end in ends)
        assert len(prompt.ids) + len(q.ids) == first + sum(end <= asked for end in ends)


def test_a_merge_over_a_seam_goes_to_what_comes_later() -> None:
    made = tokenizer("merging")
    prompt = drawn("merging", "kv-recall", length=2048)
    (q, *_) = prompt.questions
    assert made.decode([q.ids[0]]) == f"{prompt.text[-1]}\n"
    assert str(made.decode(list(prompt.ids))).endswith(prompt.text[-9:-1])
    assert q.text.endswith("=") and made.decode([q.answer_ids[0]]) == f"={q.answer[:2]}"
    assert made.decode(list(q.answer_ids)) == "=" + q.answer
    (q,) = drawn("merging", "niah-single", length=2048).questions
    assert made.decode([q.answer_ids[0]]) == q.answer[:3]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*TASKS, "books"])
def test_length_is_met_and_never_passed(kind: str, name: str) -> None:
    for length in (1024, 1500):
        given = {"tokens": 64} if name == "books" else SIZES.get(name, {})
        prompt = make_task(name, **given).sample(tokenizer(kind), length, 1)  # type: ignore[arg-type]
        used = len(prompt.ids) + max(len(q.ids) + len(q.answer_ids) for q in prompt.questions)
        assert length - 32 <= used <= length


@pytest.mark.parametrize("kind", KINDS)
def test_running_text_ends_with_no_mark(kind: str) -> None:
    prompt = make_task("books", tokens=64).sample(tokenizer(kind), 600, 0)
    (q,) = prompt.questions
    encoding, _, stop = whole(kind, "both", prompt.text)
    assert [*prompt.ids, *q.ids, *q.answer_ids] == encoding.ids[:stop]
    assert len(q.answer_ids) == 64 and q.answer_ids[-1] != 1


PIECES = st.text("ab .=\n0123", max_size=12)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(list(KINDS)), PIECES, st.lists(st.tuples(PIECES, PIECES), min_size=1))
def test_any_texts_are_joined_or_refused(kind: str, text: str, asked: list) -> None:
    text, made = f"It was late. {text}", tokenizer(kind)
    questions = [Question(ask, answer, (answer,)) for ask, answer in asked]
    if any(begun(made, text + q.text) == begun(made, text + q.text + q.answer) for q in questions):
        with pytest.raises(InputError, match="no tokens"):
            together(made, text, questions, "own")
        return
    ids, encoded = together(made, text, questions, "own")
    for q in encoded:
        encoding, _, stop = whole(kind, "both", text + q.text + q.answer)
        assert [*ids, *q.ids, *q.answer_ids] == encoding.ids[:stop]
        assert ids and q.ids and q.answer_ids
        # What comes before the answer is what the question has by itself.
        before = begun(made, text + q.text)
        assert before[: len(ids) + len(q.ids)] == [*ids, *q.ids]


@dataclass(frozen=True)
class Bare(Task):
    """A question without words, or an answer without."""

    name: ClassVar[str] = "bare"
    asks: str = ""
    says: str = " seven"

    def plant(self, rng: np.random.Generator, wording: str) -> Planted:
        return Planted(("The number is seven.",), (Question(self.asks, self.says, ("seven",)),))


def test_a_question_without_words_takes_the_haystacks_last_token() -> None:
    made = tokenizer("byte level")
    prompt = Bare().sample(made, 200, 0)  # type: ignore[arg-type]
    (q,) = prompt.questions
    assert [*prompt.ids, *q.ids] == begun(made, prompt.text) and len(q.ids) == 1


def test_an_answer_without_tokens_is_refused() -> None:
    with pytest.raises(InputError, match="bare: its answer '' has no tokens"):
        Bare(says="").sample(tokenizer("byte level"), 200, 0)  # type: ignore[arg-type]


def test_prompts_of_the_bundled_tokenizer_are_those_of_0_1() -> None:
    """By which the numbers of studies that were made with it stay."""
    made = AutoTokenizer.from_pretrained(REFERENCE, local_files_only=True)
    prompts = [make_task(name).sample(made, 2048, 1) for name in sorted(OWN)]
    ids = [
        [list(p.ids), *([list(q.ids), list(q.answer_ids)] for q in p.questions)] for p in prompts
    ]
    assert hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16] == "d879b60d81d8ff9b"

"""Tokenizers with habits: spaces of their own, merges over seams, marks before and behind a text."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers as pre
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer, WordPieceTrainer
from transformers import PreTrainedTokenizerFast

from topkit.experiments.tasks import Haystack

MARKS = ["<s>", "</s>", "<unk>"]
FRAMES = {"bos": ("<s> $A", 1, 0), "eos": ("$A </s>", 0, 1), "both": ("<s> $A </s>", 1, 1)}


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

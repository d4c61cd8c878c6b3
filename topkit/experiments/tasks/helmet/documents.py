"""HELMET's RAG and Re-rank: documents, and a question of which some tell the answer."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from topkit.documents import Number, Prose, Whole
from topkit.experiments.tasks.files.row import Row
from topkit.experiments.tasks.files.rules import RANKED

QUESTIONS = {
    "id?": object,
    "question": Prose,
    "answers": [Prose],
    "ctxs": [{"title": Prose, "text": Prose}],
    "s_pop?": Number(0),
}
RANKINGS = {
    "qid": Prose,
    "query": Prose,
    "ctxs": [{"id": Prose, "text": Prose, "title?": Prose, "label": Whole()}],
}


def answer_row(read: dict[str, Any], demos: Sequence[dict[str, Any]]) -> Row:
    """A row of kilt_*: documents, then the question."""
    shown = [
        f"{_titled(demo)}\n\nQuestion: {demo['question']}\nAnswer: {''.join(demo['answers'][:1])}\n\n"
        for demo in demos
    ]
    return Row(
        before="Use the given documents to write a concise and short answer to the question. Write your "
        f"answer in the following format:\nAnswer: [answer]\n\n{''.join(shown)}",
        context=_titled(read),
        after=f"\n\nQuestion: {read['question']}",
        cue="\nAnswer:",
        answer=f" {read['answers'][0]}" if read["answers"] else "",
        references=tuple(read["answers"]),
        rule="substring",
        tokens=0,
    )


def ranking_row(read: dict[str, Any], demos: Sequence[dict[str, Any]]) -> Row:
    """A row of msmarco: documents, then the question for which they are to be ranked.

    The answer that NLL and KL are of names as many documents as the score looks at.
    """
    shown = [
        f"{_numbered(demo)}\n\nQuery: {demo['query']}\nRanking: {' > '.join(_ranked(demo))}\n\n"
        for demo in demos
    ]
    return Row(
        before="You are provided with a list of documents, each indicated by their ID. Rank each "
        "document based on their relevance to the question in descending order from most relelvant to "
        "least relevant texts. Include all documents in the rankings. Write your answer using the "
        f"unique IDs, with the following format:\nRanking: ID3 > ID1 > ID2\n\n{''.join(shown)}",
        context=_numbered(read),
        after=f"\n\nQuery: {read['query']}",
        cue="\nRanking:",
        answer=f" {' > '.join(_ranked(read)[:RANKED])}",
        references=tuple(f"{one['id']} {one['label']}" for one in read["ctxs"]),
        rule="ndcg@10",
        tokens=0,
    )


def demonstrations(
    read: dict[str, Any], known: Sequence[dict[str, Any]], key: str, shots: int
) -> list[dict[str, Any]]:
    """Those that HELMET shows before a row: shuffled by a hash of its key, of each key the first."""
    name = str(read[key])
    seed = int(hashlib.sha256(name.encode()).hexdigest(), 16) % 2**31
    order = np.random.default_rng(seed).permutation(len(known))
    first: dict[str, dict[str, Any]] = {}
    for place in order:
        first.setdefault(str(known[int(place)][key]), known[int(place)])
    return list(first.values())[:shots]


def _titled(read: dict[str, Any]) -> str:
    return "\n\n".join(f"Document (Title: {one['title']}): {one['text']}" for one in read["ctxs"])


def _numbered(read: dict[str, Any]) -> str:
    titled = "title" in read["ctxs"][0]
    return "\n\n".join(
        f"[ID: {one['id']}] Document"
        + (f" (Title: {one.get('title', '')})" if titled else "")
        + f": {one['text']}"
        for one in read["ctxs"]
    )


def _ranked(read: dict[str, Any]) -> list[str]:
    return [one["id"] for one in sorted(read["ctxs"], key=lambda one: -one["label"])]

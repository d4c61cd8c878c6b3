"""HELMET's datasets: which a file is of, and how many tokens each may answer in."""

# pyright: strict
from __future__ import annotations

from pathlib import Path

from topkit.errors import InputError
from topkit.grammar import nearest

# Dataset: (what its file's path has in it, tokens to generate).
DATASETS: dict[str, tuple[str, int]] = {
    "json_kv": ("json_kv", 100),
    "ruler_niah_mk_2": ("niah_multikey_2", 50),
    "ruler_niah_mk_3": ("niah_multikey_3", 100),
    "ruler_niah_mv": ("niah_multivalue", 50),
    "kilt_nq": ("nq-", 20),
    "kilt_triviaqa": ("triviaqa-", 20),
    "kilt_hotpotqa": ("hotpotqa-", 20),
    "kilt_popqa_3": ("popqa", 20),
    "msmarco_rerank_psg": ("reranking", 200),
    "icl_trec_coarse": ("trec_coarse", 20),
    "icl_trec_fine": ("trec_fine", 20),
    "icl_banking77": ("banking77", 20),
    "icl_clinic150": ("clinic150", 20),
    "icl_nlu": ("nlu", 20),
}
# Of ICL: how many labels there are, and how many demonstrations at 8K, 16K, 32K, 64K, 128K.
LABELS: dict[str, tuple[int, tuple[int, ...]]] = {
    "icl_trec_coarse": (6, (400, 800, 1600, 3300, 6600)),
    "icl_trec_fine": (50, (400, 800, 1600, 3200, 6400)),
    "icl_banking77": (77, (360, 720, 1450, 2900, 5900)),
    "icl_clinic150": (151, (440, 880, 1750, 3525, 7050)),
    "icl_nlu": (68, (510, 1020, 2040, 4080, 8296)),
}
SHORTEST = 8192
# Of the others: demonstrations before a question.
SHOTS = 2
# Questions of PopQA about what is looked up less than 10 to the third, as kilt_popqa_3 says.
POPULARITY = 3


def dataset_of(file: str) -> str:
    """The dataset that a file's name, or its folder, says; none: ""."""
    path = Path(file).absolute()
    for words in (path.name, path.parent.name):
        if known := [name for name, (mark, _) in DATASETS.items() if mark in words]:
            return known[0]
    return ""


def require_dataset(name: str) -> None:
    """Raises: InputError for a name that is none of HELMET's."""
    if name not in DATASETS:
        raise InputError(f"helmet has no task {name!r}; {nearest(name, DATASETS)}")


def shots_of(dataset: str, length: int) -> int:
    """How many demonstrations HELMET shows at a length; of ICL between its lengths, in proportion."""
    if dataset not in LABELS:
        return SHOTS
    _, counts = LABELS[dataset]
    known = {SHORTEST << n: count for n, count in enumerate(counts)}
    return known.get(length, max(1, counts[0] * length // SHORTEST))

"""What a gate must say of lists of slots, written out in plain Python, row by row."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

NEVER = -math.inf
Row = list[float]


@dataclass
class Case:
    """Scores of rows as lists, hidden slots among them, and the call that hands the same over.

    shape: of the rows; hidden: what each slot scores before anything is hidden; places: the names of each row;
    ids: the physical id of each slot of a row.
    """

    shape: tuple[int, ...]
    rows: list[Row]
    unmasked: list[Row]
    places: list[dict[str, int]]
    ids: list[Callable[[int], int]]
    call: dict[str, Any]
    k: int
    page: int

    def listed(self, slots: list[list[int]]) -> np.ndarray:
        """Slots as the kernel names them, -1 filled up."""
        width = self.k
        out = [
            [self.ids[n](s) if s >= 0 else s for s in own] + [-1] * (width - len(own))
            for n, own in enumerate(slots)
        ]
        return np.array(out).reshape(*self.shape, width)


def best(row: Row, k: int, rng: random.Random) -> list[int]:
    """A perfect choice, ties broken by chance."""
    order = list(range(len(row)))
    rng.shuffle(order)
    order.sort(key=lambda slot: -row[slot])
    return [slot for slot in order if row[slot] > NEVER][:k]


def figures(slots: list[int], row: Row, k: int) -> tuple[float, float, float, bool]:
    """Recall, mass, mass ratio, and whether the boundary is tied."""
    seen = sorted((s for s in row if s > NEVER), reverse=True)
    wanted = min(k, len(seen))
    if wanted == 0:
        return 1.0, 1.0, 1.0, False
    own = [row[s] for s in set(slots) if 0 <= s < len(row) and row[s] > NEVER]
    recall = min(wanted, sum(s >= seen[wanted - 1] for s in own)) / wanted
    total = sum(math.exp(s - seen[0]) for s in seen)
    mass = sum(math.exp(s - seen[0]) for s in own) / total
    most = sum(math.exp(s - seen[0]) for s in seen[:wanted]) / total
    return recall, mass, mass / most, len(seen) > wanted and seen[wanted - 1] == seen[wanted]


def right(slots: list[int], row: Row, k: int, least: dict[str, float]) -> bool:
    """Whether a row is as it is asked for."""
    chosen = [s for s in slots if s != -1]
    wanted = min(k, sum(s > NEVER for s in row))
    if len(set(chosen)) != len(chosen) or len(chosen) > wanted:
        return False
    if any(not 0 <= s < len(row) or row[s] == NEVER for s in chosen):
        return False
    if not least:
        own = sorted((row[s] for s in chosen), reverse=True)
        return own == sorted((s for s in row if s > NEVER), reverse=True)[:wanted]
    recall, mass, ratio, _ = figures(chosen, row, k)
    named = {"recall": recall, "mass": mass + 2e-6, "mass_ratio": ratio + 2e-6}
    return all(named[name] >= bound for name, bound in least.items())


def off_by_one(case: Case, n: int, good: list[int], rng: random.Random) -> list[int]:
    """The next after the boundary in place of the last before it."""
    order = best(case.rows[n], len(case.rows[n]), rng)
    return [*good[:-1], order[len(good)]] if len(order) > len(good) else good


def drops_last_page(case: Case, n: int, good: list[int], rng: random.Random) -> list[int]:
    """Whole pages alone are read."""
    seen = [s for s, x in enumerate(case.rows[n]) if x > NEVER]
    end = (len(seen) and (seen[-1] // case.page) * case.page) or 0
    row = [x if s < end else NEVER for s, x in enumerate(case.rows[n])]
    return best(row, case.k, rng)


def duplicates(case: Case, n: int, good: list[int], rng: random.Random) -> list[int]:
    return [*good[:-1], good[0]] if len(good) > 1 else good


def ignores_lengths(case: Case, n: int, good: list[int], rng: random.Random) -> list[int]:
    return best(case.unmasked[n], case.k, rng)


def sees_the_next(case: Case, n: int, good: list[int], rng: random.Random) -> list[int]:
    """One key behind the query's own."""
    hidden = [s for s, x in enumerate(case.rows[n]) if x == NEVER]
    return [*good[:-1], hidden[0]] if hidden and good else good


def fills_with_zero(case: Case, n: int, good: list[int], rng: random.Random) -> list[int]:
    return good + [0] * (case.k - len(good))


def drops_one(case: Case, n: int, good: list[int], rng: random.Random) -> list[int]:
    return good[1:]


def past_the_end(case: Case, n: int, good: list[int], rng: random.Random) -> list[int]:
    return [*good[:-1], len(case.rows[n])] if good else good


MUTANTS = [
    off_by_one, drops_last_page, duplicates, ignores_lengths, sees_the_next, fills_with_zero, drops_one,
    past_the_end,
]  # fmt: skip


def draw(rng: random.Random, form: str, paged: bool) -> Case:
    """A case of one form: scores by rows or by queries, queries and keys, ragged or padded."""
    batch, page = rng.randint(1, 3), rng.choice([1, 2, 4])
    counts = [rng.randint(1, 3) for _ in range(batch)]
    ragged = form.startswith("ragged")
    if not ragged:
        counts = [1 if form == "rows" else counts[0]] * batch
    lengths = [rng.randint(n, 9) for n in counts]
    width, heads = max(lengths) + rng.randint(0, 2), 1 if form == "rows" else rng.choice([1, 2])
    k = rng.randint(1, width)
    vector = [[rng.randint(-2, 2) for _ in range(3)] for _ in range(width * batch)]
    keys = np.array(vector, dtype=np.float32).reshape(batch, 1, width, 3)
    queries = np.array(
        [rng.randint(-2, 2) for _ in range(batch * heads * 3 * 3)], dtype=np.float32
    ).reshape(batch, heads, 3, 3)
    tables = [rng.sample(range(20), -(-width // page)) for _ in range(batch)]
    case = Case((), [], [], [], [], {}, k, page)

    def row(b: int, h: int, i: int) -> None:
        score = [float(queries[b, h, i] @ keys[b, 0, t]) for t in range(width)]
        stop = lengths[b] - counts[b] + i + 1
        case.unmasked.append(score)
        case.rows.append([x if t < stop else NEVER for t, x in enumerate(score)])
        table = tables[b]
        case.ids.append(
            (lambda s: table[s // page] * page + s % page if s // page < len(table) else 9999)
            if paged else lambda s: s
        )  # fmt: skip

    flat = ragged and heads == 1 and rng.random() < 0.5  # [tokens, k]
    if ragged:
        starts = np.cumsum([0, *counts])
        for b in range(batch):
            for i in range(counts[b]):
                for h in range(heads):
                    row(b, h, i)
                    head = {} if flat else {"head": h}
                    place = {"token": int(starts[b]) + i, **head, "sequence": b, "query": i}
                    case.places.append(place)
        case.shape = (int(starts[-1]),) if flat else (int(starts[-1]), heads)
    else:
        for b in range(batch):
            for h in range(heads):
                for i in range(counts[0]):
                    row(b, h, i)
                    case.places.append(
                        {"row": b} if form == "rows" else {"batch": b, "head": h, "query": i}
                    )
        case.shape = (batch,) if form == "rows" else (batch, heads, counts[0])
    _hand_over(case, form, queries, keys, counts, lengths)
    if paged:
        case.call |= {"block_table": np.array(tables), "page_size": page}
    return case


def _hand_over(case: Case, form: str, queries: Any, keys: Any, counts: Any, lengths: Any) -> None:
    """The same as a caller has it."""
    heads = queries.shape[1]
    case.call = {"k": case.k, "lengths": np.array(lengths)}
    if form.startswith("ragged"):
        case.call["cu_seqlens"] = np.cumsum([0, *counts])
    if form in ("rows", "queries", "ragged scores"):
        case.call["scores"] = np.array(case.unmasked).reshape(*case.shape, -1)
        # What is behind the last query's own slot may hold anything.
        ends = np.repeat(lengths, counts)[:, None] if "ragged" in form else np.array(lengths)
        ends = ends.reshape(-1, *[1] * (case.call["scores"].ndim - 1))
        behind = np.arange(case.call["scores"].shape[-1]) >= ends
        case.call["scores"] = np.where(behind, math.nan, case.call["scores"])
    elif form == "keys":
        case.call |= {"queries": queries[:, :, : counts[0]], "keys": keys}
    else:
        own = [q[:, :n].swapaxes(0, 1) for q, n in zip(queries, counts, strict=True)]
        parts = [x[:, :n].swapaxes(0, 1) for x, n in zip(keys, lengths, strict=True)]
        assert heads == own[0].shape[1]
        case.call |= {"queries": np.concatenate(own), "keys": np.concatenate(parts)}
        if form == "ragged padded":
            case.call["keys"] = keys
    if form in ("keys", "ragged", "ragged padded"):
        case.call["scaling"] = 1.0


FORMS = ["rows", "queries", "keys", "ragged", "ragged padded", "ragged scores"]

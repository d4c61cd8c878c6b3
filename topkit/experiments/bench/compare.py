"""A run beside an older one: what has become slower by more than both spreads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from topkit.errors import InputError
from topkit.experiments.bench.rows import KEY, RATES, timed

SLOWER, FASTER, SAME = "slower", "faster", "same"
TIMED = (SLOWER, FASTER, SAME)
ONLY_OLD, ONLY_NEW, LOST = "only in the old", "only in the new", "timed in the old alone"

Pair = dict[str, Any]


def require_device(old: Iterable[Mapping[str, Any]], device: str) -> None:
    """Raises: InputError where none of the old rows are of this device: nothing could be compared."""
    there = sorted({str(row["device"]) for row in old})
    if device not in there:
        raise InputError(
            f"nothing to compare: the old rows are of {', '.join(there)}, not {device}"
        )


def compared(old: Iterable[Mapping[str, Any]], new: Iterable[Mapping[str, Any]]) -> list[Pair]:
    """A row for each that either has a time of: old and new medians, how many times slower, verdict.

    Slower: the new lower quartile is above the old upper one by more than the two spreads between
    quartiles (below it, for rates).
    """
    new = list(new)
    before, after = _by_key(old), _by_key(new)
    tried = {_named(row) for row in new if not timed(row)}
    devices = {key[KEY.index("device")] for key in after}
    keys = [key for key in {**before, **after} if key[KEY.index("device")] in devices]
    pairs = []
    for key in keys:
        pair = dict(zip(KEY, key, strict=True)) | _both(before.get(key), after.get(key))
        if pair["verdict"] == ONLY_OLD and key[:-1] in tried:
            pair["verdict"] = LOST
        pairs.append(pair)
    return pairs


def _both(was: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> Pair:
    either = was or now or {}
    pair: Pair = {
        "old": None if was is None else float(was["median"]),
        "new": None if now is None else float(now["median"]),
        "times slower": None,
    }
    if was is None or now is None:
        return pair | {"verdict": ONLY_NEW if was is None else ONLY_OLD}
    over, under = pair["new"], pair["old"]
    if either["unit"] in RATES:
        over, under = under, over
    return pair | {"times slower": over / under if under else None, "verdict": _verdict(was, now)}


def shared(pairs: Iterable[Pair]) -> list[Pair]:
    """What both have a time of, but for the bandwidths, which stand in every run."""
    return [pair for pair in pairs if pair["verdict"] in TIMED and pair["bench"] != "bandwidth"]


def regressions(pairs: Iterable[Pair]) -> list[Pair]:
    """What became slower, and what could not be timed any more."""
    return [pair for pair in pairs if pair["verdict"] in (SLOWER, LOST)]


def _verdict(was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    (low, high), (new_low, new_high) = _quartiles(was), _quartiles(now)
    doubt = (high - low) + (new_high - new_low)
    if new_low - high > doubt:
        return SLOWER
    return FASTER if low - new_high > doubt else SAME


def _quartiles(row: Mapping[str, Any]) -> tuple[float, float]:
    """Ascending and lower is better; rates are negated."""
    low, high = float(row["low"]), float(row["high"])
    return (-high, -low) if row["unit"] in RATES else (low, high)


def _by_key(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, ...], Mapping[str, Any]]:
    """Rows that have a time."""
    return {(*_named(row), str(row["unit"] or "")): row for row in rows if timed(row)}


def _named(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The key of a row without its unit, which one that failed lacks."""
    return tuple(str(row.get(name) or "") for name in KEY[:-1])

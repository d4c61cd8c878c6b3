"""A model in one line: which layers can be sparse, which stay dense and why, sinks, an own indexer."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from transformers import PreTrainedModel

from topkit.experiments.model.own_indexer import indexers, own_k
from topkit.experiments.model.record import LayerRecord


def outline(
    model: PreTrainedModel, records: Mapping[int, LayerRecord], sparse: Collection[int]
) -> str:
    """The line, from the records of a short pass over every layer; `sparse` are the layers that may be.

    "LlamaForCausalLM: 30 layers, 9 query heads on 3 KV heads of width 64; layers 0-29 sparse".
    """
    config = model.config.get_text_config()
    any_record = records[min(records)]
    heads, groups = any_record.queries.shape[1], any_record.keys.shape[1]
    count = getattr(config, "num_hidden_layers", len(records))
    parts = [
        f"{_counted(count, 'layer')}, {_counted(heads, 'query head')} on "
        f"{_counted(groups, 'KV head')} of width {any_record.keys.shape[3]}",
        f"{ranges(sparse)} sparse" if sparse else "none sparse",
        *_dense(records, sparse, set(range(count)) - set(records)),
        *_softmax(records),
        *_own(records, own_k(model)),
    ]
    return f"{type(model).__name__}: {'; '.join(parts)}"


def attending_to_all(records: Mapping[int, LayerRecord], length: int) -> set[int]:
    """The layers whose queries see all of `length` keys."""
    return {n for n, one in records.items() if one.window is None or one.window >= length}


def _dense(
    records: Mapping[int, LayerRecord], sparse: Collection[int], without: Collection[int]
) -> Iterable[str]:
    """For each reason why layers stay dense, a part of the line."""
    reasons: dict[str, list[int]] = {}
    for layer, record in records.items():
        if layer not in sparse:
            window = record.window
            why = "by choice" if window is None else f"(a sliding window of {window:,} keys)"
            reasons.setdefault(why, []).append(layer)
    yield from (f"{ranges(layers)} dense {why}" for why, layers in sorted(reasons.items()))
    if without:
        yield f"{ranges(without)} without softmax attention"


def _softmax(records: Mapping[int, LayerRecord]) -> Iterable[str]:
    """The parts of the line about sinks and softcaps."""
    sinks = [layer for layer, record in records.items() if record.softmax.sinks is not None]
    if sinks:
        yield f"a sink a query head in {ranges(sinks)}"
    caps: dict[float, list[int]] = {}
    for layer, record in records.items():
        if record.softmax.softcap is not None:
            caps.setdefault(record.softmax.softcap, []).append(layer)
    yield from (f"scores capped at {cap:g} in {ranges(layers)}" for cap, layers in caps.items())


def _own(records: Mapping[int, LayerRecord], keys: int | None) -> Iterable[str]:
    listed = [layer for layer, record in records.items() if record.chosen is not None]
    if not listed:
        return
    most = "" if keys is None else f" ({keys:,} keys)"
    choosing = [layer for layer in listed if indexers(records[layer].module)]
    reusing = sorted(set(listed) - set(choosing))
    reused = f", whose lists {ranges(reusing)} reuse{'s' * (len(reusing) == 1)}" if reusing else ""
    yield f"an indexer of its own{most} in {ranges(choosing)}{reused}"


def ranges(layers: Iterable[int]) -> str:
    """Layers as people write them: "layer 3", "layers 0-4, 6"."""
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    listed = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
    return f"{'layer' if listed.isdecimal() else 'layers'} {listed}"


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"

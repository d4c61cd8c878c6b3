"""What a run holds, by arithmetic: a large model fits where its rows are cut, and says which cut fits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer

from topkit.contract.memory import tensors_in_reach
from topkit.errors import InputError
from topkit.experiments.evaluate.memory import bytes_a_key, memory_of, require_room
from topkit.experiments.evaluate.setting import Setting
from topkit.experiments.evaluate.shape import Asked, Shape
from topkit.experiments.evaluate.size import asked_of
from topkit.experiments.model.load import REFERENCE
from topkit.experiments.runs.cells import Cell, parse_cells
from topkit.experiments.runs.fidelity_rows import TABLES
from topkit.experiments.tasks import make_task
from topkit.indexers.base import Cache, Step
from topkit.indexers.branched import branched
from topkit.indexers.scored import Codes, Scored
from topkit.indexers.spec import parse

LAYERS, GROUPS, WIDTH, TOKENS = 32, 8, 128, 128 * 1024
# Llama 3.1 8B in bfloat16.
EIGHT_B = Shape(
    weights=2 * 8_030_000_000,
    layers=LAYERS,
    heads=(32, GROUPS),
    width=(WIDTH, WIDTH),
    passing=4 * 4096 + 3 * 14336,
    vocabulary=128256,
    bytes=2,
    on_device=True,
)
LONG = Asked(TOKENS, questions=4, tail=60, answer=8)
KEYS = LAYERS * GROUPS * WIDTH * TOKENS  # elements of all keys


@dataclass(frozen=True)
class unstated(Scored):
    """Codes of three channels, of which it states no bytes."""

    def encode(self, keys: Tensor, step: Step) -> Codes:
        return {"three": keys[..., :3].clone()}


# The kinds that quick studies: oracles, codes, what chooses from codes, pages, a graph, a trained one.
SPECS = [
    *(
        f"degraded(0.8{manner})"
        for manner in ("", ",fill='next'", ",miss='boundary'", ",per='layer'")
    ),
    *(f"degraded({p})" for p in (0.5, 0.6, 0.7, 0.9, 0.95)),
    *(f"quantized(dtype='{dtype}')" for dtype in ("int8", "fp8_e4m3", "int4", "int2")),
    *("sign()", "refine(sign(),factor=4)", "keep(sign(),sink=2,window=4)", "shared(sign())"),
    *("shared(quantized(dtype='int8'))", "quest(page_size=4)", "streaming_llm()", "random()"),
    *("top_p(quantized(dtype='int4'),mass=0.9)", "sampled(quantized(dtype='int4'))"),
    *("faiss_ivf(nlist=64)", "lightning(dtype='fp8')"),
]


def cells() -> list[Cell]:
    every = parse_cells(SPECS, 2048) + parse_cells("exact()", [256, 512, 1024], dense=False)
    assert len(every) == 29
    return every


def test_a_softmax_without_a_kernel_writes_scores_of_some_queries() -> None:
    cell, capped = parse_cells("exact()", 256), replace(EIGHT_B, plain=False, passing=1 << 20)
    plain = replace(capped, plain=True)
    apart = memory_of(capped, LONG, cell, 8) - memory_of(plain, LONG, cell, 8)
    assert apart == 8 * (1 << 28)


def test_a_model_s_own_indexer_scores_all_tokens_of_a_haystack_at_once() -> None:
    """64 heads over 4K tokens: 8.6 GB; and in rows that read its lists, every token of a question."""
    own, asked = replace(EIGHT_B, index_heads=64), replace(LONG, length=4096)
    cell = parse_cells("native", 2048)
    apart = memory_of(own, asked, cell, 8) - memory_of(EIGHT_B, asked, cell, 8)
    assert apart == pytest.approx(8 * 64 * 4096**2 + 8 * 4096**2, rel=0.2)
    many = replace(asked, tail=8192, questions=64)
    apart = memory_of(own, many, cell, 128) - memory_of(EIGHT_B, many, cell, 128)
    assert apart == 8 * 64 * (64 * 8192) * 4096
    assert memory_of(own, many, parse_cells("sign", 8), 128) == memory_of(
        EIGHT_B, many, parse_cells("sign", 8), 128
    )


def test_a_model_s_own_indexer_holds_its_keys_and_lists() -> None:
    """Of 128 numbers a key and lists of 2,048: keys of the prefix in every layer, two lists a token of a haystack."""
    own, asked = replace(EIGHT_B, index_heads=1), replace(LONG, length=4096)
    wide, sparse = replace(own, index_width=128, index_k=2048), parse_cells("sign", 8)
    keys, lists = TOKENS * LAYERS * 128 * 2, 2 * 8 * TOKENS * 2048
    assert wide.prefix(TOKENS) - own.prefix(TOKENS) == keys
    assert memory_of(wide, LONG, sparse, 8) - memory_of(own, LONG, sparse, 8) == keys + lists
    # Asked much, rows that read its lists have them for each token, and its keys of a layer three times.
    many, native = replace(asked, tail=8192, questions=64), parse_cells("native", 2048)
    apart = memory_of(wide, many, native, 128) - memory_of(own, many, native, 128)
    tails = 128 * 2 * 8192 * LAYERS * 128 * 2
    copies, lists = 3 * 64 * (4096 + 8192) * 128 * 2, 2 * 8 * 128 * 8192 * 2048
    assert apart == wide.prefix(4096) - own.prefix(4096) + tails + copies + lists


def test_graphs_hold_a_cache_of_each_row_where_a_quarter_of_what_is_free_has_room() -> None:
    """Keys, values and norms of every slot, codes, and 32 steps' queries, outputs and lists."""
    small, asked = replace(EIGHT_B, weights=10**9), replace(LONG, length=4000, questions=1)
    some = parse_cells(["sign()", "quantized(dtype='int8')"], 64)
    gpu = replace(small, device=80 * 10**9)
    slots = 4096  # of 4,060, in steps of 256
    cache = slots * LAYERS * GROUPS * (2 * WIDTH * 2 + 4)
    noted = 32 * LAYERS * 32 * (8 * 64 + 8 * WIDTH)
    codes = slots * LAYERS * GROUPS * (WIDTH / 8 + WIDTH + 4)
    apart = memory_of(gpu, asked, some, 3) - memory_of(small, asked, some, 3)
    assert apart == 3 * (cache + noted) + codes
    # What is asked for in turn is held side by side, up to a quarter of what is left each time.
    assert memory_of(gpu, asked, some, 2) - memory_of(small, asked, some, 2) > apart
    for less in (replace(gpu, device=4 * 10**9), replace(gpu, index_heads=4)):
        same = replace(less, device=0)
        assert memory_of(less, asked, some, 3) == memory_of(same, asked, some, 3)
    assert memory_of(replace(EIGHT_B, device=141 * 10**9), LONG, cells(), 29) <= 75e9


def test_an_8b_model_at_128k_with_29_cells_holds_75_gb() -> None:
    """Weights 16 GB, the prefix 17 GB once for all cells and questions, codes of the prefix once."""
    assert EIGHT_B.prefix(TOKENS) == 4 * KEYS == 17_179_869_184
    assert memory_of(EIGHT_B, LONG, cells(), 29) <= 75e9
    # By hand: int8 and fp8 a byte, int4 half, int2 a quarter, sign an eighth; scales beside.
    codes = KEYS * (2 + 1 / 2 + 1 / 4 + 1 / 8)
    assert memory_of(EIGHT_B, LONG, cells(), 29) > EIGHT_B.weights + 4 * KEYS + codes


def test_what_does_not_fit_says_which_batch_size_does() -> None:
    needs = partial(memory_of, EIGHT_B, LONG, cells())
    with pytest.raises(
        InputError, match=r"about \d+ GB, of the 60 GB that a GPU has; batch_size="
    ) as e:
        require_room(int(60e9), "a GPU", needs, 128)
    fits = int(str(e.value).rpartition("batch_size=")[2].split()[0])
    assert needs(fits) <= 60e9 < needs(fits + 1)
    require_room(int(60e9), "a GPU", needs, fits)
    with pytest.raises(InputError, match="no batch_size fits; ask for a shorter length"):
        require_room(int(30e9), "a GPU", needs, 128)


def test_what_is_judged_of_answers_keys_and_in_shadow_is_counted(tmp_path: Path) -> None:
    """Of each question of each cell, layer and head, 8 bytes a number; three a step, and in shadow all columns."""
    some = parse_cells(["sign()", "exact()"], 64)
    each = 8 * 3 * 4 * LAYERS * 32  # three cells, four questions
    shape = replace(EIGHT_B, passing=0)  # its peak is while questions are asked
    apart = memory_of(shape, replace(LONG, judged=5), some, 6) - memory_of(shape, LONG, some, 6)
    assert apart == each * 5
    read = AutoTokenizer.from_pretrained(REFERENCE)
    prompt = make_task("niah-multikey", questions=2, distractors=2).sample(read, 300, 0)
    steps = max(len(q.answer_ids) for q in prompt.questions)
    read_too = max(len(q.ids) for q in prompt.questions) - 1
    columns = len(TABLES["evaluate"])
    for observe, shadow, expected in (
        (False, False, 0),
        ("answer", False, (steps + 2) * 3),
        ("answer-rows", True, 2 * steps * (3 + columns)),
        (True, True, (steps + read_too + 2) * (3 + columns)),
    ):
        how = Setting(out=tmp_path, model="reference", observe=observe, shadow=shadow)
        assert asked_of(prompt, how).judged == expected


def test_memory_grows_with_what_is_asked() -> None:
    base = memory_of(EIGHT_B, LONG, cells(), 29)
    assert memory_of(EIGHT_B, replace(LONG, length=2 * TOKENS), cells(), 29) > base
    assert memory_of(EIGHT_B, LONG, cells()[:8], 29) < base
    assert memory_of(replace(EIGHT_B, windowed=True), LONG, cells(), 29) > base


@pytest.mark.parametrize(
    ("spec", "bits"),
    [("sign()", 1), ("quantized(dtype='int8')", 8), ("quantized(dtype='int4')", 4), ("exact()", 0)],
)
def test_bytes_a_key_are_those_of_the_codes(spec: str, bits: int) -> None:
    scales = 0 if spec in ("sign()", "exact()") else 4 * GROUPS
    assert bytes_a_key(parse(spec), EIGHT_B, TOKENS) == GROUPS * WIDTH * bits / 8 + scales


def test_keys_that_stand_twice_and_those_of_few_channels_are_counted() -> None:
    width = EIGHT_B.bytes * GROUPS * WIDTH
    assert bytes_a_key(parse("sparq(mean_value=False)"), EIGHT_B, TOKENS) == width
    summed = 8 * GROUPS * WIDTH
    assert bytes_a_key(parse("sparq()"), EIGHT_B, 64) == width + summed / 64
    table = 4 * GROUPS * WIDTH * WIDTH / 4
    assert bytes_a_key(parse("loki()"), EIGHT_B, TOKENS) == width / 4 + table / TOKENS


def test_what_states_no_costs_is_tried_on_a_few_keys() -> None:
    assert bytes_a_key(unstated(), EIGHT_B, TOKENS) == EIGHT_B.bytes * GROUPS * 3


def test_clusters_and_what_reads_hidden_states_hold_what_they_state() -> None:
    """A centroid, its size and its place for 16 keys, the mean of their values, and 4 bytes a member."""
    mean = EIGHT_B.bytes * WIDTH
    held = bytes_a_key(parse("clusterkv(per_cluster=16)"), EIGHT_B, TOKENS)
    assert held == pytest.approx(GROUPS * ((mean + 8) / 16 + 4), rel=0.01)
    held = bytes_a_key(parse("retroinfer()"), EIGHT_B, TOKENS)
    assert held == pytest.approx(GROUPS * ((2 * mean + 8) / 16 + 4), rel=0.01)
    assert bytes_a_key(parse("misa(weights='given')"), EIGHT_B, TOKENS) == 4 * WIDTH


# Nothing is held while a haystack is read: what is asked of it has the peak.
ASKING = replace(EIGHT_B, passing=0)


def codes_held(spec: str, asked: Asked) -> tuple[int, float]:
    """What a recipe adds to the peak with four questions at once, and what its codes hold of one row."""
    apart = [memory_of(ASKING, asked, parse_cells(one, 8), 8) for one in (spec, "exact()")]
    whole = asked.length * LAYERS * bytes_a_key(parse(spec), ASKING, asked.length)
    return apart[0] - apart[1], whole


FOUR = 1 + 2 * 4 * 9 / 8


@pytest.mark.parametrize(
    "spec",
    [
        *(
            "magicpig()",
            "rabitq(rerank=True)",
            "sparq()",
            "loki()",
            "quest()",
            "hisa()",
            "infllm()",
        ),
        *("snapkv()", "twilight()", "previous(quantized())"),
    ],
)
def test_codes_of_many_rows_are_counted_once(spec: str) -> None:
    """Those of few keys are copied, so that they are appended to in place."""
    few = replace(LONG, length=1024)
    for asked, times in ((LONG, 1), (few, FOUR)):
        held, whole = codes_held(spec, asked)
        assert held == pytest.approx(times * whole, abs=1)


@pytest.mark.parametrize(("spec", "times"), [("h2o()", 2), ("retrieval_attention()", 1)])
def test_what_is_of_one_row_is_not_counted_for_each(spec: str, times: int) -> None:
    """Votes are held with what came since, too."""
    for length in (1024, TOKENS):
        held, whole = codes_held(spec, replace(LONG, length=length))
        assert held == pytest.approx(times * whole, abs=1)


def test_what_builds_apart_from_its_base_is_counted_apart() -> None:
    """Of one list of codes, read by two; and of codes that another recipe has for itself."""
    base, _ = codes_held("quantized()", LONG)
    cells = parse_cells(["quantized()", "top_p(quantized())"], 8)
    apart = [memory_of(ASKING, LONG, one, 12) for one in (cells, parse_cells("exact()", 8))]
    assert apart[0] - apart[1] < 2 * base
    held, _ = codes_held("twilight(quantized())", LONG)
    assert held == pytest.approx(base + KEYS / 2 + LAYERS * GROUPS * TOKENS * 8, abs=1)


SMALL = Shape(0, layers=1, heads=(4, 2), width=(32, 32), passing=0, vocabulary=1, bytes=4)


@pytest.mark.parametrize(
    "spec",
    [
        *("quest()", "quest(min_pages=3)", "moba()", "hisa()", "infllm(representatives=2)"),
        *("hisa(weights='given', dtype='fp8')", "snapkv()", "h2o()", "retrieval_attention()"),
        *("twilight()", "twilight(sign())", "quantized(dtype='int4')", "magicpig(tables=20)"),
        *("rabitq()", "sparq()", "misa(weights='given')", "clusterkv(per_cluster=16)"),
    ],
)
def test_what_is_planned_is_what_rows_hold(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 2,048 keys and eight rows, with each row's first token behind them."""
    monkeypatch.setattr("topkit.experiments.evaluate.memory.COPIED", 0)
    asked, rows = Asked(2048, questions=8, tail=1, answer=1), 8
    planned = [memory_of(SMALL, asked, parse_cells(one, 8), 16) for one in (spec, "exact()")]
    recipe, drawn = parse(spec), torch.Generator().manual_seed(0)

    def step(count: int, first: int, end: int) -> tuple[Tensor, Step]:
        keys, values = torch.randn(2, count, 2, end, 32, generator=drawn)
        asks = keys[:, :, -64:].repeat(1, 2, 1, 1)
        inputs = {"cache": Cache(keys, values), "prefill_queries": asks}
        inputs["index_keys"] = keys[:, :1, first:]
        return keys[:, :, first:], Step(kv_heads=2, inputs=inputs).given_to(recipe)

    trunk = recipe.build(*step(1, 0, 2048))
    twin = branched(trunk, rows)
    twin.append(*step(rows, 2048, 2049))
    storages = [x.untyped_storage() for one in (trunk, twin) for x in tensors_in_reach(one)]
    held = sum({x.data_ptr(): x.nbytes() for x in storages}.values())
    few = max(64, 2 * getattr(recipe, "page_size", 0))  # with room for keys to come, or a page
    own = rows * few * bytes_a_key(recipe, SMALL, 2048)
    assert planned[0] - planned[1] <= held + 4096
    assert held <= (planned[0] - planned[1]) * 1.02 + own


def test_clusters_are_counted_once_until_keys_that_came_behind_are_clustered() -> None:
    for tail, times in ((99, 1), (100, FOUR)):
        held, whole = codes_held("clusterkv(update=100)", replace(LONG, tail=tail))
        assert held == pytest.approx(times * whole, abs=1)

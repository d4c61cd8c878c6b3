"""One fidelity row: judged alike, and of one type a column, wherever a selection comes from."""

import math
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import topkit
from topkit.errors import InputError
from topkit.experiments.capture.capture import Capture
from topkit.experiments.decode.driver import Choice
from topkit.experiments.decode.observer import Observer as Attached
from topkit.experiments.evaluate.batch import Asked
from topkit.experiments.evaluate.lists import Chosen, stacked
from topkit.experiments.evaluate.observer import Observer as Evaluated
from topkit.experiments.evaluate.streams import Prefix, Stream
from topkit.experiments.measure.layer import reduced
from topkit.experiments.runs import run_file
from topkit.experiments.runs.cells import Cell
from topkit.experiments.runs.dictionaries import in_order
from topkit.experiments.runs.fidelity_rows import SCHEMA, TABLES, rows, table
from topkit.experiments.runs.judged import COSTS, Exact, Judged
from topkit.experiments.runs.parts import write_part
from topkit.fidelity import METRICS
from topkit.indexers import Indexer, Rest, Selection, Step
from topkit.indexers.base import Cache, Index
from topkit.indexers.budget import parse_budget
from topkit.indexers.exact import true_scores_of
from topkit.kernels.score import score

SCALING = 0.6
UNIT = ("kept", "recall", "own_recall", "mass", "mass_ratio", "top1")


@dataclass(frozen=True)
class Problem:
    """Queries, keys and values; what a query sees; a selection of it."""

    queries: Any
    keys: Any
    values: Any
    start: Any
    stop: Any
    k: int
    selection: Selection

    def exact(self, k: int | None = None) -> Exact:
        options = {"scaling": SCALING, "start": self.start, "stop": self.stop}
        return Exact(self.queries, self.keys, self.values, k or self.k, **options)


def problem(
    seed: int, groups: int, per: int, batch: int, count: int, length: int, k: int, lists: int,
    ties: bool, weighted: bool, hidden: bool = False,
) -> Problem:  # fmt: skip
    g = torch.Generator().manual_seed(seed)
    queries = torch.randn(batch, groups * per, count, 5, generator=g)
    keys = torch.randn(batch, groups, length, 5, generator=g)
    if ties:
        keys = keys[:, :, torch.randint(0, max(1, length // 4), (length,), generator=g)]
    values = torch.randn(batch, groups, length, 3, generator=g)
    start = torch.randint(0, length - count + 1, (batch,), generator=g)
    stop = torch.arange(length - count + 1, length + 1)[None]
    if hidden:  # the first queries of a row whose first key comes after them see nothing
        start += count - 1
    indices = torch.full((batch, lists, count, min(k, length)), -1)
    for b in range(batch):
        for i in range(count):
            seen = max(0, int(stop[0, i] - start[b]))
            for h in range(lists):
                chosen = torch.randperm(seen, generator=g)[: k - (seed + h) % 2] + start[b]
                indices[b, h, i, : len(chosen)] = chosen
    weights = torch.randn(indices.shape, generator=g).masked_fill(indices < 0, 0)
    costs = {"keys_scored": 7, "bytes_read": torch.arange(1.0, count + 1)[None]}
    return Problem(
        queries,
        keys,
        values,
        start,
        stop,
        k,
        Selection(indices, weights if weighted else None, **costs),
    )


@st.composite
def problems(draw):
    groups, per = draw(st.sampled_from([(1, 1), (2, 1), (2, 3), (1, 4)]))
    batch, count = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    length = draw(st.integers(count, 30))
    lists = draw(st.sampled_from(sorted({1, groups, groups * per})))
    return problem(
        draw(st.integers(0, 10**6)),
        groups,
        per,
        batch,
        count,
        length,
        draw(st.integers(1, length + 2)),
        lists,
        *(draw(st.booleans()) for _ in range(3)),
    )


# --- a slow rendering of docs/metrics.md, in plain Python


def dot(one, other):
    return sum(x * y for x, y in zip(one, other, strict=True))


def share_of_best(values, off, chosen, m):
    floors = sorted((values[j] - off[j] for j in values), reverse=True)
    return min(m, sum(values[j] + off[j] >= floors[m - 1] for j in chosen)) / m if m else None


def head_metrics(q, keys, values, seen, chosen, factors, k, part):
    """Every metric of one query of one head; `factors`: log-weights by slot, or None."""
    s = {j: dot(q, keys[j]) for j in seen}
    z = sum(math.exp(SCALING * x) for x in s.values())
    a = {j: math.exp(SCALING * x) / z for j, x in s.items()}
    n, kept = len(seen), len(chosen)
    m = min(k, n)
    off = {j: part * 1e-6 * math.hypot(*q) * math.hypot(*keys[j]) for j in seen}
    ranked, ours = sorted(s.values(), reverse=True), sorted((s[j] for j in chosen), reverse=True)
    top = sorted(a.values(), reverse=True)[:m]
    both = min(kept, m)
    weights = {j: math.exp(SCALING * s[j] + (factors[j] if factors else 0)) for j in chosen}
    dense = [sum(a[j] * values[j][d] for j in seen) for d in range(3)]
    sparse = [
        sum(w * values[j][d] for j, w in weights.items()) / (sum(weights.values()) or 1)
        for d in range(3)
    ]
    entropy = -sum(x * math.log(x) for x in a.values() if x > 0)
    return {
        "visible": n,
        "trivial": k >= n,
        "kept": kept,
        "recall": share_of_best(s, off, chosen, m),
        "own_recall": share_of_best(s, off, chosen, min(kept, n)),
        "mass": sum(a[j] for j in chosen),
        "mass_ratio": sum(a[j] for j in chosen) / sum(top),
        "mass_estimate": sum(a[j] * math.exp(factors[j]) for j in chosen) if factors else None,
        "top1": share_of_best(s, off, chosen, 1),
        "output_error": math.dist(sparse, dense) / math.hypot(*dense),
        "score_regret": SCALING
        * sum(x - y for x, y in zip(ranked[:both], ours, strict=False))
        / both
        if both
        else None,
        "entropy": entropy,
        "support": math.exp(entropy),
    }


def unit_metrics(by_head, lengths, chosen, k, part):
    """Of a shared list: the attention weights of each of its heads, and |q| |k| of each of its keys."""
    u = {j: sum(a[j] for a in by_head) / len(by_head) for j in by_head[0]}
    n, kept = len(u), len(chosen)
    m = min(k, n)
    ranked = sorted(u.values(), reverse=True)
    logs = {j: math.log(x) for j, x in u.items()}
    off = {j: part * 1e-6 * (1 + SCALING * max(x[j] for x in lengths)) for j in u}
    return dict.fromkeys(METRICS) | {
        "visible": n,
        "trivial": k >= n,
        "kept": kept,
        "recall": share_of_best(logs, off, chosen, m),
        "own_recall": share_of_best(logs, off, chosen, min(kept, n)),
        "mass": sum(u[j] for j in chosen),
        "mass_ratio": sum(u[j] for j in chosen) / sum(ranked[:m]),
        "top1": share_of_best(logs, off, chosen, 1),
    }


def slow_rows(p: Problem, part: float = 1.0):
    """(level, batch row, head, query) -> the numbers of its row; none where nothing is seen.

    `part`: of the rounding that is forgiven.
    """
    lists, heads = p.selection.indices.shape[1], p.queries.shape[1]
    per, share = heads // p.keys.shape[1], heads // lists
    log_weights = p.selection.log_weights
    numbers_of = {}
    for b in range(p.queries.shape[0]):
        for i in range(p.queries.shape[2]):
            seen = list(range(int(p.start[b]), int(p.stop[0, i])))
            costs = {"keys_scored": 7, "bytes_read": 1.0 + i}
            weights: dict[int, list] = {}
            lengths: dict[int, list] = {}
            for h in range(heads if seen else 0):
                line = p.selection.indices[b, h // share, i].tolist()
                chosen, factors = [j for j in line if j >= 0], None
                if log_weights is not None:
                    factors = dict(zip(line, log_weights[b, h // share, i].tolist(), strict=True))
                q, keys = p.queries[b, h, i].tolist(), p.keys[b, h // per].tolist()
                values = p.values[b, h // per].tolist()
                numbers = head_metrics(q, keys, values, seen, chosen, factors, p.k, part)
                numbers_of["head", b, h, i] = numbers | costs
                z = sum(math.exp(SCALING * dot(q, keys[j])) for j in seen)
                a = {j: math.exp(SCALING * dot(q, keys[j])) / z for j in seen}
                weights.setdefault(h // share, []).append(a)
                both = {j: math.hypot(*q) * math.hypot(*keys[j]) for j in seen}
                lengths.setdefault(h // share, []).append(both)
                if lists < heads:
                    level = "layer" if lists == 1 else "group"
                    its = weights[h // share], lengths[h // share]
                    unit = unit_metrics(*its, chosen, p.k, part)
                    numbers_of[level, b, h // share, i] = unit | costs
    return numbers_of


def made_rows(p: Problem):
    """The same of the code: all rows, by their places."""
    batch, count = p.queries.shape[0], p.queries.shape[2]
    places = {"row": torch.arange(batch)[:, None, None], "position": torch.arange(count)}
    parts = [rows(judged, places) for judged in p.exact().judged(p.selection, p.k)]
    lines = [row for part in parts for row in part.to_pylist()]
    return {(r["level"], r["row"], r["head"], r["position"]): r for r in lines}


@settings(max_examples=60, deadline=None)
@given(problems())
def test_rows_are_the_formulas_of_the_page(p):
    """What scores and weights themselves are off by is a fraction of the rounding that is forgiven."""
    low, high, rows_ = slow_rows(p, 0.7), slow_rows(p, 1.3), made_rows(p)
    assert rows_.keys() == low.keys()
    for place, numbers in low.items():
        row = rows_[place]
        assert row["reference"] == row["level"]
        assert numbers.keys() == {"visible", "trivial", *METRICS, *COSTS}
        for name, number in numbers.items():
            if number is None:
                assert row[name] is None, name
            elif number < high[place][name]:
                assert number - 1e-4 <= row[name] <= high[place][name] + 1e-4, (place, name)
            else:
                assert row[name] == pytest.approx(number, rel=1e-4, abs=1e-4), (place, name)


@pytest.mark.parametrize("lists", [1, 2])
def test_a_shared_list_is_judged_against_its_own_best(lists):
    """Where no weights come near each other, shares of the best are exact, too."""
    p = problem(5, 2, 2, 2, 2, 17, 6, lists, False, False)
    rows_ = made_rows(p)
    shared = {place: n for place, n in slow_rows(p).items() if place[0] != "head"}
    assert len(shared) == 2 * lists * 2
    assert min(numbers["recall"] for numbers in shared.values()) < 1
    for place, numbers in shared.items():
        for name in UNIT:
            assert rows_[place][name] == pytest.approx(numbers[name], abs=1e-5), name


# --- one selection, three ways


@dataclass(frozen=True, eq=False)
class handmade(Indexer):
    """Chooses what it was made with."""

    selection: Any = None

    def build(self, keys, step):
        return Fixed(self.selection, keys.shape[2])


class Fixed(Index):
    def __init__(self, selection, count):
        self.selection, self.count = selection, count

    @property
    def length(self):
        return self.count

    @property
    def nbytes(self):
        return 4321

    def select(self, queries, k, step):
        return self.selection

    def append(self, keys, step):
        self.count += keys.shape[2]

    def truncate(self, length, step):
        self.count = length

    def reorder(self, rows):
        pass


def three_ways(lists: int, weighted: bool = False, known: bool = False):
    """The tables of measure, attach and evaluate of one selection of the last queries of a layer."""
    p = problem(3, 2, 2, 1, 3, 23, 6, lists, True, weighted)
    start, stops = torch.zeros(1, dtype=torch.long), p.stop[0]
    selection = p.selection
    recipe, budget = handmade(selection), parse_budget(6)
    capture = Capture.from_tensors(p.queries, p.keys, p.values, scaling=SCALING)
    measured = topkit.measure(capture, recipe, 6, device="cpu")
    attached = Attached(recipe, budget)
    step, cache = Step(layer=0, scaling=SCALING, start=start), Cache(p.keys, p.values)
    memo = {true_scores_of(23): score(p.queries, p.keys)} if known else {}
    attached.note(
        p.queries, cache, selection, 6, step, Choice(slice(0, 3), {6: selection}, stops, memo), 4321
    )
    stream = Stream([Cell(recipe, budget)], 23, {0: Fixed(selection, 23)}, 0)
    evaluated = Evaluated.of([stream], 3)
    begin, end = (
        Cache(p.keys[:, :, part], p.values[:, :, part]) for part in (slice(20), slice(20, None))
    )
    rows_of = Prefix(begin, SCALING).then(end)
    for i in range(3):  # in pieces, as questions are
        span = slice(i, i + 1)
        logs = selection.log_weights
        piece = Selection(
            selection.indices[:, :, span],
            None if logs is None else logs[:, :, span],
            None,
            selection.keys_scored,
            torch.as_tensor(selection.bytes_read)[:, span],
        )
        one = slice(0, 1)
        (some,) = stacked([Chosen(recipe, one, one, one, 6, piece)], p.queries.shape[1], 23)
        queries = p.queries[:, :, span]
        scores = rows_of.scores(queries)
        output = some.attend(scores, rows_of, SCALING)
        asked = Asked(0, SCALING, i, queries, scores, rows_of.norms(), stops[span], rows_of)
        evaluated(asked, some, output)
    real = torch.ones(1, 3, dtype=torch.bool)
    constants = dict(task="t", length=23, haystack=0, sparse_from="question", sample=0)
    each, means = (
        table("evaluate", list(evaluated.tables([0], real, 20, how, "answer")), **constants)
        for how in (True, False)
    )
    return {"measure": measured.table, "attach": attached.table(), "evaluate": each, "means": means}


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize(("lists", "weighted"), [(4, False), (4, True), (2, False), (1, True)])
def test_one_selection_has_the_same_numbers_wherever_it_is_judged(lists, weighted, known):
    """Also where the recipe has computed the exact scores, which the judge then reads."""
    tables = three_ways(lists, weighted, known)
    shared = [n for n in TABLES["measure"].names if n not in ("indexer", "budget")]
    order = ("level", "layer", "head", "position")
    one, *others = (
        in_order(tables[name].select(shared), order).to_pylist()
        for name in ("measure", "attach", "evaluate")
    )
    assert len(one) == 3 * (4 + (lists if lists < 4 else 0))
    assert {row["position"] for row in one} == {20, 21, 22}
    assert {row["index_bytes"] for row in one} == {4321}
    for other in others:
        assert [
            {n: pytest.approx(x, rel=1e-5, abs=1e-6) if isinstance(x, float) else x for n, x in row.items()}
            for row in one
        ] == other  # fmt: skip


def test_means_are_those_of_the_rows():
    tables = three_ways(2)
    small, means = (
        in_order(one, ("level", "head")) for one in (reduced(tables["measure"]), tables["means"])
    )
    assert means["position"].null_count == means.num_rows == 6
    assert set(means["positions"].to_pylist()) == set(small["rows"].to_pylist()) == {3}
    for name in ("visible", "trivial", *METRICS, *COSTS, "index_bytes"):
        for one, other in zip(small[name].to_pylist(), means[name].to_pylist(), strict=True):
            assert one == other or one == pytest.approx(other, rel=1e-5, abs=1e-6), name
    assert all(
        r["recall_min"] <= r["recall"] and r["mass_min"] <= r["mass"] for r in small.to_pylist()
    )


# --- types and names


def drawn() -> Capture:
    g = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(2, 2, 40, 8, generator=g) for _ in range(2))
    return Capture.from_tensors(torch.randn(2, 4, 3, 8, generator=g), keys, values)


def test_a_column_has_one_type_in_all_tables():
    for name, schema in TABLES.items():
        assert all(
            schema.field(column).type == SCHEMA.field(column).type for column in schema.names
        )
        places = [SCHEMA.get_field_index(column) for column in schema.names]
        assert places == sorted(places), name
    assert {column for schema in TABLES.values() for column in schema.names} == set(SCHEMA.names)


@pytest.mark.parametrize("reference", [None, "exact"])
def test_tables_have_the_columns_that_they_say(reference):
    tables = three_ways(2)
    capture = drawn()
    for name, reduce in (("measure", False), ("reduced", True)):
        options = {"reference": reference, "reduce": reduce}
        measured = topkit.measure(capture, ["sign", "shared(exact())"], [4, "20%"], **options)
        assert measured.table.schema.equals(TABLES[name])
    assert tables["attach"].schema.equals(TABLES["attach"])
    assert tables["evaluate"].schema.equals(TABLES["evaluate"])
    assert tables["means"].schema.equals(TABLES["evaluate"])


def test_nothing_observed_is_an_empty_table_of_the_same_columns():
    empty = Attached(handmade(), parse_budget("1%")).table()
    assert empty.num_rows == 0
    assert empty.schema.equals(TABLES["attach"])


# --- what rows are made of


def judged_of(**columns):
    shape = next(iter(columns.values())).shape
    rest = {name: torch.zeros(shape) for name in ("visible", "trivial", *METRICS, *COSTS)}
    return Judged("head", "head", rest | columns)


def test_nan_is_null_and_places_are_spread_over_rows():
    visible = torch.tensor([[[3, 4], [5, 6]], [[7, 8], [9, 10]]])
    recall = torch.where(visible == 5, math.nan, visible / 10)
    big = (1 << 40) + 1
    made = rows(
        judged_of(visible=visible, recall=recall),
        {"row": torch.tensor([[[0]], [[big]]]), "layer": 3, "indexer": "a", "position": None},
    ).to_pylist()
    assert [r["visible"] for r in made] == [3, 4, 5, 6, 7, 8, 9, 10]
    assert [r["head"] for r in made] == [0, 0, 1, 1, 0, 0, 1, 1]
    assert [r["row"] for r in made] == [0] * 4 + [big] * 4
    assert [r["recall"] is None for r in made] == [False] * 2 + [True] + [False] * 5
    for r in made:
        assert (r["layer"], r["indexer"], r["position"], r["trivial"]) == (3, "a", None, False)


def test_queries_that_see_nothing_and_those_not_kept_have_no_row():
    visible = torch.tensor([[[0, 1, 2]], [[3, 0, 4]]])
    judged = judged_of(visible=visible)
    assert rows(judged, {}).column("visible").to_pylist() == [1, 2, 3, 4]
    keep = torch.tensor([[True, True, False], [True, True, True]])[:, None]
    assert rows(judged, {}, keep).column("visible").to_pylist() == [1, 3, 4]
    assert rows(judged_of(visible=torch.zeros(1, 2, 3)), {}).num_rows == 0


def test_a_padded_row_has_rows_from_its_first_real_token_on():
    p = problem(1, 2, 2, 2, 3, 9, 4, 2, False, False, hidden=True)
    observer = Attached(handmade(), parse_budget(4))
    step = Step(layer=5, scaling=SCALING, start=p.start)
    for _ in range(2):
        observer.begin()
    every = Choice(slice(0, 3), {4: p.selection}, p.stop[0], {})
    observer.note(p.queries, Cache(p.keys, p.values), p.selection, 4, step, every, 10)
    made = observer.table().to_pylist()
    assert made
    for r in made:
        assert r["row"] == r["sample"]
        assert r["visible"] == r["position"] + 1 > 0
        assert (r["call"], r["layer"], r["index_bytes"]) == (2, 5, 5.0)
    seen = sum(max(0, int(n)) > 0 for n in (p.stop - p.start[:, None]).flatten())
    assert seen < 6
    assert len(made) == seen * (4 + 2)


def test_pseudo_keys_count_in_the_estimate_and_the_output():
    p = problem(0, 1, 2, 1, 1, 12, 5, 2, False, False)
    rest = Rest(values=torch.zeros(1, 2, 1, 1, 3), logits=torch.full((1, 2, 1, 1), -2.0))
    exact, selection = p.exact(), Selection(p.selection.indices, rest=rest)
    (judged,) = exact.judged(selection, 5)
    added = (-2.0 - exact.truth.lse).exp()
    estimate = judged.columns["mass"] + added
    torch.testing.assert_close(judged.columns["mass_estimate"], estimate)
    (without,) = exact.judged(p.selection, 5)
    assert not judged.columns["output_error"].equal(without.columns["output_error"])


# --- exact rows serve many selections


@pytest.mark.parametrize("lists", [1, 2, 4])
def test_exact_rows_of_a_greater_k_serve_a_smaller(lists):
    p = problem(2, 2, 2, 2, 3, 31, 7, lists, True, False)
    own, greater = (exact.judged(p.selection, 7) for exact in (p.exact(), p.exact(20)))
    assert [one.level for one in own] == [one.level for one in greater]
    for one, other in zip(own, greater, strict=True):
        for name, column in one.columns.items():
            torch.testing.assert_close(
                column, other.columns[name], rtol=1e-6, atol=1e-6, equal_nan=True
            )


def test_exact_rows_serve_lists_of_every_number_of_heads():
    many = [problem(2, 2, 2, 2, 3, 31, 7, lists, False, False) for lists in (4, 2, 1, 2)]
    exact = many[0].exact()
    for p in many:
        one, other = (e.judged(p.selection, 7)[-1] for e in (exact, p.exact()))
        assert one.level == other.level
        assert one.columns["mass_ratio"].equal(other.columns["mass_ratio"])


@pytest.mark.parametrize("lists", [1, 2, 4])
def test_scores_that_a_caller_has_are_taken(lists):
    """Of these scores, that is, and of no others: doubled ones give the rows of doubled queries."""
    p = problem(2, 2, 2, 2, 3, 31, 7, lists, False, False)
    scores = torch.einsum("bhqd,bhtd->bhqt", p.queries, p.keys.repeat_interleave(2, 1))
    options: dict[str, Any] = {"scaling": SCALING, "start": p.start, "stop": p.stop}
    for factor in (1, 2):
        known = Exact(p.queries, p.keys, None, 7, **options, scores=factor * scores)
        own = Exact(factor * p.queries, p.keys, None, 7, **options)
        torch.testing.assert_close(known.truth.scores, own.truth.scores)
        known.queries = own.queries
        for one, other in zip(*(e.judged(p.selection, 7) for e in (known, own)), strict=True):
            for name in ("recall", "mass", "mass_ratio"):
                torch.testing.assert_close(one.columns[name], other.columns[name])


def test_nan_is_refused_by_layer_and_head():
    p = problem(0, 2, 2, 1, 1, 12, 5, 4, False, False)
    p.keys[0, 1, 3] = math.nan
    with pytest.raises(InputError, match="layer 7, head 2"):
        Exact(p.queries, p.keys, p.values, 5, scaling=SCALING, layer=7)


@pytest.mark.parametrize(
    ("ours", "theirs", "level"),
    [(4, 4, "head"), (2, 4, "head"), (1, 4, "head"), (2, 2, "group"), (1, 2, "group"), (1, 1, "layer")],
)  # fmt: skip
def test_an_overlap_says_recall_alone_once_a_list(ours, theirs, level):
    one, two = (problem(4, 2, 2, 1, 2, 19, 5, lists, False, False) for lists in (ours, theirs))
    judged = one.exact().overlap(one.selection, 5, two.selection, "other()")
    made = rows(judged, {"position": torch.arange(2)}).to_pylist()
    finer = max(ours, theirs)
    assert len(made) == finer * 2
    for r in made:
        assert (r["level"], r["reference"]) == (level, "other()")
        a, b = (
            {j for j in s.indices[0, r["head"] * s.indices.shape[1] // finer, r["position"]].tolist() if j >= 0}
            for s in (one.selection, two.selection)
        )  # fmt: skip
        assert r["recall"] == pytest.approx(len(a & b) / len(b))
        assert all(r[name] is None for name in METRICS if name != "recall")
        assert r["keys_scored"] == 7


# --- tables of 0.1


def as_in_01(rows_: pa.Table) -> pa.Table:
    """The types that 0.1 gave to `measure`."""
    types = dict.fromkeys(("visible", "kept", "index_bytes"), pa.int64())
    types |= {name: pa.float32() for name in METRICS if name != "kept"}
    fields = [pa.field(c.name, types.get(c.name, c.type)) for c in rows_.schema]
    return rows_.cast(pa.schema(fields, metadata=rows_.schema.metadata))


def test_a_run_of_01_goes_on_and_has_the_types_of_today(tmp_path):
    capture = drawn()
    topkit.measure(capture, "sign", 4, out=tmp_path)
    run = run_file.describe(tmp_path, {})
    for part in (tmp_path / "fidelity").glob("*.parquet"):
        write_part(part.parent, part.stem, as_in_01(pq.read_table(part)), run=run)
    alone = topkit.measure(capture, "sign", 4, out=tmp_path)
    both = topkit.measure(capture, ["sign", "exact"], 4, out=tmp_path)
    new = topkit.measure(capture, ["sign", "exact"], 4)
    assert alone is not None and both is not None and new is not None
    assert alone.table.schema.equals(TABLES["measure"])
    assert both.table.schema.equals(TABLES["measure"])
    assert both.table.num_rows == new.table.num_rows == 2 * alone.table.num_rows
    for ours, theirs in zip(both.summary(), new.summary(), strict=True):
        assert ours.keys() == theirs.keys()
        assert ours["recall"] == pytest.approx(theirs["recall"])
        assert ours["index_bytes_per_key"] == pytest.approx(theirs["index_bytes_per_key"])
    mine = both.table.filter(pc.field("indexer") == "sign()").sort_by("mass")
    assert mine["mass"].to_pylist() == pytest.approx(
        alone.table.sort_by("mass")["mass"].to_pylist()
    )

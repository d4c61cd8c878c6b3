"""The laws can fail: each broken indexer is caught, by the law that it breaks."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import pytest
import torch

from topkit.contract import LAWS, check_indexer, parametrize_with_checks
from topkit.contract.draw import PADDED, draw_of
from topkit.errors import InputError
from topkit.indexers import Scored, Step, exact, keep, random, sign, streaming_llm
from topkit.indexers.base import Indexer, Rest
from topkit.indexers.scored import ScoredIndex, best
from topkit.indexers.stateless import SlotCount, Stateless
from topkit.kernels.compact import compact
from topkit.kernels.score import score


@dataclass(frozen=True)
class int8(Scored):
    """A recipe in ten lines, that keeps every law."""

    def encode(self, keys, step):
        scale = keys.float().abs().amax(-1, keepdim=True).clamp_min(1e-12) / 127
        return {"codes": (keys / scale).round().to(torch.int8), "scale": scale}

    def score(self, queries, codes, step):
        return score(queries, codes["codes"].float() * codes["scale"])


@dataclass(frozen=True)
class peeks(int8):
    """Adds what the next key scores to each key's score."""

    def score(self, queries, codes, step):
        scores = super().score(queries, codes, step)
        return scores + scores.roll(-1, -1)


@dataclass(frozen=True)
class uses_torch_generator(Scored):
    def encode(self, keys, step):
        return {"draws": torch.rand(keys.shape[:3])}

    def score(self, queries, codes, step):
        times = queries.shape[1] // codes["draws"].shape[1]
        draws = codes["draws"].repeat_interleave(times, 1)
        return draws[:, :, None].expand(-1, -1, queries.shape[2], -1)


@dataclass(frozen=True)
class counts_padding(int8):
    """Favours every third slot, counted from slot 0 and not from the row's first real one."""

    def score(self, queries, codes, step):
        scores = super().score(queries, codes, step)
        return scores + 9.0 * (torch.arange(scores.shape[-1]) % 3 == 0)


@dataclass(frozen=True)
class selects_padding(exact):
    def choose(self, queries, k, step, length):
        return super().choose(queries, k, replace(step, start=None), length)


@dataclass(frozen=True)
class selects_the_future(exact):
    def choose(self, queries, k, step, length):
        stop = step.stops(length, queries.shape[2]) + 1
        return super().choose(queries, k, replace(step, stop=stop), length)


class _WritesInPlace(ScoredIndex):
    def append(self, keys, step):
        if not self.codes:
            new = self.recipe.encode(keys, step)
            room = 100
            self.codes = {n: torch.nn.functional.pad(c, (0, 0, 0, room)) for n, c in new.items()}
        else:
            for name, code in self.recipe.encode(keys, step).items():
                self.codes[name][:, :, self.slots : self.slots + keys.shape[2]] = code
        self.slots += keys.shape[2]

    def truncate(self, length, step):
        self.slots = length

    def chosen(self, queries, k, step, pool=None):
        held = {name: code[:, :, : self.slots] for name, code in self.codes.items()}
        return ScoredIndex(self.recipe, held, self.slots).chosen(queries, k, step, pool)

    def fork(self):
        return copy.copy(self)


@dataclass(frozen=True)
class mutates_its_fork(int8):
    def build(self, keys, step):
        index = _WritesInPlace(self)
        index.append(keys, step)
        return index


class _KeepsItsBuffers(ScoredIndex):
    def fork(self):
        return replace(self, codes=dict(self.codes), growing={})


@dataclass(frozen=True)
class overwrites_its_fork(int8):
    def build(self, keys, step):
        index = _KeepsItsBuffers(self)
        index.append(keys, step)
        return index


@dataclass(frozen=True)
class shares_state_with_its_fork(int8):
    def build(self, keys, step):
        index = super().build(keys, step)
        index.fork = lambda: index
        return index


class _Lazy(ScoredIndex):
    def append(self, keys, step):
        if not self.codes:
            super().append(keys, step)
        else:
            blank = torch.zeros_like(keys)
            super().append(blank, step)


@dataclass(frozen=True)
class forgets_appended_keys(int8):
    def build(self, keys, step):
        index = _Lazy(self)
        index.append(keys, step)
        return index


class _KeepsDrafts(ScoredIndex):
    cut: int = 0

    def truncate(self, length, step):
        self.codes = {name: code.roll(1, 2) for name, code in self.codes.items()}
        super().truncate(length, step)


@dataclass(frozen=True)
class truncates_wrong(int8):
    def build(self, keys, step):
        index = _KeepsDrafts(self)
        index.append(keys, step)
        return index


class _KeepsRows(ScoredIndex):
    def reorder(self, rows):
        self.codes = {
            n: c[: len(rows)].expand(len(rows), -1, -1, -1) for n, c in self.codes.items()
        }


@dataclass(frozen=True)
class reorders_nothing(int8):
    def build(self, keys, step):
        index = _KeepsRows(self)
        index.append(keys, step)
        return index


class _Remembers(ScoredIndex):
    asked: int = 0

    def chosen(self, queries, k, step, pool=None):
        self.asked += 1
        return super().chosen(queries * (-1) ** self.asked, k, step, pool)


@dataclass(frozen=True)
class remembers_in_secret(int8):
    def build(self, keys, step):
        index = _Remembers(self)
        index.append(keys, step)
        return index


@dataclass(frozen=True)
class reads_what_it_did_not_declare(Stateless):
    def choose(self, queries, k, step, length):
        return exact().choose(queries, k, step, length)


@dataclass(frozen=True)
class chooses_twice(exact):
    def choose(self, queries, k, step, length):
        chosen = super().choose(queries, k, step, length)
        indices = chosen.indices.clone()
        indices[..., -1] = indices[..., 0]
        return replace(chosen, indices=indices)


@dataclass(frozen=True)
class weakest_first(exact):
    def choose(self, queries, k, step, length):
        chosen = super().choose(queries, k, step, length)
        return replace(chosen, indices=compact(chosen.indices.flip(-1), chosen.indices.shape[-1]))


@dataclass(frozen=True)
class gaps_first(streaming_llm):
    window: int | None = 3

    def choose(self, queries, k, step, length):
        chosen = super().choose(queries, k, step, length)
        return replace(chosen, indices=chosen.indices.flip(-1))


@dataclass(frozen=True)
class comes_short(streaming_llm):
    window: int | None = 3

    def traits(self):
        return replace(super().traits(), may_come_short=False)


@dataclass(frozen=True)
class drops_the_first(exact):
    def traits(self):
        return replace(super().traits(), may_come_short=True)

    def choose(self, queries, k, step, length):
        chosen = super().choose(queries, k, step, length)
        first = step.starts()[:, None, None, None]
        slots = chosen.indices.masked_fill(chosen.indices == first, -1)
        order = (slots < 0).sort(dim=-1, stable=True).indices
        return replace(chosen, indices=slots.gather(-1, order))


@dataclass(frozen=True)
class too_wide(exact):
    def choose(self, queries, k, step, length):
        chosen = super().choose(queries, k, step, length)
        return replace(chosen, indices=torch.nn.functional.pad(chosen.indices, (0, 1), value=-1))


@dataclass(frozen=True)
class narrow_integers(exact):
    def choose(self, queries, k, step, length):
        chosen = super().choose(queries, k, step, length)
        return replace(chosen, indices=chosen.indices.int())


@dataclass(frozen=True)
class weighs_unsaid(exact):
    def choose(self, queries, k, step, length):
        chosen = super().choose(queries, k, step, length)
        return replace(chosen, log_weights=torch.zeros_like(chosen.indices, dtype=torch.float32))


@dataclass(frozen=True)
class mixes_heads(exact):
    """Reads KV head h % Hk where it ought to read h // (Hq / Hk)."""

    def traits(self):
        return replace(super().traits(), score_all=False)

    def build(self, keys, step):
        return SlotCount(self, keys.shape[2])

    def choose(self, queries, k, step, length):
        groups = step.cache.keys.shape[1]
        order = torch.arange(queries.shape[1]).view(groups, -1).T.flatten()
        return super().choose(queries[:, order], k, step, length)


class _ReportsTooLittle(ScoredIndex):
    @property
    def nbytes(self):
        return 12


class _ReportsTooMuch(ScoredIndex):
    @property
    def nbytes(self):
        return 10**9


@dataclass(frozen=True)
class hides_its_bytes(int8):
    index: ClassVar[type] = _ReportsTooLittle

    def build(self, keys, step):
        index = self.index(self)
        index.append(keys, step)
        return index


@dataclass(frozen=True)
class inflates_its_bytes(hides_its_bytes):
    index: ClassVar[type] = _ReportsTooMuch


@dataclass(frozen=True)
class costs_infinity(exact):
    def choose(self, queries, k, step, length):
        return replace(super().choose(queries, k, step, length), bytes_read=float("inf"))


@dataclass(frozen=True)
class writes_into_keys(int8):
    def encode(self, keys, step):
        return super().encode(keys.mul_(0.5), step)


@dataclass(frozen=True)
class hides_a_setting(int8):
    secret: int = field(default=1, repr=False)


class _ChoosesTheWorst(ScoredIndex):
    def select(self, queries, k, step):
        return best(-self.score(queries, step), k, step, 0)


@dataclass(frozen=True)
class scores_something_else(int8):
    def build(self, keys, step):
        index = _ChoosesTheWorst(self)
        index.append(keys, step)
        return index


@dataclass(frozen=True)
class fails_in_half(int8):
    def encode(self, keys, step):
        if keys.dtype != torch.float32:
            raise RuntimeError("float32 only")
        return super().encode(keys, step)


@dataclass(frozen=True)
class writes_a_slot_early(sign):
    def write(self, keys, codes, at, step):
        early = at - 1 if isinstance(at, torch.Tensor) else at
        super().write(keys, codes, early, step)


@dataclass(frozen=True)
class states_too_little(int8):
    def code_bytes(self, shape):
        return shape.Hk * shape.D


@dataclass(frozen=True)
class reads_more_than_it_states(exact):
    """Goes over the values too, and reports the keys alone."""

    def choose(self, queries, k, step, length):
        values = step.cache.values
        assert values is not None
        return super().choose(queries + 0 * values.amax(), k, step, length)


@dataclass(frozen=True)
class states_other_lists(exact):
    def costs(self, shape):
        return replace(super().costs(shape), lists=shape.Hk)


@dataclass(frozen=True)
class hides_its_rest(exact):
    def choose(self, queries, k, step, length):
        chosen = super().choose(queries, k, step, length)
        # Of the first key, which may be padding.
        values = step.cache.keys[:, :1, :1, None].expand(*queries.shape[:3], 1, -1)
        return replace(chosen, rest=Rest(values, share=torch.full(values.shape[:4], 0.5)))

    def choose_many(self, queries, ks, step, length):
        return {k: self.choose(queries, k, step, length) for k in ks}


@dataclass(frozen=True)
class rests_on_padding(hides_its_rest):
    def traits(self):
        return replace(super().traits(), fixed=False, rest=True)


BROKEN: dict[type[Indexer], str] = {
    peeks: "queries_together",
    uses_torch_generator: "same_seed_same_answer",
    remembers_in_secret: "same_seed_same_answer",
    counts_padding: "row_alone",
    selects_padding: "visible_slots_only",
    selects_the_future: "visible_slots_only",
    mutates_its_fork: "fork",
    overwrites_its_fork: "fork_of_grown",
    shares_state_with_its_fork: "fork",
    forgets_appended_keys: "append",
    truncates_wrong: "truncate",
    writes_a_slot_early: "fixed",
    reorders_nothing: "reorder",
    reads_what_it_did_not_declare: "declared_inputs",
    chooses_twice: "unique",
    gaps_first: "none_last",
    comes_short: "count",
    drops_the_first: "exhaustive",
    too_wide: "shape",
    narrow_integers: "shape",
    weighs_unsaid: "estimates_declared",
    mixes_heads: "repeated_kv_heads",
    hides_its_bytes: "honest_bytes",
    inflates_its_bytes: "honest_bytes",
    costs_infinity: "bounded_cost",
    writes_into_keys: "inputs_untouched",
    hides_a_setting: "named_by_repr",
    scores_something_else: "scores_explain",
    fails_in_half: "half_precision",
    weakest_first: "budgets_together",
    states_too_little: "stated_costs",
    reads_more_than_it_states: "stated_costs",
    states_other_lists: "stated_costs",
    hides_its_rest: "estimates_declared",
    rests_on_padding: "row_alone",
}


def test_a_recipe_of_ten_lines_keeps_every_law():
    check_indexer(int8())


@pytest.mark.parametrize(("recipe", "law"), BROKEN.items(), ids=lambda x: getattr(x, "__name__", x))
def test_broken_indexer_is_caught_by_the_law_it_breaks(recipe, law):
    indexer = hides_a_setting(secret=2) if recipe is hides_a_setting else recipe()
    with pytest.raises((AssertionError, RuntimeError)):
        LAWS[law](indexer)
    with pytest.raises(AssertionError, match=f"{recipe.__name__}.* breaks the law '{law}': ."):
        check_indexer(indexer)


def test_the_first_law_broken_is_named():
    with pytest.raises(AssertionError, match="breaks the law 'unique': a slot was chosen twice"):
        check_indexer(chooses_twice())


def test_every_law_is_broken_by_some_indexer():
    # What leaks out of padding breaks row_alone first: it has a test of its own below.
    assert set(LAWS) - set(BROKEN.values()) == {"padding_is_nothing", "cuda_agrees"}


def test_padding_that_leaks_is_caught():
    @dataclass(frozen=True)
    class leaks(int8):
        def encode(self, keys, step):
            return super().encode(keys + keys.mean(2, keepdim=True), step)

    with pytest.raises(AssertionError, match="padding of row"):
        LAWS["padding_is_nothing"](leaks())


@parametrize_with_checks(
    [int8(), costs_infinity(), "streaming_llm(sink=1)"],
    expected_failed_checks={
        "costs_infinity": dict.fromkeys(("bounded_cost", "stated_costs"), "it reads without end")
    },
)
def test_expected_failures_by_indexer(indexer, check):
    check(indexer)


def cases_of(*args, **kwargs):
    return parametrize_with_checks(*args, **kwargs).args[1]


def test_ids_name_indexer_and_law():
    ids = [case.id for case in cases_of(["keep(sign(), sink=2)"])]
    assert ids == [f"keep(sign(), sink=2)-{law}" for law in LAWS]


@pytest.mark.parametrize(
    "expected",
    [
        {"append": "why not"},
        {"sign": {"append": "why not"}},
        lambda indexer: {"append": "why not"} if indexer == sign() else {},
    ],
)
def test_expected_failure_is_a_strict_xfail_with_its_reason(expected):
    marks = {case.id: case.marks for case in cases_of(["sign"], expected_failed_checks=expected)}
    (mark,) = marks["sign()-append"]
    assert mark.name == "xfail" and mark.kwargs == {"reason": "why not", "strict": True}
    assert not marks["sign()-truncate"]


def test_unknown_law_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="did you mean 'truncate'"):
        parametrize_with_checks(["sign"], expected_failed_checks={"truncated": "x"})


def test_an_undeclared_input_names_the_indexer_and_the_input():
    with pytest.raises(InputError, match=r"random\(\) read 'hidden', which its `needs`"):
        _ = Step(inputs={"hidden": torch.zeros(1, 1, 1)}).given_to(random()).hidden
    with pytest.raises(InputError, match=r"exact\(\) needs 'cache'; this driver has none"):
        _ = Step().given_to(exact()).cache
    with pytest.raises(InputError, match="a step has no input"):
        Step(inputs={"hiden": 1})


CODEBOOKS = torch.rand(32, 1, 24, generator=torch.Generator().manual_seed(0)) + 0.5


@dataclass(frozen=True)
class calibrated(int8):
    """Has a scale for each layer, KV head and dimension, and reads the hidden state and values."""

    def traits(self):
        return replace(super().traits(), needs=frozenset({"hidden", "values", "rope"}))

    def encode(self, keys, step):
        if step.hidden.shape[-1] != 48 or step.values.shape != keys.shape:
            raise RuntimeError("other widths\nthan those calibrated")
        return super().encode(keys * CODEBOOKS[step.layer][:, None].to(keys.device), step)

    def score(self, queries, codes, step):
        return super().score(queries * CODEBOOKS[step.layer].sum().to(queries.device), codes, step)


def own_inputs(heads=64) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    shapes = {"queries": (2, heads, 30, 24), "keys": (2, 1, 30, 24), "hidden": (2, 30, 48)}
    return {name: 1 + torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_a_calibrated_recipe_is_held_at_its_own_place():
    shapes: dict[str, Any] = {"widths": {"head_dim": 24, "hidden": 48}, "layer": 7}
    far: dict[str, Any] = {**shapes, "layer": 32}
    check_indexer(calibrated(), heads=(8, 1), **shapes)
    check_indexer(calibrated(), inputs=own_inputs(8), layer=31)
    with pytest.raises(
        AssertionError, match=r"'declared_inputs': it raised RuntimeError: other widths than"
    ):
        check_indexer(calibrated())
    with pytest.raises(
        AssertionError, match=r"'declared_inputs': it raised IndexError: .*index 32"
    ):
        check_indexer(calibrated(), heads=(64, 1), **far)
    for recipe in (counts_padding, peeks):  # shapes of one's own hold to the laws as others do
        with pytest.raises(AssertionError, match=f"breaks the law '{BROKEN[recipe]}'"):
            check_indexer(recipe(), heads=(8, 1), **shapes)


def test_own_tokens_are_what_the_laws_see():
    inputs = own_inputs()
    inputs["rope"] = (inputs["hidden"].cos(), inputs["hidden"].sin())
    inputs["values"] = inputs["keys"] + 1
    one = draw_of(calibrated(), None, None, 7, inputs)(calibrated(), start=PADDED)
    assert (one.queries.shape, one.keys.shape) == ((3, 64, 37, 24), (3, 1, 37, 24))
    own = {
        tuple(token.tolist()): place for place, token in enumerate(inputs["hidden"].flatten(0, 1))
    }
    keys = inputs["keys"].transpose(1, 2).flatten(0, 1)
    for row in range(3):
        for slot in range(37):
            token = own[tuple(one.tokens["hidden"][row, slot].tolist())]
            assert torch.equal(one.keys[row, :, slot], keys[token])
    step = one.step(calibrated(), slice(3, 5), 5)
    assert step.layer == 7 and torch.equal(step.values, one.keys[:, :, 3:5] + 1)
    assert torch.equal(step.rope[1], step.hidden.sin())


@dataclass(frozen=True)
class says_too_little(int8):
    def traits(self):
        return {"drifts": True}


@dataclass(frozen=True)
class builds_nothing(int8):
    def build(self, keys, step):
        return None


@dataclass(frozen=True)
class selects_a_tensor(exact):
    def choose(self, queries, k, step, length):
        return super().choose(queries, k, step, length).indices


@dataclass(frozen=True)
class stumbles(int8):
    def score(self, queries, codes, step):
        return self._products(queries, codes)

    def _products(self, queries, codes):
        return queries @ codes["codes"].float()[..., :7].mT  # THIS LINE


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (says_too_little, r"says_too_little.traits\(\) must return a Traits, as .*; got dict"),
        (builds_nothing, "build must return Index; got NoneType"),
        (selects_a_tensor, "select must return Selection; got Tensor"),
        (stumbles, r"'declared_inputs': it raised RuntimeError: .*, at .*test_laws.py:\d+ in _products: "
                   r"return queries .* # THIS LINE$"),
    ],
)  # fmt: skip
def test_what_broke_is_told_in_one_line(recipe, said):
    with pytest.raises(AssertionError, match=said) as raised:
        check_indexer(recipe())
    assert "\n" not in str(raised.value)


def test_traits_that_are_none_are_refused_wherever_they_are_read():
    for read in (lambda: says_too_little().needs, lambda: keep(says_too_little())):
        with pytest.raises(InputError, match="must return a Traits"):
            read()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"heads": (6, 4)}, "a multiple of KV heads"),
        ({"heads": (0, 1)}, "heads must be at least 1"),
        ({"heads": (4,)}, "query and KV heads"),
        ({"layer": -1}, "layer must be 0 or more"),
        ({"layer": 1.5}, "layer must be a whole number"),
        ({"widths": {"hiden": 4}}, "one of head_dim, hidden, latent, rope"),
        ({"widths": {"hidden": 0}}, "hidden must be at least 1"),
        ({"inputs": {"upstream": torch.ones(1, 4, 8)}}, "of the names .*; got 'upstream'"),
        ({"inputs": {"keys": torch.ones(1, 1, 9, 8)}}, "queries and keys must come together"),
        ({"inputs": {"hidden": torch.ones(1, 9)}}, "hidden must have 3 dimensions"),
        ({"inputs": {"hidden": torch.ones(1, 9, 4), "latent": torch.ones(1, 8, 4)}}, "one B and T"),
        ({"inputs": {"rope": torch.ones(1, 9, 4)}}, "rope must be a pair"),
        ({"inputs": {"rope": (torch.ones(1, 9, 4), None)}}, "rope must be a pair"),
        ({"inputs": {"hidden": torch.ones(1, 9, 0)}}, "hidden must have at least 1 dimension"),
        ({"inputs": [torch.ones(1, 9, 4)]}, "inputs must be a mapping, by name; got list"),
        ({"widths": [("hidden", 4)]}, "widths must be a mapping"),
        ({"heads": 4}, "query and KV heads"),
        ({"inputs": own_inputs(), "heads": 4}, "query and KV heads"),
        (
            {"inputs": {**own_inputs(), "values": torch.ones(2, 3, 30, 16)}},
            r"values must have the heads of keys, \[1\]; got \[3\]",
        ),
        (
            {"inputs": {**own_inputs(), "prefill_queries": torch.ones(2, 64, 30, 3)}},
            r"prefill_queries must have the heads and dimensions of queries, \[64, .*; got \[64, 3\]",
        ),
        ({"inputs": own_inputs(), "heads": (4, 1)}, r"heads must be those .* \(64, 1\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(how, said):
    with pytest.raises(InputError, match=said):
        check_indexer(int8(), **how)


def test_recipes_are_values():
    assert copy.deepcopy(int8()) == int8() and hash(int8()) == hash(int8())

"""The kernels that find where lists of keys are cut: on a GPU, or in Triton's interpreter."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from device import CUDA, DEVICE, gpu
from topkit.errors import InputError
from topkit.kernels.topk_attention import Cuts, cuts_of, keys_kept, sample
from topkit.kernels.topk_attention.cuts import SLACK
from topkit.kernels.topk_attention.sample import Plan
from topkit.kernels.topk_attention.thresholds import cuts_begun

impl = pytest.importorskip("topkit.kernels.topk_attention.triton_impl")
row_append = pytest.importorskip("topkit.kernels.topk_attention.row_append")

# Candidates that there is room for in the interpreter, so that rows are sampled which are short.
ROOM = 384


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the interpreter tiles are small, and rows are long that are not."""
    if not CUDA:
        config = impl.Config(16, 128, 1, 1, 1)
        configs = impl.Configs(impl.Config(16, 64, 1, 1, 1), config, config)
        monkeypatch.setattr(impl, "CONFIGS", {128: configs})
        monkeypatch.setattr(Plan, "capacity", property(lambda plan: ROOM))


def drawn(
    heads: int = 2, groups: int = 1, count: int = 3, length: int = 701, dim: int = 16, rows: int = 1,
    dtype: torch.dtype = torch.bfloat16, levels: int = 0, seed: int = 0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Queries and keys; with levels, of so many whole numbers about zero, whose products are exact."""
    draw = torch.Generator().manual_seed(seed)
    shapes = (rows, heads, count, dim), (rows, groups, length, dim)
    if levels:
        made = [torch.randint(-levels, levels + 1, s, generator=draw) for s in shapes]
    else:
        made = [torch.randn(s, generator=draw) for s in shapes]
    q, k = (x.to(DEVICE, dtype) for x in made)
    return q, k


def slow(q: Tensor, k: Tensor, kept: Tensor, start: list[int]) -> Tensor:
    """Which keys each query keeps, by Python's sort of scores in float64."""
    (rows, heads, count, _), (_, groups, length, _) = q.shape, k.shape
    stays = torch.zeros(rows, heads, count, length, dtype=torch.bool)
    queries, keys = q.double().cpu(), k.double().cpu()
    for b in range(rows):
        for h in range(heads):
            for i in range(count):
                seen = range(start[b], length - count + i + 1)
                scores = (keys[b, h * groups // heads] @ queries[b, h, i]).tolist()
                best = sorted(seen, key=lambda s: (-scores[s], s))
                stays[b, h, i, best[: int(kept[b % len(kept), i])]] = True
    return stays


def held(
    q: Tensor, k: Tensor, kept: Tensor, start: list[int] | None = None, **options: Any
) -> None:
    """Hold the cuts to the slow rendering."""
    first = None if start is None else torch.tensor(start, device=DEVICE)
    cuts = cuts_of(q, k, kept.to(DEVICE), first, backend="triton", **options)
    group = q.shape[1] // k.shape[1]
    scores = (q.float() @ k.float().repeat_interleave(group, 1).mT).cpu()
    slots, places = torch.arange(k.shape[2]), torch.arange(k.shape[2] - q.shape[2], k.shape[2])
    begin = torch.tensor([0] * len(q) if start is None else start)
    seen = (slots <= places[:, None]) & (slots >= begin[:, None, None, None])
    scores = scores.masked_fill(~seen, float("-inf"))
    keep = Cuts(*(getattr(cuts, field.name).cpu() for field in fields(Cuts))).keep(scores)
    best = scores.amax(-1).masked_fill(kept.expand(len(q), -1)[:, None] == 0, float("-inf"))
    there = cuts.top.cpu().masked_fill(best == float("-inf"), float("-inf"))
    torch.testing.assert_close(there, best, rtol=1e-5, atol=1e-5)
    assert torch.equal(keep, slow(q, k, kept, start or [0] * len(q)))


CASES: dict[str, dict[str, Any]] = {
    "plain": {"heads": 1},
    "newest": {"length": 650, "count": 1},
    "short": {"length": 97, "heads": 1},
    "one key": {"count": 1, "length": 1},
    "64": {"dim": 64, "heads": 1, "count": 1},
    "128": {"dim": 128, "heads": 1, "count": 1},
    "group": {"heads": 4, "groups": 2, "count": 1},
    "float16": {"dtype": torch.float16, "heads": 1},
    "rows": {"rows": 2, "heads": 1, "count": 2},
    "longer than a tile": {"count": 18, "length": 18, "heads": 1},
}


@pytest.mark.parametrize("case", CASES)
def test_cuts_are_the_slow_rendering(case: str) -> None:
    q, k = drawn(**CASES[case])
    held(q, k, torch.arange(q.shape[2])[None] * 3 + 1)


@pytest.mark.parametrize("kept", [[0, 1, 2], [699, 700, 701], [800, 800, 350]])
def test_nothing_one_key_and_all(kept: list[int]) -> None:
    held(*drawn(heads=1), torch.tensor([kept]))


@pytest.mark.parametrize("levels", [1, 3])
def test_ties_are_cut_by_slot(levels: int) -> None:
    q, k = drawn(heads=1, levels=levels)
    held(q, k, torch.tensor([[2, 7, 30]]), slack=SLACK)


def test_a_plateau_is_cut_by_slot() -> None:
    q, k = drawn(levels=2)
    held(q, k[:, :, :1].expand(-1, -1, 701, -1), torch.tensor([[1, 7, 350]]))


@pytest.mark.parametrize("slack", [0.0, SLACK])
def test_infinite_scores_that_tie_are_cut_by_slot(slack: float) -> None:
    q, k = drawn(heads=1)
    q[..., 0] = 3
    k[:, :, ::100, 0] = 3e38
    held(q, k, torch.tensor([[2, 7, 30]]), slack=slack)


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_greatest_numbers_that_tie_are_cut_by_slot(sign: int) -> None:
    """Beside infinite ones; what lies about a tie is then beyond all numbers."""
    q, k = drawn(heads=1, count=2, length=30)
    q, k = torch.zeros_like(q), torch.zeros_like(k)
    # 2 ** 127 (2 - 2 ** -23), of which bfloat16 holds eight bits at a time.
    q[..., :3] = 1
    k[..., :3] = sign * 2.0**127 * torch.tensor([2 - 2**-7, 2**-7 - 2**-15, 2**-15 - 2**-23])
    q[..., 3], k[:, :, 3, 3] = 3e38, 3
    held(q, k, torch.tensor([[2, 7]]), slack=SLACK)


def test_padding_is_not_seen() -> None:
    q, k = drawn(rows=2, heads=1, count=2)
    k[1, :, :50] = float("nan")
    held(q, k, torch.tensor([[4, 6], [0, 3]]), [0, 50])


def test_starts_may_lie_apart_and_beyond_all_keys() -> None:
    """As views of others have them, and as whole numbers of 64 bits; so may what is kept."""
    q, k = drawn(rows=2, heads=1, count=2)
    kept = torch.tensor([[4, 2**32], [2**63 - 1, 3]])
    for apart in (torch.tensor([0, 9, 50, 9])[::2], torch.tensor([40]).expand(2)):
        cuts = cuts_of(q, k, kept.to(DEVICE), apart.to(DEVICE), backend="triton")
        want = cuts_of(q, k, kept.to(DEVICE), apart.contiguous().to(DEVICE), backend="torch")
        torch.testing.assert_close(cuts.high, want.high)
    beyond = torch.tensor([2**32, 2**63 - 1], device=DEVICE)
    assert (cuts_of(q, k, kept.to(DEVICE), beyond, backend="triton").high == float("inf")).all()


def test_what_is_below_zero_is_none() -> None:
    """Also where its lower 32 bits alone are a number of keys, and where it is a tile and more before the first key."""
    q, k = drawn(rows=2, heads=1, count=2, length=40)
    kept = torch.tensor([[4, 5 - 2**32], [-3, 30]], device=DEVICE)
    start = torch.tensor([-300, 3 - 2**32], device=DEVICE)
    cuts, want = (cuts_of(q, k, kept, start, backend=form) for form in ("triton", "torch"))
    torch.testing.assert_close(cuts.high, want.high)


@pytest.mark.parametrize("where", ["query", "key", "all stays"])
def test_nan_is_refused_when_cuts_are_settled(where: str) -> None:
    q, k = drawn(heads=1)
    (q if where == "query" else k)[0, 0, 1, 2] = float("nan")
    kept = torch.full((1, 3), 701 if where == "all stays" else 2, device=DEVICE)
    _, settle = cuts_begun(q, k, kept, backend="triton", most=701)
    with pytest.raises(InputError, match="scores hold NaN"):
        settle()


@pytest.mark.skipif(CUDA, reason="rows are short")
@pytest.mark.parametrize("off", [-1.0, 1.0])
def test_what_the_sample_misjudges_is_left_and_cut_again(off: float) -> None:
    """Keys of the sample are better than all others, or worse: too few reach the floor, or too many."""
    q, k = drawn(heads=1)
    q = q.abs()
    k = k.abs() * 0.25
    k[:, :, Plan(701, 9).places(k.device)] += off
    kept = torch.tensor([[30, 30, 30]])
    found = impl.cut_rows(q, k, kept, None, 30)
    assert found.state.tolist() == [3, 0] and sorted(found.left.tolist()) == [0, 1, 2]
    held(q, k, kept)


@pytest.mark.parametrize("far", [0.0, 100.0])
def test_what_the_sample_judges_right_is_told(far: float) -> None:
    """Also where the first key, one of the sample, has a score that is far above the others."""
    q, k = drawn(length=1201, heads=1, count=2)
    k[:, :, 0] += far * q.mean(2)
    kept = torch.tensor([[1, 20]], device=DEVICE)
    found = impl.cut_rows(q, k, kept, None, 20)
    assert found.state.tolist() == [0, 0]
    scores = (q.double() @ k.double().mT).masked_fill(
        ~torch.ones(2, 1201, dtype=torch.bool, device=DEVICE).tril(1199), float("-inf")
    )
    best = scores.sort(-1, descending=True).values
    at = kept[:, None, :, None].expand(1, 1, 2, 1)
    last, out = (best.gather(-1, rank)[..., 0] for rank in (at - 1, at))
    near: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(found.cuts.high.double(), (last + out) / 2, **near)
    assert torch.equal(found.cuts.low, found.cuts.high) and (found.cuts.last == -1).all()


def test_memory_is_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is little room, few rows stand in it at a time: neither it nor what is cut depends on the others."""
    q, k = drawn(heads=1, count=17, length=20)
    made: list[int] = []
    empty = torch.empty

    def noted(*size: Any, **options: Any) -> Tensor:
        out = empty(*size, **options)
        made.append(out.nbytes)
        return out

    monkeypatch.setattr(torch, "empty", noted)
    monkeypatch.setattr(impl, "LEAST", 1)
    monkeypatch.setattr(impl, "SHARE", 0)
    held(q, k, torch.full((1, 17), 3))
    assert max(made) == 4 * impl.configs(q.shape[3]).lists.queries * (Plan(20, 3).capacity + 1)


@pytest.mark.parametrize("by_kernel", [0, 3])
def test_rows_beyond_those_of_the_kernel_are_cut_again_a_few_at_a_time(
    by_kernel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from topkit.kernels.topk_attention import thresholds

    monkeypatch.setattr(thresholds, "TILE_CUDA", 1000)
    monkeypatch.setattr(impl, "AGAIN", by_kernel)
    q, k = drawn(rows=2, groups=2, count=2, length=140, levels=2)
    same = k[:, :, :1].expand(-1, -1, 140, -1)
    held(q, same, torch.tensor([[3, 5], [60, 1]]), [0, 9])


COMPARED: dict[str, Any] = {
    "setp.geu.f32": lambda x, y: not x < y,
    "setp.geu.and.f32": lambda x, y, also: not x < y and also,
    "setp.le.u32": lambda x, y: x <= y,
}
COMPUTED: dict[str, Any] = {
    "mov": lambda x: x,
    "cvt": lambda x: x,
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "and": lambda x, y: x & y,
    "shr": lambda x, y: x >> y,
    "mad": lambda x, y, z: x * y + z,
    "selp": lambda x, y, p: x if p else y,
}


def run_ptx(text: str, threads: list[dict[str, Any]], memory: dict[int, Any]) -> None:
    """Four threads' pass, in step, through the instructions that `row_append` uses; an address names four bytes."""
    for line in text.strip().strip("{}").split(";"):
        words = line.replace(",", " ").replace("[", " ").replace("]", " ").split()
        if not words or words[0].startswith("."):
            continue
        before = [dict(registers) for registers in threads]
        for lane, registers in enumerate(threads):
            kind, to, *names = words[1:] if words[0].startswith("@") else words
            if words[0].startswith("@") and not registers[words[0][1:]]:
                continue
            if kind == "shfl.sync.up.b32":
                value, valid = to.split("|")
                registers[valid] = lane >= int(names[1])
                if registers[valid]:
                    registers[value] = before[lane - int(names[1])][names[0]]
                continue
            if kind == "shfl.sync.idx.b32":
                registers[to] = before[int(names[1])][names[0]]
                continue
            given = [registers[n] if n in registers else int(n) for n in names if n != "+"]
            if kind == "st.global.b32":
                place, value = (registers[to], *given) if len(given) == 1 else (registers[to] + given[0], given[1])  # fmt: skip
                memory[place] = value
            elif kind in COMPARED:
                registers[to] = COMPARED[kind](*given)
            else:
                registers[to] = COMPUTED[kind.split(".")[0]](*given)


@pytest.mark.parametrize("capacity", [100, 13])
def test_what_threads_append_by_ptx_are_their_scores_that_reach_the_floor(capacity: int) -> None:
    """The instructions as they stand: two rows, of which four threads hold parts, tile after tile."""
    draw, each, nan = torch.Generator().manual_seed(0), 4, float("nan")
    lists, floors = (1000, 9000), (0.5, -0.25)
    memory: dict[int, Any] = {}
    want: list[list[float]] = [[], []]
    came = [0, 0]
    for tile in range(3):
        threads: list[dict[str, Any]] = []
        for thread in range(4):
            scores = torch.randn(2, each, generator=draw).tolist()
            scores[0][1] = nan if (tile, thread) == (1, 2) else scores[0][1]
            operands = [scores, *([[x] * each for x in pair] for pair in (floors, lists, came))]
            flat = [one for kind in operands for row in kind for one in row]
            threads.append({f"${2 * each + i}": one for i, one in enumerate(flat)} | {"p": False})
            for row in (0, 1):
                want[row] += [s for s in scores[row] if not s < floors[row]]
        run_ptx(row_append._append(each, capacity), threads, memory)
        told = [[t[f"${row * each + i}"] for t in threads for i in range(each)] for row in (0, 1)]
        came = [row[0] for row in told]
        assert all(len(set(row)) == 1 for row in told)
        assert came == [len(row) for row in want]  # counted, even where there was no room
    for row, at in enumerate(lists):
        written = {address - at for address in memory if at < address < at + 8000}
        assert max(written) <= 4 * capacity
        if len(want[row]) <= capacity:
            kept = [memory[at + 4 * (nth + 1)] for nth in range(len(want[row]))]
            assert len(written) == len(kept) and str(kept) == str(want[row])
    assert (max(map(len, want)) > capacity) == (capacity == 13)
    threads = [{f"${each + i}": (*lists, *came)[i // each] for i in range(4 * each)}] * 4
    run_ptx(row_append._count(each), threads, memory)
    assert [memory[at] for at in lists] == came


def test_samples_are_spread_and_rows_have_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for length in (1, 15, 16, 17, 1000, 40000):
        places = Plan(length, 10).places(torch.device("cpu"))
        assert (places // sample.SPARSITY).tolist() == list(range(-(-length // sample.SPARSITY)))
        assert int(places.max()) < length
    for k, capacity in ((1, 640), (41, 768), (328, 1280), (1638, 4096)):
        assert Plan(1 << 15, k).capacity <= capacity
        assert k < Plan(1 << 15, k).capacity <= sample.LARGEST
    assert Plan(100, 50).capacity == 128


def test_what_the_kernels_do_not_take_is_refused() -> None:
    q, k = drawn(heads=1)
    kept = torch.full((1, 3), 2, device=DEVICE)
    with pytest.raises(InputError, match=r"must be bfloat16 or float16; got torch\.float32"):
        cuts_of(q.float(), k.float(), kept, backend="triton")
    with pytest.raises(InputError, match="head dimension of 16, 32, 64 or 128; got 12"):
        cuts_of(q[..., :12], k[..., :12], kept, backend="triton")


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("ratio", ["0.01", "0.05"])
@pytest.mark.parametrize("padded", [False, True])
def test_on_a_gpu_long_rows_are_cut_as_by_all_scores(dim: int, ratio: str, padded: bool) -> None:
    q, k = drawn(8, 2, 6000, 6000, dim, rows=2, seed=1)
    start = torch.tensor([0, 1000], device=DEVICE) if padded else None
    kept = keys_kept(ratio, 6000, 6000, start=start, device=DEVICE)
    found = cuts_of(q, k, kept, start, backend="triton")
    want = cuts_of(q, k, kept, start, backend="torch")
    # Sums are in another order.
    torch.testing.assert_close(found.high, want.high, rtol=1e-5, atol=1e-4)
    left = int(impl.cut_rows(q, k, kept, start, int(kept.max())).state[0])
    assert left < 0.002 * found.high.numel()


@gpu
@pytest.mark.gpu
def test_on_a_gpu_exact_scores_give_the_same_cuts() -> None:
    """Products of whole numbers are exact in any order; nearly all rows tie where they are cut."""
    q, k = drawn(4, 2, 5000, 5000, 64, levels=3, seed=2)
    kept = keys_kept("0.02", 5000, 5000, device=DEVICE)
    found, want = (cuts_of(q, k, kept, backend=form) for form in ("triton", "torch"))
    for name in ("low", "high", "last"):
        assert torch.equal(getattr(found, name), getattr(want, name)), name


@gpu
@pytest.mark.gpu
def test_on_a_gpu_a_stream_reads_no_sample_that_another_has_yet_to_place() -> None:
    one, other = torch.cuda.Stream(), torch.cuda.Stream()
    with torch.cuda.stream(one):
        torch.cuda._sleep(10**9)
        Plan(54321, 9).places(one.device)
    with torch.cuda.stream(other):
        found = Plan(54321, 9).places(one.device).cpu()
    assert torch.equal(found, Plan(54321, 9).places(torch.device("cpu")))


@gpu
@pytest.mark.gpu
def test_on_a_gpu_memory_is_linear() -> None:
    """8 heads of 32K: all scores would be 34 GB, all candidates 1.5 GB."""
    q, k = drawn(8, 8, 32768, 32768, 64)
    kept = keys_kept("0.01", 32768, 32768, device=DEVICE)
    cuts_of(q, k, kept)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    cuts_of(q, k, kept)
    assert torch.cuda.max_memory_allocated() - before <= 8 * (q.nbytes + k.nbytes)

"""Keys of fp4 by Triton, scored and appended: on a GPU, or in Triton's interpreter."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from device import CUDA, DEVICE, gpu
from topkit.errors import InputError
from topkit.kernels import fp4
from topkit.kernels.backend import has_gluon
from topkit.kernels.codes import hadamard_rotate, scales_stored
from topkit.kernels.quantize_append import quantize_append
from topkit.kernels.score import score_codes, score_lightning

fields = pytest.importorskip("topkit.kernels.score.fp4_fields")

pytestmark = pytest.mark.usefixtures("poisoned")

E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], dtype=torch.float64)
# Against fp16 operands queries have 22 bits and sums are float32; lightning's mxfp4 has products in float16.
PLAIN = 1e-5
GATED = {"mxfp4": 2e-3 if CUDA else 5e-4, "nvfp4": 1e-5}


def meant(codes: Tensor, scale: Tensor, dtype: str) -> Tensor:
    """What bytes stand for [..., D] float64, by tables of the formats."""
    low, high = (codes & 15).long().cpu(), (codes >> 4).long().cpu()
    fields = torch.stack([low, high], -1).flatten(-2)
    values = torch.where(fields > 7, -E2M1[fields & 7], E2M1[fields & 7])
    bits = scale.contiguous().view(torch.uint8).cpu()
    if dtype == "mxfp4":
        table = torch.exp2(torch.arange(256.0, dtype=torch.float64) - 127)
        table[255] = math.nan
    else:
        table = torch.arange(256).byte().view(torch.float8_e4m3fn).double()
    factor = table[bits.long()].repeat_interleave(fp4.BLOCK[dtype], -1)
    return (values * factor[..., : values.shape[-1]]).to(codes.device)


def drawn(*shape: int, seed: int, spread: float) -> Tensor:
    """Vectors whose blocks of 16 differ in size."""
    g = torch.Generator().manual_seed(seed)
    sizes = torch.exp2(spread * torch.randn(*shape[:-1], shape[-1] // 16, generator=g))
    return (torch.randn(*shape, generator=g) * sizes.repeat_interleave(16, -1)).to(DEVICE)


def roomy(tensor: Tensor) -> Tensor:
    """The same on a longer buffer, whose other slots are NaN, or all ones in bits."""
    held = tensor.view(torch.uint8)
    longer = torch.nn.functional.pad(held, (0, 0, 0, 9), value=255)
    return longer.view(tensor.dtype)[:, :, : tensor.shape[2]]


def case(
    dtype: str, pool=None, group=4, dim=64, batch=2, groups=2, count=1, length=77, spread=3.0,
    kind=torch.bfloat16, one_row=False, window=True, seed=0,
) -> dict[str, Any]:  # fmt: skip
    keys = drawn(1 if one_row else batch, groups, length, dim, seed=seed, spread=spread)
    queries = drawn(batch, count, groups * group, dim, seed=seed + 1, spread=1.0)
    codes, scale = map(roomy, fp4.quantize(keys, dtype))
    start, stop = torch.arange(batch) * 5, torch.arange(batch)[:, None].expand(-1, count)
    seen = {"start": start.to(DEVICE), "stop": (length - 7 * stop).to(DEVICE)} if window else {}
    told = {"dtype": dtype, "scale": scale, "pool": pool}
    return {"queries": queries.to(kind).transpose(1, 2), "codes": codes} | told | seen


def slow(queries, codes, dtype, scale, pool, start=None, stop=None) -> Tensor:
    keys, group = meant(codes, scale, dtype), queries.shape[1] // codes.shape[1]
    rows = queries.shape[0]
    keys = keys.expand(rows, -1, -1, -1).repeat_interleave(group, 1)
    out = queries.double() @ keys.mT
    if pool is not None:
        out = out.unflatten(1, (-1, group))
        out = {"mean": out.mean(2), "sum": out.sum(2), "max": out.amax(2)}[pool]
    return hidden(out, start, stop)


def hidden(out: Tensor, start: Tensor | None, stop: Tensor | None) -> Tensor:
    slots = torch.arange(out.shape[-1], device=out.device)
    if start is not None:
        out = out.masked_fill(slots < start[:, None, None, None], -math.inf)
    if stop is not None:
        out = out.masked_fill(slots >= stop[:, None, :, None], -math.inf)
    return out


def lightning(
    dtype: str, heads=8, dim=64, batch=2, count=2, length=77, one_row=False, spread=3.0, seed=0
) -> dict[str, Any]:
    queries = drawn(batch, heads, count, dim, seed=seed, spread=spread)
    keys = drawn(1 if one_row else batch, 1, length, dim, seed=seed + 1, spread=spread)
    asked, asked_scale = fp4.quantize(queries, dtype)
    codes, scale = map(roomy, fp4.quantize(keys, dtype))
    gates = torch.randn(batch, count, heads, generator=torch.Generator().manual_seed(seed))
    stop = torch.tensor([[length], [length - 40]])[:batch].expand(-1, count)
    return {
        "queries": asked, "keys": codes, "gates": gates.to(DEVICE),
        "query_scale": asked_scale, "key_scale": scale,
        "start": torch.tensor([0, 17], device=DEVICE)[:batch], "stop": stop.to(DEVICE),
    }  # fmt: skip


def slow_lightning(
    queries, keys, gates, query_scale, key_scale, start=None, stop=None, *, dtype
) -> Tensor:
    asked, held = meant(queries, query_scale, dtype), meant(keys, key_scale, dtype)
    hits = torch.relu(asked @ held.mT) * gates.double().mT[..., None]
    return hidden(
        hits.sum(1, keepdim=True) / math.sqrt(asked.shape[1] * asked.shape[3]), start, stop
    )


def error(found: Tensor, want: Tensor) -> float:
    """The largest error of what is finite, relative to each query's norm of scores; others must be alike."""
    found, real = found.double(), want.isfinite()
    assert torch.equal(found[~real].nan_to_num(7.0), want[~real].nan_to_num(7.0))
    norms = want.where(real, 0.0).norm(dim=-1, keepdim=True).clamp_min(1e-300)
    return float(((found - want) / norms).where(real, 0.0).norm(dim=-1).amax())


SHAPES = [
    {"pool": "mean", "group": 3, "groups": 1, "dim": 128},
    {
        "pool": "sum",
        "groups": 1,
        "one_row": True,
        "window": False,
        "kind": torch.float32,
        "spread": 6.0,
    },
    {"pool": "max", "group": 3, "groups": 1, "batch": 1, "dim": 128, "count": 2},
    {"group": 2, "batch": 1, "kind": torch.float16},
    {"group": 1, "batch": 1, "groups": 1, "length": 1, "window": False},
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", fp4.BLOCK)
def test_it_is_the_product_with_what_the_bytes_stand_for(dtype, shape):
    given = case(dtype, **shape)
    want = slow(**given)
    found = score_codes(**given, backend="triton")
    assert found.dtype == torch.float32 and found.shape == want.shape
    assert error(found, want) <= PLAIN
    assert error(score_codes(**given, backend="torch"), want) <= PLAIN


@pytest.mark.parametrize(
    "shape",
    [{"heads": 3, "batch": 1}, {"dim": 128, "batch": 1, "count": 1}, {"one_row": True, "count": 1}],
    ids=str,
)
@pytest.mark.parametrize("dtype", fp4.BLOCK)
def test_lightning_is_the_gated_sum_of_what_is_positive(dtype, shape):
    given = lightning(dtype, **shape)
    want = slow_lightning(**given, dtype=dtype)
    assert error(score_lightning(**given, backend="triton"), want) <= GATED[dtype]
    assert error(score_lightning(**given, backend="torch"), want) <= 1e-5


@pytest.mark.parametrize("size", [2.0**-60, 1.0, 2.0**60])
@pytest.mark.parametrize("dtype", fp4.BLOCK)
def test_the_largest_products_of_lightning_are_finite(dtype, size):
    """All components alike and the largest that their blocks hold, at gates of any size."""
    given = lightning(dtype, batch=1, heads=3, dim=128, length=9)
    given["queries"].fill_(0x77)
    given["keys"].fill_(0x77)
    given["keys"][:, :, ::2] = 0xFF
    for name in ("query_scale", "key_scale"):
        given[name].view(torch.uint8).fill_(120 if dtype == "mxfp4" else 0x30)
    given["gates"] *= size
    want = slow_lightning(**given, dtype=dtype)
    assert want.isfinite().any() and want.nan_to_num(0, 0, 0).abs().max() > 0
    assert error(score_lightning(**given, backend="triton"), want) <= GATED[dtype]


def of_scales(scale: Tensor, dtype: str) -> dict[str, Any]:
    """Keys [1, 1, T, 64] of all codes whose blocks have these scales, and queries."""
    g = torch.Generator().manual_seed(5)
    codes = torch.randint(0, 256, (1, 1, scale.shape[0], 32), generator=g).byte()
    told = {"dtype": dtype, "scale": scale.view(1, 1, *scale.shape).to(DEVICE), "pool": None}
    return {
        "queries": torch.randn(1, 1, 2, 64, generator=g).to(DEVICE),
        "codes": codes.to(DEVICE),
    } | told


def test_every_scale_of_mxfp4():
    """From the least to the largest that float32 holds, beside another block's; 255 is NaN."""
    byte = torch.cat([torch.arange(1, 240), torch.tensor([255])])
    beside = (byte + torch.randint(-30, 31, byte.shape)).clamp(1, 240)
    scale = torch.stack([byte, beside.where(byte < 255, 100)], 1).byte()
    given = of_scales(scale, "mxfp4")
    want = slow(**given)
    assert want.isnan().sum() == 2
    found = score_codes(**given, backend="triton")
    assert torch.equal(found.isnan(), want.isnan())
    real = want.isfinite()
    sizes = meant(given["codes"], given["scale"], "mxfp4").norm(dim=-1)[:, :, None].expand_as(want)
    # Of numbers below float32's normal ones a CPU keeps more than the definition's blocks of zeros do.
    assert ((found - want).abs()[real] <= 1e-5 * sizes[real] + 1e-36).all()


def test_every_scale_of_nvfp4():
    """Negative ones and NaN too, which other code may have stored."""
    byte = torch.arange(256).byte()
    scale = torch.stack([byte, byte.flip(0), byte.roll(77), byte.roll(5)], 1)
    given = of_scales(scale.view(torch.float8_e4m3fn), "nvfp4")
    want = slow(**given)
    found = score_codes(**given, backend="triton")
    assert want.isnan().any() and torch.equal(found.isnan(), want.isnan())
    sizes = meant(given["codes"], given["scale"], "nvfp4").norm(dim=-1)[:, :, None].expand_as(want)
    real = want.isfinite()
    assert ((found - want).abs()[real] <= 1e-5 * sizes[real]).all()


def test_a_block_of_zeros_takes_nothing_from_others():
    """Its scale is the least, so that what is small beside it is not cut."""
    keys = drawn(1, 1, 9, 128, seed=0, spread=0.0) * 2.0**-40
    keys[..., 32:64] = 0
    codes, scale = fp4.quantize(keys, "mxfp4")
    assert scale[..., 1].eq(1).all() and fp4.quantize(torch.zeros(2, 32), "mxfp4")[1].eq(1).all()
    given: dict[str, Any] = {
        "queries": drawn(1, 2, 1, 128, seed=1, spread=0.0),
        "codes": codes,
        "scale": scale,
    }
    given |= {"dtype": "mxfp4", "pool": None}
    assert error(score_codes(**given, backend="triton"), slow(**given)) <= PLAIN


@pytest.mark.parametrize("pool", [None, "max"])
@pytest.mark.parametrize("dtype", fp4.BLOCK)
def test_a_nan_shows_where_it_shows_in_the_definition(dtype, pool):
    given = case(dtype, pool, group=3, groups=1, window=False, length=70)
    given["queries"][0, 1, 0, 7] = math.nan
    given["scale"].view(torch.uint8)[1, 0, 5, 1] = 255 if dtype == "mxfp4" else 127
    want = score_codes(**given, backend="torch").isnan()
    assert want.any() and torch.equal(score_codes(**given, backend="triton").isnan(), want)


@pytest.mark.parametrize("name", ["gates", "query_scale", "key_scale"])
@pytest.mark.parametrize("dtype", fp4.BLOCK)
def test_lightning_hides_no_nan(dtype, name):
    given = lightning(dtype, batch=1, heads=3)
    if name == "gates":
        given[name][0, 1, 1] = math.nan
    else:
        given[name].view(torch.uint8)[0, 0, 1, 1] = 255 if dtype == "mxfp4" else 127
    want = score_lightning(**given, backend="torch").isnan()
    assert want.any() and torch.equal(score_lightning(**given, backend="triton").isnan(), want)


@pytest.mark.parametrize("size", [{"count": 0}, {"length": 0}, {"batch": 0}], ids=str)
def test_nothing_gives_nothing(size):
    given = case("mxfp4", **size, window=False)
    found = score_codes(**given, backend="triton")
    assert found.shape == score_codes(**given, backend="torch").shape and found.numel() == 0
    if "length" not in size:
        given = lightning("nvfp4", **size)
        assert score_lightning(**given, backend="triton").numel() == 0


def test_queries_that_are_not_packed_are_multiplied_by_torch():
    given = lightning("mxfp4")
    plain = fp4.dequantize(given["queries"], given["query_scale"], "mxfp4", 64)
    unpacked = given | {"queries": plain, "query_scale": None}
    assert torch.equal(score_lightning(**unpacked), score_lightning(**given, backend="torch"))
    with pytest.raises(InputError, match=r"queries must be packed as keys are.* got torch.float32"):
        score_lightning(**unpacked, backend="triton")


def apart(scale: Tensor) -> Tensor:
    """Scales of other keys between them."""
    return scale.repeat_interleave(2, 2)[:, :, ::2]


def shifted(scale: Tensor) -> Tensor:
    """Scales that begin at a place where no word does."""
    room = torch.zeros(scale.numel() + 1, dtype=torch.uint8, device=scale.device)[1:]
    return room.view(scale.dtype).view(scale.shape).copy_(scale)


@pytest.mark.parametrize(
    ("change", "said"),
    [(apart, "scale must lie one behind the other; got stride 4, not 2"),
     (shifted, "scales of codes's blocks must stand together")],
    ids=["apart", "shifted"],
)  # fmt: skip
def test_scales_that_are_no_words_are_read_by_torch(change, said):
    given = case("mxfp4")
    given["scale"] = given["scale"].contiguous()
    want, given["scale"] = slow(**given), change(given["scale"])
    assert error(score_codes(**given), want) <= PLAIN
    with pytest.raises(InputError, match=said):
        score_codes(**given, backend="triton")


def odd(x: Tensor) -> Tensor:
    """The same vectors, a few bytes between them."""
    return torch.nn.functional.pad(x, (0, 3))[..., :-3]


def shifted_bytes(x: Tensor) -> Tensor:
    """The same bytes from a place on that is no multiple of 16."""
    room = torch.zeros(x.numel() + 8, dtype=torch.uint8, device=x.device)[8:]
    return room.view(x.shape).copy_(x)


def test_codes_of_which_a_thread_reads_no_neighbours_are_read_by_torch():
    given = case("mxfp4")
    given["codes"], given["scale"] = given["codes"].contiguous(), given["scale"].contiguous()
    want, given["codes"] = slow(**given), shifted_bytes(given["codes"])
    assert error(score_codes(**given), want) <= PLAIN
    with pytest.raises(InputError, match=r"codes of mxfp4 must stand at multiples of 16 bytes"):
        score_codes(**given, backend="triton")


@pytest.mark.parametrize("dtype", fp4.BLOCK)
def test_queries_may_lie_at_odd_places(dtype):
    given = lightning(dtype)
    want = score_lightning(**given, backend="triton")
    for moved in (odd, shifted_bytes):
        queries = moved(given["queries"])
        assert torch.equal(score_lightning(**given | {"queries": queries}, backend="triton"), want)


def far(x: Tensor) -> Tensor:
    """The same heads [1, H, 1, D], the last beyond 2**31 elements, of which no others are touched."""
    by = 2**31 // (x.shape[1] - 1) // 16 * 16 + 16
    room = torch.empty((x.shape[1] - 1) * by + x.shape[3], dtype=x.dtype, device=x.device)
    return room.as_strided(x.shape, (0, by, x.shape[3], 1)).copy_(x)


def test_heads_of_a_long_prompt_lie_far_apart():
    given = lightning("mxfp4", batch=1, count=1)
    want = score_lightning(**given, backend="triton")
    moved = given | {"queries": far(given["queries"])}
    assert torch.equal(score_lightning(**moved, backend="triton"), want)
    for pool in ("mean", "max"):
        plain = case("mxfp4", pool, batch=1, groups=1)
        want = score_codes(**plain, backend="triton")
        plain["queries"] = far(plain["queries"])
        assert torch.equal(score_codes(**plain, backend="triton"), want)


REFUSED = {
    "queries of nvfp4 need keys of nvfp4; got mxfp4": lambda a: {"query_scale": a["query_scale"].view(torch.float8_e4m3fn)},
    "packed keys must have scales of blocks": lambda a: {"query_scale": None},
    r"query_scale must be \(2, 8, 2, 2\)": lambda a: {"query_scale": a["query_scale"][..., :1]},
    r"keys must be \(2, 1, 77, 32\)": lambda a: {"keys": a["keys"][..., :16]},
    "gates must be float32": lambda a: {"gates": a["gates"].half()},
    "queries must have at most 64 heads": lambda a: {n: a[n].repeat(1, 9, 1, 1) for n in ("queries", "query_scale")} | {"gates": a["gates"].repeat(1, 1, 9)},
    "queries must have 64 or 128 dimensions; got 32": lambda a: {n: a[n][..., :16] for n in ("queries", "keys")} | {n: a[n][..., :1] for n in ("query_scale", "key_scale")},
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_bad_input_to_lightning_is_refused_by_name(message):
    given = lightning("mxfp4") | {"backend": "triton"}
    with pytest.raises(InputError, match=message):
        score_lightning(**given | REFUSED[message](given))


def run_ptx(text: str, named: dict[str, int]) -> dict[str, int]:
    """What a block of PTX leaves in its registers: of the few operations that such blocks have."""
    held = dict(named)

    def read(name: str) -> int:
        return held[name] if name in held else int(name, 0)

    for line in re.sub(r"[{}]", "", text).split(";"):
        name, _, rest = line.strip().partition(" ")
        if not name or name == ".reg":
            continue
        to, *args = [part.strip() for part in rest.split(",")]
        a = [read(part) for part in args]
        if name == "and.b32":
            got = a[0] & a[1]
        elif name == "shr.u32":
            got = a[0] >> a[1]
        elif name == "shl.b32":
            got = (a[0] << a[1]) & 0xFFFFFFFF
        elif name == "prmt.b32":
            both, got = a[0] | a[1] << 32, 0
            for n in range(4):
                pick = a[2] >> (4 * n) & 15
                byte = both >> (8 * (pick & 7)) & 255
                got |= (byte if pick < 8 else 255 * (byte >> 7)) << (8 * n)
        else:
            assert name == "lop3.b32", name
            got = 0
            for bit in range(32):
                row = sum((a[n] >> bit & 1) << (2 - n) for n in range(3))
                got |= (a[3] >> row & 1) << bit
        held[to] = got
    return held


def test_the_ptx_looks_up_what_the_plain_form_does():
    """Every byte, in every place of its word, at powers of two from the least to the largest that there is room for."""
    room = fields.MOST.value
    for doublings in (-room, -2, 0, 1, room):
        lower, upper = (
            table.value + doublings * twice.value
            for table, twice in (
                (fields.LOWER, fields.TWICE_LOWER),
                (fields.UPPER, fields.TWICE_UPPER),
            )
        )
        for first in range(0, 256, 4):
            word = int.from_bytes(bytes((first + n * 37) % 256 for n in range(4)), "little")
            held = run_ptx(fields.LOOKED_UP.value, {"$2": word, "$3": lower, "$7": upper})
            bytes_ = torch.tensor(list(word.to_bytes(4, "little")))
            for out, nibbles in (("$0", bytes_ & 15), ("$1", bytes_ >> 4)):
                got = torch.tensor(list(held[out].to_bytes(4, "little"))).byte()
                want = torch.where(nibbles > 7, -E2M1[nibbles & 7], E2M1[nibbles & 7])
                assert torch.equal(got.view(torch.float8_e5m2).double(), want * 2.0**doublings)


def room_of(dtype: str, dim: int, batch=2, heads=3, capacity=40) -> tuple[Tensor, Tensor]:
    """An index that holds 85 everywhere, in a longer buffer."""
    (kind, *_), count = scales_stored(dtype, dim)
    shape = (batch, heads, capacity + 5)
    codes, scale = (
        torch.full((*shape, width), 85, dtype=torch.uint8, device=DEVICE)
        for width in (dim // 2, count)
    )
    return codes[:, :, :capacity], scale.view(kind)[:, :, :capacity]


def same(found: Any, want: Any) -> bool:
    pairs = [(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8)) for a, b in zip(found, want, strict=True)]  # fmt: skip
    return all(torch.equal(a, b) for a, b in pairs)


def awkward(dim: int, new: int, kind: torch.dtype, seed=0) -> Tensor:
    """Keys of many sizes, zeros, least floats and middles of codes among them; strided."""
    keys = drawn(2, new, 3, dim, seed=seed, spread=5.0)
    keys[0, 0, 0], keys[1, 0, 0, :16], keys[1, 0, 1] = 0.0, -0.0, 1e-43
    keys[0, -1, 2] = torch.arange(dim) % 25 / 4.0 - 3.0
    keys[1, -1, 2] = (torch.arange(dim) % 25 / 4.0) * 1e30
    return keys.clamp(-6e4, 6e4).to(kind).transpose(1, 2)


@pytest.mark.parametrize("hadamard", [False, True])
@pytest.mark.parametrize(
    ("dim", "new", "kind"), [(64, 19, torch.bfloat16), (128, 1, torch.float32)], ids=str
)
@pytest.mark.parametrize("dtype", fp4.BLOCK)
def test_appended_bits_are_those_of_the_definition(dtype, dim, new, kind, hadamard):
    appended(dtype, awkward(dim, new, kind), hadamard)


def appended(dtype: str, keys: Tensor, hadamard: bool) -> None:
    want = room_of(dtype, keys.shape[3])
    vectors = hadamard_rotate(keys) if hadamard else keys
    for held, new in zip(want, fp4.quantize(vectors, dtype), strict=True):
        for row, at in enumerate((3, 21)):
            last = min(at + new.shape[2], 40)
            held.view(torch.uint8)[row, :, at:last] = new.view(torch.uint8)[row, :, : last - at]
    for backend in ("triton", "torch"):
        index = room_of(dtype, keys.shape[3])
        at = torch.tensor([3, 21], device=DEVICE)
        quantize_append(keys, *index, at, dtype=dtype, hadamard=hadamard, backend=backend)
        assert same(index, want)


@pytest.mark.parametrize("dtype", fp4.BLOCK)
def test_what_is_not_finite_shows_in_the_scale(dtype):
    keys = drawn(2, 3, 3, 64, seed=0, spread=1.0)
    keys[1, 2, 1, 40], keys[0, 1, 2, 3] = math.nan, -math.inf
    held = []
    for backend in ("triton", "torch"):
        codes, scale = room_of(dtype, 64)
        quantize_append(keys, codes, scale, 0, dtype=dtype, backend=backend)
        held.append(fp4.factors(scale[:, :, :3].contiguous()))
    broken = held[0].isnan().nonzero().tolist()
    block = 40 // fp4.BLOCK[dtype]
    # An infinity is cut to the largest that nvfp4 holds.
    infinite = [[0, 1, 2, 0]] if dtype == "mxfp4" else []
    assert broken == [*infinite, [1, 2, 1, block]] == held[1].isnan().nonzero().tolist()
    assert torch.equal(held[0].nan_to_num(), held[1].nan_to_num())


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("group", [1, 3, 8, 32])
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("pool", [None, "mean", "sum", "max"])
@pytest.mark.parametrize("dtype", fp4.BLOCK)
def test_every_form(dtype, pool, dim, group):
    given = case(
        dtype, pool, group, dim, count=3, length={1: 5003, 3: 127, 8: 4096, 32: 1001}[group]
    )
    assert error(score_codes(**given, backend="triton"), slow(**given)) <= PLAIN


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("heads", [1, 3, 4, 8, 32, 64])
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("dtype", fp4.BLOCK)
def test_every_form_of_lightning(dtype, dim, heads):
    for length in (47, 5003):
        given = lightning(dtype, heads, dim, length=length)
        want = slow_lightning(**given, dtype=dtype)
        assert error(score_lightning(**given, backend="triton"), want) <= GATED[dtype]


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("one_row", [False, True])
@pytest.mark.parametrize("window", [False, True])
@pytest.mark.parametrize("length", [128, 129, 1000, 5003, 500_001])
def test_hopper_scores_as_other_gpus_do(monkeypatch, length, window, one_row):
    """Bit for bit, with scales of all sizes, the largest codes, and NaN."""
    device = torch.device(DEVICE)
    if not has_gluon(device):
        pytest.skip("has no kernels in Gluon")
    given = lightning("mxfp4", 64, 128, length=length, one_row=one_row)
    scale = given["key_scale"]
    scale[:, :, 3::7, 1] -= 9
    scale[:, :, 5::11] //= 2
    scale[:, :, 17::100, 2] = 255
    scale[:, :, 18::100] = 0
    given["keys"][:, :, 20::50] = 0x77
    given["gates"][1, 1, 5] = math.nan
    if not window:
        given |= {"start": None, "stop": None}
    found = score_lightning(**given, backend="triton")
    monkeypatch.setattr("topkit.kernels.score.has_gluon", lambda device: False)
    want = score_lightning(**given, backend="triton")
    assert torch.equal(found.isnan(), want.isnan())
    assert torch.equal(found[~want.isnan()], want[~want.isnan()])
    assert want.isnan().any() and not want.isnan().all()


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", fp4.BLOCK)
def test_addresses_beyond_32_bits(dtype):
    rows, length = 5, 2**23 + 3
    g = torch.Generator(DEVICE).manual_seed(0)
    codes = torch.randint(
        0, 256, (rows, 1, length, 64), generator=g, device=DEVICE, dtype=torch.uint8
    )
    scale = torch.randint(
        110, 120, (rows, 1, length, 128 // fp4.BLOCK[dtype]), generator=g, device=DEVICE
    )
    scale = scale.byte() if dtype == "mxfp4" else (scale - 60).byte().view(torch.float8_e4m3fn)
    assert codes.numel() > 2**31
    queries = torch.randn(rows, 4, 1, 128, generator=g, device=DEVICE).bfloat16()
    found = score_codes(queries, codes, dtype=dtype, scale=scale, pool="mean", backend="triton")
    last = {"queries": queries[-1:], "codes": codes[-1:, :, -999:], "scale": scale[-1:, :, -999:]}
    assert error(found[-1:, :, :, -999:], slow(**last, dtype=dtype, pool="mean")) <= PLAIN


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("hadamard", [False, True])
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("dtype", fp4.BLOCK)
def test_every_form_appended(dtype, dim, kind, hadamard):
    for new in (1, 16, 37):
        appended(dtype, awkward(dim, new, kind, seed=new), hadamard)


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", fp4.BLOCK)
def test_a_captured_graph_replays_on_new_keys(dtype):
    """Appended, scored as codes and as lightning's, in one graph."""
    codes, scale = room_of(dtype, 128, 1, 1)
    keys, at = (
        torch.zeros(1, 1, 1, 128, device=DEVICE),
        torch.zeros(1, dtype=torch.long, device=DEVICE),
    )
    queries = drawn(1, 4, 1, 128, seed=3, spread=1.0)
    asked, asked_scale = fp4.quantize(queries, dtype)
    gates = torch.randn(1, 1, 4, device=DEVICE)

    def step() -> tuple[Tensor, Tensor]:
        quantize_append(keys, codes, scale, at, dtype=dtype, backend="triton")
        one = score_codes(queries, codes, dtype=dtype, scale=scale, backend="triton")
        told = {"query_scale": asked_scale, "key_scale": scale, "backend": "triton"}
        return one, score_lightning(asked, codes, gates, **told)

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        plain, gated = step()
        at += 1
    at.zero_()
    for slot in range(5):
        keys.copy_(drawn(1, 1, 1, 128, seed=slot, spread=2.0))
        graph.replay()
        new, held = fp4.quantize(keys, dtype)
        assert same((codes[:, :, slot : slot + 1], scale[:, :, slot : slot + 1]), (new, held))
        assert error(plain, slow(queries, codes, dtype, scale, None)) <= PLAIN
        want = slow_lightning(asked, codes, gates, asked_scale, scale, dtype=dtype)
        assert error(gated, want) <= GATED[dtype]

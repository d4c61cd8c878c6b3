"""What topkit costs beside plain torch: ratios taken within one run, with their spread."""

from __future__ import annotations

import csv
import gc
import io
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import topkit
from topkit.errors import InputError
from topkit.experiments.capture.capture import Capture
from topkit.experiments.capture.tensors import LayerTensors
from topkit.experiments.measure.replay import Replay, require_inputs
from topkit.experiments.model.load import load
from topkit.experiments.runs.parts import write_whole
from topkit.fidelity import truth
from topkit.grammar import nearest
from topkit.indexers.base import Index, Step
from topkit.indexers.quantized import quantized

COLUMNS: tuple[str, ...] = (
    "bench", "what", "unit", "median", "low", "high", "repeats", "against", "ratio", "ratio_low",
    "ratio_high", "limit", "within", "device", "cores", "torch", "topkit", "python", "date",
)  # fmt: skip
Row = dict[str, Any]


@dataclass(frozen=True)
class Scale:
    """How large the tensors are, and how often everything is repeated."""

    truth_keys: int = 1 << 20
    measure_keys: int = 1 << 15
    context: int = 4096
    steps: int = 16
    repeats: int = 7

    @classmethod
    def tiny(cls) -> Scale:
        """Seconds: shows that the benchmarks run, and nothing else."""
        return cls(truth_keys=1 << 12, measure_keys=1 << 10, context=128, steps=2, repeats=2)


def bench_truth(scale: Scale) -> Iterator[Row]:
    """Exact rows of 32 query heads x 16 positions over 8 KV heads of 128, float keys and values."""
    # A process of its own: the most memory that one ever held cannot be taken back.
    with get_context("spawn").Pool(1) as pool:
        ours, plain, memory = pool.apply(_truth, (scale,))
    what = f"exact rows of 32 heads x 16 queries over {scale.truth_keys:,} keys"
    yield _compared("truth", what, ours, "matmul + topk, by chunks", plain, None)
    yield {
        **_spread("truth", f"{what}: memory above the tensors", "GiB", [memory / 2**30]),
        "limit": 2.0,
        "within": memory <= 2 << 30,
    }


def _truth(scale: Scale) -> tuple[list[float], list[float], int]:
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.bfloat16)

    queries = drawn(1, 32, 16, 128)
    keys, values = (drawn(1, 8, scale.truth_keys, 128) for _ in range(2))

    def ours() -> object:
        return truth(queries, keys, values, 64, scaling=128**-0.5)

    def plain() -> object:
        return _chunked(queries, keys, 64)

    gc.collect()
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak until now
    ours()
    memory = _resident("VmHWM") - before
    times = _interleaved([ours, plain], min(scale.repeats, 3))
    return times[0], times[1], memory


def _chunked(queries: Tensor, keys: Tensor, k: int, width: int = 1 << 16) -> Tensor:
    """The best k scores of each query, the keys taken a piece at a time."""
    grouped = queries.float().unflatten(1, (keys.shape[1], -1)).flatten(2, 3)
    best = grouped.new_empty(*grouped.shape[:3], 0)
    for piece in keys.split(width, 2):
        scores = grouped @ piece.float().mT
        best = torch.cat([best, scores.topk(min(k, scores.shape[-1])).values], -1)
        best = best.topk(min(k, best.shape[-1])).values
    return best


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise InputError(f"/proc/self/status does not say {field}; this benchmark needs Linux")


@dataclass(frozen=True)
class _Built(quantized):
    """int8 codes that are there already: what is timed is the measuring, not the build."""

    index: Index | None = None

    def build(self, keys: Tensor, step: Step) -> Index:
        assert self.index is not None
        return self.index.fork()


def bench_measure(scale: Scale) -> Iterator[Row]:
    """All metrics of quantized(dtype="int8"), 32/8 heads of 128, 32 positions, the index built before."""
    generator = torch.Generator().manual_seed(0)
    length, k = scale.measure_keys, max(1, scale.measure_keys // 100)

    def drawn(heads: int, count: int) -> Tensor:
        return torch.randn(1, heads, count, 128, generator=generator)

    queries, keys, values = drawn(32, 32), drawn(8, length), drawn(8, length)
    tensors = Capture.from_tensors(queries, keys, values).load(0, 0)
    index = quantized().build(keys, Step(scaling=128**-0.5, kv_heads=8))
    recipe = _Built(index=index)
    require_inputs(recipe, tensors)

    def ours() -> object:
        driver = Replay(tensors, k, 0, torch.device("cpu"))
        found, _ = driver.select(recipe, [k])
        return driver.exact.judged(found[k], k)

    def plain() -> object:
        scores = queries.unflatten(1, (8, 4)).flatten(2, 3) @ keys.mT
        return scores.topk(k)

    times = _interleaved([ours, plain], scale.repeats)
    what = f"all metrics of int8 at {length:,} keys, k 1%"
    yield _compared("measure", what, times[0], "matmul + topk", times[1], 6.0)


def bench_attach(scale: Scale) -> Iterator[Row]:
    """One decoding step of `reference`, batch 1, not observed, against the model's own attention."""
    model, _ = load("reference")
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, 4000, (1, scale.context), generator=generator)
    for spec in ("quantized()", "sign()"):

        def steps(spec: str | None) -> list[float]:
            held = nullcontext() if spec is None else topkit.attach(model, spec, k=64)
            with torch.no_grad(), held:
                cache = model(ids, use_cache=True, logits_to_keep=1).past_key_values
                return [_timed(lambda: _step(model, ids, cache)) for _ in range(scale.steps + 2)][
                    2:
                ]

        ours, plain = [], []
        for _ in range(scale.repeats):
            ours.append(float(np.median(steps(spec))))
            plain.append(float(np.median(steps(None))))
        what = f"a decoding step at {scale.context:,} tokens, {spec}, k 64"
        yield _compared("attach", what, ours, "full attention (SDPA)", plain, 3.0)


def _step(model: Any, ids: Tensor, cache: Any) -> None:
    model(ids[:, :1], past_key_values=cache, use_cache=True)


def bench_capture(scale: Scale) -> Iterator[Row]:
    """Recording what attention saw in one pass of `reference`, against a plain pass."""
    from topkit.experiments.model.record import record

    model, _ = load("reference")
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, 4000, (1, scale.context), generator=generator)
    last = torch.arange(scale.context - 32, scale.context)

    def plain() -> None:
        with torch.no_grad():
            model.base_model(input_ids=ids, use_cache=False)

    def recorded() -> object:
        seen = record(model, ids, last)
        return [LayerTensors.of(one, 0, layer, last) for layer, one in seen.items()]

    times = _interleaved([recorded, plain], scale.repeats)
    what = f"recording a pass over {scale.context:,} tokens, 32 positions, all layers"
    yield _compared("capture", what, times[0], "a plain pass", times[1], 1.3)


BENCHES: dict[str, Callable[[Scale], Iterator[Row]]] = {
    "truth": bench_truth,
    "measure": bench_measure,
    "attach": bench_attach,
    "capture": bench_capture,
}


def run_benches(
    names: Sequence[str] = (),
    *,
    tiny: bool = False,
    repeats: int | None = None,
    report: Callable[[Row], object] = print,
) -> list[Row]:
    """Run some benchmarks, or all, on this machine's CPU; a row a ratio.

    Raises: InputError for an unknown name.
    """
    for name in names:
        if name not in BENCHES:
            raise InputError(f"unknown benchmark {name!r}; {nearest(name, BENCHES)}")
    scale = Scale.tiny() if tiny else Scale()
    scale = scale if repeats is None else replace(scale, repeats=repeats)
    machine = {
        "device": processor(),
        "cores": torch.get_num_threads(),
        "torch": torch.__version__,
        "topkit": topkit.__version__,
        "python": platform.python_version(),
        "date": datetime.now(UTC).date().isoformat(),
    }
    rows = []
    for name in dict.fromkeys(names) or BENCHES:
        for row in BENCHES[name](scale):
            rows.append(dict.fromkeys(COLUMNS, "") | row | machine)
            report(rows[-1])
    return rows


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write rows as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, lambda to: to.write_text(text.getvalue(), encoding="utf-8"))


def _interleaved(functions: Sequence[Callable[[], object]], repeats: int) -> list[list[float]]:
    """Seconds of each function, taken in turns after one turn that does not count."""
    for function in functions:
        function()
    turns = [[_timed(function) for function in functions] for _ in range(repeats)]
    return [list(times) for times in zip(*turns, strict=True)]


def _timed(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def _spread(bench: str, what: str, unit: str, values: Sequence[float]) -> Row:
    low, median, high = np.percentile(values, (25, 50, 75))
    return {
        "bench": bench,
        "what": what,
        "unit": unit,
        "median": f"{median:.4g}",
        "low": f"{low:.4g}",
        "high": f"{high:.4g}",
        "repeats": len(values),
    }


def _compared(
    bench: str,
    what: str,
    ours: Sequence[float],
    against: str,
    plain: Sequence[float],
    limit: float | None,
) -> Row:
    """Quartiles of the ratios of neighbours in time: the machine was as busy for both."""
    low, ratio, high = np.percentile(np.array(ours) / np.array(plain), (25, 50, 75))
    return {
        **_spread(bench, what, "s", ours),
        "against": against,
        "ratio": f"{ratio:.2f}",
        "ratio_low": f"{low:.2f}",
        "ratio_high": f"{high:.2f}",
        "limit": "" if limit is None else limit,
        "within": "" if limit is None else bool(ratio <= limit),
    }


def processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()

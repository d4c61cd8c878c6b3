"""The benchmarks by name, run one after the other; a failure becomes a row, and costs no other row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from topkit.errors import InputError
from topkit.experiments.bench.ann import ann_cases
from topkit.experiments.bench.append import append_cases
from topkit.experiments.bench.appends import append_key_cases
from topkit.experiments.bench.attach_speed import attach_cases
from topkit.experiments.bench.build import build_cases
from topkit.experiments.bench.capture_speed import capture_cases
from topkit.experiments.bench.captured import captured_cases
from topkit.experiments.bench.cpu_kernels import decode_cases, encode_cases, noise_cases
from topkit.experiments.bench.dense import dense_cases
from topkit.experiments.bench.gather import gather_cases
from topkit.experiments.bench.generate import generate_cases
from topkit.experiments.bench.kept import kept_cases
from topkit.experiments.bench.machine import machine
from topkit.experiments.bench.measure_speed import measure_cases
from topkit.experiments.bench.recipes import recipe_cases
from topkit.experiments.bench.report_speed import report_cases
from topkit.experiments.bench.rows import OURS, Row
from topkit.experiments.bench.scale import Scale
from topkit.experiments.bench.score import fused_cases, score_cases
from topkit.experiments.bench.select import select_cases
from topkit.experiments.bench.session import Case, Session
from topkit.experiments.bench.step import step_cases
from topkit.experiments.bench.summary_memory import summary_cases
from topkit.experiments.bench.topk_attention import topk_attention_cases
from topkit.experiments.bench.truth import truth_cases
from topkit.grammar import nearest

CPU, CUDA = "cpu", "cuda"


@dataclass(frozen=True)
class Bench:
    """A benchmark, and the devices that it is of. One of a GPU alone runs on a CPU if it is tiny."""

    cases: Callable[[Session], Iterator[Case]]
    devices: tuple[str, ...]

    @property
    def of_kernels(self) -> bool:
        return CPU not in self.devices


def _decode_cases(session: Session) -> Iterator[Case]:
    """A decoding step: of a layer on a CPU, of a small model as a CUDA graph."""
    return captured_cases(session) if session.cuda else decode_cases(session)


BENCHES: dict[str, Bench] = {
    "truth": Bench(truth_cases, (CPU, CUDA)),
    "measure": Bench(measure_cases, (CPU,)),
    "attach": Bench(attach_cases, (CPU,)),
    "capture": Bench(capture_cases, (CPU,)),
    "decode": Bench(_decode_cases, (CPU, CUDA)),
    "encode": Bench(encode_cases, (CPU,)),
    "noise": Bench(noise_cases, (CPU,)),
    "build": Bench(build_cases, (CPU,)),
    "recipes": Bench(recipe_cases, (CPU,)),
    "appends": Bench(append_key_cases, (CPU,)),
    "summary": Bench(summary_cases, (CPU,)),
    "report": Bench(report_cases, (CPU,)),
    "score": Bench(score_cases, (CUDA,)),
    "select": Bench(select_cases, (CUDA,)),
    "score-select": Bench(fused_cases, (CUDA,)),
    "gather": Bench(gather_cases, (CUDA,)),
    "append": Bench(append_cases, (CUDA,)),
    "dense": Bench(dense_cases, (CUDA,)),
    "ann": Bench(ann_cases, (CUDA,)),
    "topk-attention": Bench(topk_attention_cases, (CUDA,)),
    "kept": Bench(kept_cases, (CPU, CUDA)),
    "step": Bench(step_cases, (CUDA,)),
    "generate": Bench(generate_cases, (CUDA,)),
}


def run_benches(
    names: Sequence[str] = (),
    *,
    device: str = CPU,
    tiny: bool = False,
    repeats: int | None = None,
    layers: int | None = None,
    report: Callable[[Row], object] = print,
    save: Callable[[list[Row]], object] = lambda rows: None,
) -> list[Row]:
    """Run some benchmarks, or all that are of the device; `save` is called with all rows after each.

    `repeats`: turns of a CPU's benchmarks; `layers`: those of generate's deeper model beyond the first.
    Raises: InputError for an unknown name, a benchmark of the other device, an option of another's.
    """
    where = torch.device(device)
    chosen = _chosen(names, where.type, tiny)
    if repeats is not None and where.type == CUDA:
        raise InputError("--repeats is of the benchmarks of a CPU, those without --device cuda")
    if layers is not None and "generate" not in chosen:
        raise InputError("--layers is of generate, on a GPU; add --device cuda")
    scale = Scale.tiny() if tiny else Scale()
    options = {"repeats": repeats, "extra_layers": layers}
    scale = replace(scale, **{name: x for name, x in options.items() if x is not None})  # type: ignore[arg-type]
    session = Session(where, scale, machine(where))
    rows = []

    def note(row: Row) -> None:
        rows.append(row)
        report(row)

    if any(BENCHES[name].of_kernels for name in chosen):
        for row in _bandwidth(session):
            note(row)
    for name in chosen:
        for row in _rows(session, name):
            note(row)
        save(rows)
    return rows


def default_path(device: str) -> Path:
    """benchmarks/results/cpu.csv, or GPU-NAME.csv."""
    where = torch.device(device)
    name = torch.cuda.get_device_name(where) if where.type == CUDA else CPU
    return Path("benchmarks/results") / f"{'-'.join(name.lower().split())}.csv"


def errors(rows: Sequence[Row]) -> list[str]:
    """What failed, a line each."""
    named: Any = ("bench", "what", "implementation")
    return [f"{', '.join(row[n] for n in named)}: {row['error']}" for row in rows if row["error"]]


def _chosen(names: Sequence[str], device: str, tiny: bool) -> list[str]:
    for name in names:
        if name not in BENCHES:
            raise InputError(f"unknown benchmark {name!r}; {nearest(name, BENCHES)}")
        if device in BENCHES[name].devices or (tiny and device == CPU):
            continue
        if device == CPU:
            raise InputError(f"{name} is of a GPU: --device cuda, or --tiny to see it run")
        raise InputError(f"{name} is of a CPU: leave out --device")
    every = [name for name, bench in BENCHES.items() if device in bench.devices]
    return list(dict.fromkeys(names)) or every


def _bandwidth(session: Session) -> Iterator[Row]:
    copies, reads = session.bandwidths
    yield session.row("bandwidth", "copy, read and written", "torch", copies, unit="GB/s")
    yield session.row("bandwidth", "read", "torch", reads, unit="GB/s")


def _rows(session: Session, name: str) -> Iterator[Row]:
    for what, measure in BENCHES[name].cases(session):
        session.release()
        try:
            yield from measure()
        except Exception as error:
            yield session.failed(name, what, OURS, error)

"""This checkout against another one, in one run: how many times as long the same calls take here.

    python tools/against.py CHECKOUT [CASE]... [--turns N] [--out CSV] [--tiny] [--device cuda]

Each checkout works in a process of its own; the two take turns, so that the machine was as busy for both,
and a ratio is of neighbours in time. Cases are named by what they begin with: measure, encode, select,
decode, study, evaluate. Only names that both have are called; on a GPU, evaluate alone. The rows have the columns of `topkit bench`.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Steps of which a turn is the median, behind two that give the cache room.
STEPS, WARM = 5, 2


@dataclass(frozen=True)
class Scale:
    """Of one layer: 32 query and 8 KV heads of 128."""

    heads: int = 32
    groups: int = 8
    dim: int = 128
    keys: int = 1 << 15
    queries: int = 16
    budgets: tuple[str, ...] = ("16", "64", "256", "1%", "2048")
    context: int = 1 << 14
    kept: int = 256
    haystack: int = 4096
    # Of a whole model: layers, query and KV heads of 64, its width, and tokens of the haystack.
    layers: int = 30
    model: tuple[int, int, int] = (9, 3, 576)
    asked: int = 2048


TINY = Scale(4, 2, 64, 256, 3, ("4", "16", "1%"), 128, 16, 2048, 2, (2, 1, 128), 1280)
# Of a run on a GPU: what a run begins with is a third of a second and more.
HAYSTACKS = 2
# Of each kind that a study compares: oracles, codes, pages, graphs, a trained one, combinators, controls.
STUDIED = (
    "exact()", "degraded(0.8)", "degraded(0.6,fill='next')", "quantized(dtype='int4')",
    "quantized(dtype='fp8_e4m3')", "sign()", "refine(sign())", "shared(quantized())", "quest(page_size=4)",
    "faiss_hnsw()", "lightning(dtype='fp8')", "vattention(exact(),top=0.5)", "streaming_llm()", "random()",
)  # fmt: skip
# 26 cells with full attention, as the quick study has them, but for what was trained for one model.
ASKED = (
    *(f"degraded({p}{m})" for m in ("", ",fill='next'", ",miss='boundary',fill='next'") for p in (.6, .8, .95)),
    "exact()", *(f"quantized(dtype='{d}')" for d in ("fp8_e4m3", "int4", "int2")), "sign()",
    "refine(sign(),factor=4)", "keep(sign(),sink=2,window=4)", "shared(sign())",
    "shared(quantized(dtype='int8'))", "quest(page_size=4)", "streaming_llm(sink=4,window=64)",
    "top_p(quantized(dtype='int4'),mass=0.9)", "vattention(quantized(dtype='int4'),top=0.5)", "random()",
    "faiss_ivf(nlist=64)", "quantized()",
)  # fmt: skip


# --- what is timed; imports are of the checkout that a worker works for


def cases(scale: Scale, device: str) -> dict[str, Callable[[], Callable[[], float]]]:
    """By name, what prepares a case and gives a call of it, which returns its seconds."""
    what = (
        f"evaluate {scale.layers} layers, {len(ASKED) + 1} cells, {scale.asked} tokens, 1 question"
    )
    asking = {what: partial(evaluating, scale, device)}
    if device != "cpu":
        return asking
    where = f"{scale.keys // 1024}K keys" if scale.keys >= 1024 else f"{scale.keys} keys"
    found: dict[str, Callable[[], Callable[[], float]]] = asking
    for recipe in ("quantized()", "sign()", "exact()", "random()"):
        name = f"measure {recipe}, {len(scale.budgets)} budgets, {where}"
        found[name] = partial(measuring, scale, recipe)
    for dtype in ("int8", "int4", "fp8_e4m3", "int2"):
        found[f"encode {dtype}, {where}"] = partial(encoding, scale, dtype)
    for recipe in ("random()", "degraded(0.8)"):
        found[f"select {recipe}, {where}"] = partial(selecting, scale, recipe)
    for recipe in (None, "sign()", "quantized()", "quantized(dtype='int4')"):
        name = f"decode {recipe or 'dense'}, bf16, {scale.context} tokens"
        found[name] = partial(decoding, scale, recipe)
    found[f"study {len(STUDIED)} cells, a haystack of {scale.haystack}"] = partial(studying, scale)
    return found


def drawn(scale: Scale) -> tuple[Any, Any, Any]:
    """Queries, heavy-tailed keys (Student's t of 4 degrees), values."""
    import torch

    generator = torch.Generator().manual_seed(0)

    def normal(heads: int, count: int) -> Any:
        return torch.randn(1, heads, count, scale.dim, generator=generator)

    spread = torch.stack([normal(scale.groups, scale.keys).square() for _ in range(4)]).mean(0)
    keys = normal(scale.groups, scale.keys) / spread.sqrt()
    return normal(scale.heads, scale.queries), keys, normal(scale.groups, scale.keys)


def measuring(scale: Scale, recipe: str) -> Callable[[], float]:
    import topkit

    capture = topkit.Capture.from_tensors(*drawn(scale))
    silent: dict[str, Any] = (
        {"quiet": True} if "quiet" in inspect.signature(topkit.measure).parameters else {}
    )
    return partial(seconds, lambda: topkit.measure(capture, recipe, list(scale.budgets), **silent))


def encoding(scale: Scale, dtype: str) -> Callable[[], float]:
    import topkit
    from topkit.indexers.base import Step

    _, keys, _ = drawn(scale)
    recipe, step = topkit.indexer(f"quantized(dtype='{dtype}')"), Step(kv_heads=scale.groups)
    return partial(seconds, lambda: recipe.build(keys, step.given_to(recipe)))


def selecting(scale: Scale, recipe: str) -> Callable[[], float]:
    import topkit
    from topkit.indexers.base import Cache, Step

    queries, keys, values = drawn(scale)
    indexer = topkit.indexer(recipe)
    inputs = {"cache": Cache(keys, values)}
    step = Step(0, scale.dim**-0.5, kv_heads=scale.groups, inputs=inputs).given_to(indexer)
    index = indexer.build(keys, step)
    return partial(seconds, lambda: index.select(queries, scale.kept, step))


def decoding(scale: Scale, recipe: str | None) -> Callable[[], float]:
    """Steps of a model of one narrow layer over a cache of random keys: attention is nearly all."""
    import torch
    from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

    import topkit

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=1, vocab_size=64,
        num_attention_heads=scale.heads, num_key_value_heads=scale.groups, head_dim=scale.dim,
        max_position_embeddings=2 * scale.context,
    )  # fmt: skip
    model: Any = LlamaForCausalLM(config)
    model.to(torch.bfloat16).eval()
    shape = (1, scale.groups, scale.context, scale.dim)
    keys, values = (torch.randn(shape).to(torch.bfloat16) for _ in range(2))
    token = torch.ones(1, 1, dtype=torch.long)

    def steps() -> float:
        cache = DynamicCache(config=config)
        cache.update(keys.clone(), values.clone(), 0)

        def step() -> None:
            model(token, past_key_values=cache, use_cache=True)

        attached = nullcontext() if recipe is None else topkit.attach(model, recipe, k=scale.kept)
        with torch.no_grad(), attached:
            spans = sorted([seconds(step) for _ in range(WARM + STEPS)][WARM:])
        return spans[STEPS // 2]

    return steps


def studying(scale: Scale) -> Callable[[], float]:
    """What a study does all the time: one haystack's questions, asked of all cells, and judged."""
    import topkit

    silent: dict[str, Any] = (
        {"quiet": True} if "quiet" in inspect.signature(topkit.evaluate).parameters else {}
    )

    def run() -> float:
        with tempfile.TemporaryDirectory() as folder:
            place: Any = {"out": Path(folder) / "run", **silent}
            asked = ("reference", "niah-multikey", scale.haystack, 1, list(STUDIED), 16)
            return seconds(lambda: topkit.evaluate(*asked, **place))

    return run


def evaluating(scale: Scale, device: str) -> Callable[[], float]:
    """A haystack of a random model of SmolLM2-135M's shape: seconds of a GPU, of a few each, CPU time elsewhere."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    import topkit
    from topkit.experiments.tasks import make_task

    folder = next(Path(topkit.__file__).parent.rglob("tokenizer.json")).parent
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    heads, groups, width = scale.model
    config = LlamaConfig(
        hidden_size=width, intermediate_size=width * 8 // 3, num_hidden_layers=scale.layers,
        num_attention_heads=heads, num_key_value_heads=groups, head_dim=64, vocab_size=49152,
        max_position_embeddings=8192, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model: Any = LlamaForCausalLM(config)
    model.to(device).eval()
    task = make_task("niah-multikey", questions=1, distractors=20)
    silent: dict[str, Any] = (
        {"quiet": True} if "quiet" in inspect.signature(topkit.evaluate).parameters else {}
    )
    clock = time.process_time if device == "cpu" else time.perf_counter
    haystacks = 1 if device == "cpu" else HAYSTACKS

    def run() -> float:
        with tempfile.TemporaryDirectory() as place:
            began = clock()
            topkit.evaluate(
                model, task, scale.asked, haystacks, list(ASKED), 16,
                out=Path(place) / "run", tokenizer=tokenizer, **silent,
            )  # fmt: skip
            return (clock() - began) / haystacks

    return run


def seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


# --- a worker: names come in, seconds go out, a line each


def work(checkout: Path, tiny: bool, device: str) -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever is printed is no answer
    sys.path.insert(0, str(checkout))
    import topkit

    if checkout not in Path(topkit.__file__).resolve().parents:
        raise SystemExit(f"{topkit.__file__} is not of {checkout}")
    warnings.simplefilter("ignore")
    known = cases(TINY if tiny else Scale(), device)
    ready: tuple[str, Callable[[], float]] | None = None
    for line in sys.stdin:
        name = line.strip()
        try:
            if ready is None or ready[0] != name:
                ready = name, known[name]()
                ready[1]()  # once, uncounted
            answer: dict[str, Any] = {"seconds": ready[1]()}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}".partition("\n")[0]}
        print(json.dumps(answer), file=answers, flush=True)


class Worker:
    """A process that calls topkit as one checkout has it."""

    def __init__(self, checkout: Path, tiny: bool, device: str) -> None:
        # Threads that wait do not take the other worker's cores.
        paths = [str(checkout), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(paths),
            "OMP_WAIT_POLICY": "passive",
        }
        if device == "cpu":  # also where there is a GPU
            environment["CUDA_VISIBLE_DEVICES"] = ""
        words = [sys.executable, __file__, str(checkout), "--worker", "--device", device]
        words += ["--tiny"] if tiny else []
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
            cwd=checkout,
        )  # fmt: skip

    def time(self, name: str) -> float:
        """Raises: RuntimeError with what went wrong there."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            print(name, file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise SystemExit("a worker ended; what it said stands above")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["seconds"]

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


# --- both


def compared(
    names: list[str], here: Worker, there: Worker, turns: int, facts: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """A row of `topkit bench` a case: seconds here, and the ratio to those of the other checkout."""
    from topkit.experiments.bench import rows

    for name in names:
        bench, _, what = name.partition(" ")
        row = dict.fromkeys(rows.COLUMNS) | facts | {"bench": bench, "what": what}
        row["implementation"] = rows.OURS
        spans: dict[Worker, list[float]] = {here: [], there: []}
        try:
            for turn in range(turns):
                for worker in (there, here) if turn % 2 else (here, there):
                    spans[worker].append(worker.time(name))
        except RuntimeError as error:
            yield row | {"error": str(error)}
            continue
        yield row | rows.spread(spans[here], "s") | rows.ratios(spans[here], spans[there])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", type=Path, help="the other checkout, as released")
    parser.add_argument("case", nargs="*", help="beginnings of names; all by default")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--out", type=Path, help="a CSV")
    parser.add_argument("--tiny", action="store_true", help="seconds, to show that it runs")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    checkout = given.checkout.resolve()
    if given.worker:
        work(checkout, given.tiny, given.device)
        return
    if not (checkout / "topkit" / "__init__.py").exists():
        parser.error(f"{given.checkout} is no checkout of topkit")
    if given.turns < 1:
        parser.error(f"--turns must be at least 1; got {given.turns}")
    every = cases(TINY if given.tiny else Scale(), given.device)
    names = [name for name in every if not given.case or name.startswith(tuple(given.case))]
    if not names:
        parser.error(
            f"no case begins with {' or '.join(given.case)}; there are: {'; '.join(every)}"
        )
    sys.path.insert(0, str(ROOT))
    import torch

    from topkit.cli.listing import markdown
    from topkit.experiments.bench import rows
    from topkit.experiments.bench.machine import machine
    from topkit.experiments.bench.table import table

    facts = machine(torch.device(given.device)) | {"against": _version(checkout)}
    here, there = (Worker(place, given.tiny, given.device) for place in (ROOT, checkout))
    found = []
    try:
        for row in compared(names, here, there, given.turns, facts):
            found.append(row)
            print(f"{row['bench']} {row['what']}: {row['error'] or row['ratio']}", file=sys.stderr)
    finally:
        here.close()
        there.close()
    print(markdown(table(found)))
    if given.out is not None:
        rows.write_rows(given.out, found)


def _version(checkout: Path) -> str:
    words = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "the other checkout"


if __name__ == "__main__":
    main()

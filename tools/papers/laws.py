"""Laws that papers prove, on Gaussian data."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from papers.data import Data
from papers.ours import Ours, mean_of
from topkit.experiments.decode.driver import Driver
from topkit.indexers.base import Cache, Step
from topkit.indexers.faiss_base import import_faiss
from topkit.indexers.faiss_rabitq import faiss_rabitq
from topkit.indexers.magicpig import magicpig
from topkit.indexers.quantized import quantized
from topkit.indexers.rabitq import rabitq


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def units(*shape: int, seed: int = 0) -> Tensor:
    return torch.nn.functional.normalize(gaussian(*shape, seed=seed), dim=-1)


def step_of(keys: Tensor) -> Step:
    return Driver(rabitq(), 0, 1.0, keys.shape[1]).step({"cache": Cache(keys, keys)})


def rabitq_alignment(data: Data) -> Ours:
    keys = units(1, 1, 20_000, 128)
    factor = rabitq().encode(keys, step_of(keys))["factor"]
    return mean_of((1 / (math.sqrt(128) * factor)).flatten().double().numpy())


def rabitq_unbiased(data: Data) -> Ours:
    keys, queries = units(1, 1, 20_000, 960), units(1, 1, 10, 960, seed=1)
    recipe, step = rabitq(), step_of(keys)
    estimate = recipe.score(queries, recipe.encode(keys, step), step).flatten().double()
    true = (queries @ keys.mT).flatten().double()
    apart = true - true.mean()
    slope = float((apart * estimate).sum() / apart.square().sum())
    left = estimate - estimate.mean() - slope * apart
    half = 1.96 * float((left.square().mean() / apart.square().sum()).sqrt())
    return Ours(slope, slope - half, slope + half)


def faiss_rabitq_quantile(data: Data) -> Ours:
    bits, width = 4, 1000
    keys, queries = units(2_000, width), units(200, width, seed=1)
    recipe = faiss_rabitq(bits=bits, query_bits=0)
    turned, asked = recipe.turned(keys), recipe.turned(queries)
    graph = recipe.make(import_faiss("cpu"), turned)
    scores, places = graph.search(asked.numpy(), len(keys))
    true = (queries @ keys.mT).gather(1, torch.from_numpy(places))
    errors = (torch.from_numpy(scores) - true).abs()
    limit = 5.75 / (2**bits * math.sqrt(width))
    # By query, for the interval; a tenth of them at a time, so that a quantile has something above it.
    parts = [float(part.quantile(0.999)) / limit for part in errors.split(20)]
    own = mean_of(parts)
    # torch's quantile has a limit on its input.
    value = float(errors.flatten().sort().values[math.ceil(0.999 * errors.numel()) - 1]) / limit
    return Ours(value, value - (own.value - own.low), value + (own.high - own.value))


def magicpig_chance(data: Data) -> Ours:
    bits, tables, rows, count, width = 10, 150, 16, 2_000, 64
    queries = units(rows, 1, 1, width)
    other = gaussian(rows, 1, count, width, seed=1)
    other = other - (other @ queries.mT) * queries
    other = torch.nn.functional.normalize(other, dim=-1)
    cosine = torch.linspace(0, 0.8, count)[:, None]
    keys = cosine * queries + (1 - cosine.square()).sqrt() * other
    recipe = magicpig(bits=bits, tables=tables, sink=0, window=0, center=False)
    driver, cache = Driver(recipe, 0, 1.0, 1), Cache(keys, keys)
    index = driver.build(cache, {})
    chosen = index.select(queries, count, driver.step({"cache": cache})).indices
    same = (1 - cosine.double().acos() / math.pi) ** bits
    other_chance = (1 - same) ** tables + tables * same * (1 - same) ** (tables - 1)
    wanted = float((1 - other_chance).sum())
    return mean_of([int((row >= 0).sum()) / wanted for row in chosen])


def quantized_mxfp4(data: Data) -> Ours:
    keys = gaussian(1, 1, 1024, 64)
    driver, cache = Driver(quantized(dtype="mxfp4"), 0, 1.0, 1), Cache(keys, keys)
    # Scored by the axes, keys are read as they were rounded.
    axes = torch.eye(64)[None, None]
    read = driver.build(cache, {}).score(axes, driver.step({"cache": cache})).mT
    squares = (read - keys).square().mean(-1) / keys.square().mean()
    return mean_of(squares.flatten().double().numpy())


CLAIMS = {
    "rabitq-alignment": rabitq_alignment,
    "rabitq-unbiased": rabitq_unbiased,
    "faiss_rabitq-quantile": faiss_rabitq_quantile,
    "magicpig-chance": magicpig_chance,
    "quantized-mxfp4": quantized_mxfp4,
}

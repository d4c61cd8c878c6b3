# pyright: strict, reportUnknownMemberType=false
"""faiss-gpu on torch's own memory and stream: nothing is copied through the host to be searched."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from threading import RLock
from typing import Any, TypeVar

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.grammar import short
from topkit.indexers.base import Indexer
from topkit.indexers.checks import choice

# What faiss-gpu chooses at most, of keys and of lists.
LARGEST = 2048
# Bytes that FAISS keeps on a GPU to work in.
WORKING = 1 << 28
# FAISS's resources of a GPU serve one thread at a time.
ALONE = RLock()

Job = TypeVar("Job")
Done = TypeVar("Done")


def require_device(recipe: Indexer) -> None:
    """Require "cpu" or "cuda", and there no more lists than faiss-gpu probes."""
    choice(recipe, "device", ("cpu", "cuda"))
    nprobe: int = getattr(recipe, "nprobe", 0)
    if getattr(recipe, "device", "cpu") == "cuda" and nprobe > LARGEST:
        raise InputError(
            f"{type(recipe).__name__}: faiss-gpu probes at most {LARGEST:,} lists; got nprobe={nprobe}"
        )


def require_few(recipe: Indexer, k: int, most: int = LARGEST) -> None:
    """Require no more keys than faiss-gpu chooses; where it chooses more, it ends the process."""
    if k > most:
        raise InputError(
            f"{short(recipe)}: faiss-gpu chooses at most {most:,} keys; got k={k}; "
            f"use device='cpu', or exact() for every key"
        )


def on_this_stream(do: Callable[[Job], Done], device: torch.device) -> Callable[[Job], Done]:
    """`do`, in whatever thread it runs, on the stream that is the caller's now."""
    stream = torch.cuda.current_stream(device)

    def run(job: Job) -> Done:
        with torch.cuda.stream(stream):
            return do(job)

    return run


def placed(x: Tensor, on_gpu: bool) -> Tensor:
    """Float32 where FAISS works: in the host's memory, or on a GPU, the one that the tensor is on."""
    here = x.device if on_gpu and x.is_cuda else torch.device("cuda" if on_gpu else "cpu")
    return x.detach().to(here, torch.float32)


def floats(x: Tensor) -> Any:
    """Where FAISS finds the float32 numbers of a contiguous tensor."""
    assert x.is_contiguous() and x.dtype == torch.float32
    return _faiss().cast_integer_to_float_ptr(x.data_ptr())


def longs(x: Tensor) -> Any:
    """Where FAISS finds the int64 numbers of a contiguous tensor."""
    assert x.is_contiguous() and x.dtype == torch.int64
    return _faiss().cast_integer_to_idx_t_ptr(x.data_ptr())


def best_on_gpu(recipe: Indexer, faiss: Any, queries: Tensor, keys: Tensor, k: int) -> Tensor:
    """The best k of keys [n, D] for queries [q, D] by inner product, both where torch has them [q, k]."""
    require_few(recipe, k)
    keys = keys.contiguous()
    scores = queries.new_empty(len(queries), k)
    ids = torch.empty_like(scores, dtype=torch.int64)
    options: dict[str, Any] = {
        "metric": faiss.METRIC_INNER_PRODUCT, "k": k, "dims": keys.shape[1], "device": keys.device.index,
        "vectors": floats(keys), "vectorsRowMajor": True, "numVectors": len(keys),
        "vectorType": faiss.DistanceDataType_F32,
        "queries": floats(queries), "queriesRowMajor": True, "numQueries": len(queries),
        "queryType": faiss.DistanceDataType_F32,
        "outDistances": floats(scores), "outIndices": longs(ids),
        "outIndicesType": faiss.IndicesDataType_I64,
    }  # fmt: skip
    parameters = faiss.GpuDistanceParams()
    for name, value in options.items():
        setattr(parameters, name, value)
    with ALONE:
        faiss.bfKnn(resources(keys.device), parameters)
    return ids


def resources(device: torch.device) -> Any:
    """FAISS's resources of a GPU, on torch's current stream."""
    ours = _resources(device.index)
    stream = _faiss().cast_integer_to_cudastream_t(torch.cuda.current_stream(device).cuda_stream)
    ours.setDefaultStream(device.index, stream)
    return ours


@cache
def _resources(device: int) -> Any:
    ours = _faiss().StandardGpuResources()
    ours.setTempMemory(WORKING)
    return ours


def _faiss() -> Any:
    # An index has asked for it by `import_faiss`, which looks for a GPU: too slow for every pointer.
    import faiss

    return faiss

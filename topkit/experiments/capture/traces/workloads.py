"""flashinfer-bench's workload traces: a JSON line a workload, its inputs in safetensors files beside it.

Each sequence of each workload is a sample. Source: flashinfer-bench 0.1.2, its docs flashinfer-trace/workload and
op_type_schema (dsa_paged, gqa_paged, mla_paged, gqa_ragged).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from topkit.documents import parse_json, quote, read_bytes
from topkit.documents.digest import State, state_of
from topkit.errors import InputError
from topkit.experiments.capture.files import read_tensors
from topkit.experiments.capture.traces.kv_pages import keys_and_values

REMEDY = "give a file of workloads that flashinfer-bench wrote"
_SCHEMA = {
    "definition": str,
    "workload": {"inputs": {str: {str: object}}, str: object},
    str: object,
}
# What an indexer's definition is told by, and those of attention.
_INDEX = frozenset({"k_index_cache_fp8", "block_table", "seq_lens", "weights"})
_PAGED = frozenset({"kv_indptr", "kv_indices"})
_RAGGED = frozenset({"q", "k", "v", "qo_indptr", "kv_indptr"})


def workloads(path: Path) -> Iterator[dict[str, Any]]:
    """The inputs of each workload as named tensors; `layout` beside them says theirs.

    Raises: InputError for a line that is no workload, definitions of several kinds, inputs that were not kept.
    """
    kinds = set[str]()
    for line in _lines(path):
        inputs = {
            name: _input(path, name, said) for name, said in line["workload"]["inputs"].items()
        }
        kinds.add(line["definition"])
        if len(kinds) > 1:
            raise InputError(
                f"it holds workloads of {' and '.join(sorted(kinds))}; give a file of one"
            )
        yield _named(line["definition"], inputs)


def blobs(path: Path) -> list[Path]:
    """The files that the workloads read, once each."""
    places = [
        _blob(path, str(said.get("path")))
        for line in _lines(path)
        for said in line["workload"]["inputs"].values()
        if said.get("type") == "safetensors"
    ]
    return list(dict.fromkeys(places))


def _lines(path: Path) -> list[dict[str, Any]]:
    raw = read_bytes(path, REMEDY).splitlines()
    lines = [parse_json(line, _SCHEMA, path, REMEDY) for line in raw if line.strip()]
    if not lines:
        raise InputError(f"{path} holds no workload; {REMEDY}")
    return lines


def _input(path: Path, name: str, said: Mapping[str, Any]) -> Any:
    """A tensor or number, or what stands for one that is random."""
    kind = said.get("type")
    if kind == "scalar" and isinstance(said.get("value"), (int, float)):
        return said["value"]
    if kind == "random":
        return None
    if kind != "safetensors" or not all(
        isinstance(said.get(n), str) for n in ("path", "tensor_key")
    ):
        raise InputError(
            f"input {quote(name)} must be safetensors, scalar or random; got {quote(said)}"
        )
    blob = _blob(path, said["path"])
    tensors = _tensors(blob, state_of(blob))
    if said["tensor_key"] not in tensors:
        raise InputError(
            f"{said['path']} has no tensor {quote(said['tensor_key'])}, which {name} is to be"
        )
    return tensors[said["tensor_key"]]


@lru_cache(maxsize=64)
def _tensors(path: Path, _state: State) -> dict[str, Tensor]:
    return read_tensors(path)


def _blob(path: Path, name: str) -> Path:
    """Where a blob is: its path is relative to the trace's root, above the file of workloads."""
    for root in path.absolute().parents:
        if (root / name).is_file():
            return root / name
    raise InputError(f"{name} is in no folder above {path}; keep the trace as it was written")


def _named(definition: str, inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs of a definition by the names of a dump."""
    names = set(inputs)
    missing = sorted(name for name, x in inputs.items() if x is None and name != "sm_scale")
    known = names >= _INDEX or names >= _PAGED or names >= _RAGGED
    if not known:
        raise InputError(
            f"{quote(definition)} has inputs {', '.join(sorted(names))}; a DSA indexer's, paged or ragged "
            "attention's are read"
        )
    if missing:
        raise InputError(
            f"{', '.join(missing)} of {quote(definition)} is random in the trace: what was asked is not "
            "there; trace anew and dump all inputs"
        )
    if names >= _INDEX:
        return inputs
    if names >= _PAGED:
        return {**keys_and_values(inputs), "layout": "thd"}
    scaling = {} if inputs.get("sm_scale") is None else {"scaling": inputs["sm_scale"]}
    edges = {"cu_seqlens": inputs["kv_indptr"], "cu_seqlens_q": inputs["qo_indptr"]}
    tensors = {"queries": inputs["q"], "keys": inputs["k"], "values": inputs["v"]}
    return {**tensors, **edges, **scaling, "layout": "thd"}

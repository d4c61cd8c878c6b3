"""What is installed, what it runs on, and what of it is broken."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

CORE = ("torch", "numpy", "scipy", "safetensors", "pyarrow", "typer", "rich", "pyyaml")
OPTIONAL = (
    "transformers",
    "tokenizers",
    "altair",
    "vl-convert-python",
    "jinja2",
    "gguf",
    "faiss-cpu",
    "faiss-gpu",
    "triton",
)
FLOORS = {"torch": (2, 9), "transformers": (5, 17), "pyarrow": (16, 0)}

# Triton's release for each torch that was tried; wheels with CUDA name their own.
TRITON_FOR = {"2.11": "3.6", "2.13": "3.7", "2.15": "3.9"}

LEAST_DISK = 2**30


@dataclass(frozen=True)
class Finding:
    """One thing that was examined; `problem` is empty where there is none."""

    name: str
    value: str
    problem: str = ""


def examine() -> list[Finding]:
    """Look at versions, device, threads, clashes and disk."""
    return [
        Finding("python", f"{platform.python_version()} on {platform.platform()}"),
        *(_package(name, needed=True) for name in CORE),
        *(_package(name, needed=False) for name in OPTIONAL),
        *_torch(),
        _triton(_version("torch"), _version("triton")),
        _faiss(_version("faiss-cpu"), _version("faiss-gpu")),
        _disk(shutil.disk_usage(".").free),
    ]


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _package(name: str, needed: bool) -> Finding:
    installed = _version(name)
    if not installed:
        return Finding(name, "not installed", f"install {name}" if needed else "")
    floor = FLOORS.get(name, (0, 0))
    if _release(installed) < floor:
        least = ".".join(map(str, floor))
        return Finding(name, installed, f"topkit needs {name} {least} or later")
    return Finding(name, installed)


def _release(version: str) -> tuple[int, int]:
    major, minor = f"{version}.0".split(".")[:2]
    return int(major), int("".join(c for c in minor if c.isdigit()) or 0)


def _torch() -> Iterator[Finding]:
    try:
        import torch
    except ImportError as error:
        yield Finding("device", "unknown", f"torch does not import: {error}")
        return
    threads = f"{torch.get_num_threads()} of {os.cpu_count()} cores"
    yield Finding("threads", threads)
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
        yield Finding("device", f"cuda: {name}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free")
    else:
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else ""
        yield Finding("device", "cpu" + (f"; {built}, but sees no GPU" if built else ""))


def _triton(torch: str, triton: str) -> Finding:
    if not triton or not torch:
        return Finding("torch with triton", "nothing to compare")
    wanted = TRITON_FOR.get(".".join(torch.split(".")[:2]), "")
    for requirement in metadata.requires("torch") or ():
        if requirement.startswith("triton==") and _version("torch") == torch:
            wanted = requirement.removeprefix("triton==").split(";")[0].strip()
    if not wanted:
        return Finding(
            "torch with triton", f"torch {torch}, triton {triton}: a pair not known here"
        )
    matches = triton == wanted or triton.startswith(f"{wanted}.")
    problem = "" if matches else f"torch {torch} goes with triton {wanted}; found {triton}"
    return Finding("torch with triton", "match" if matches else "mismatch", problem)


def _faiss(cpu: str, gpu: str) -> Finding:
    if cpu and gpu:
        remedy = "both own the folder `faiss`; uninstall both, then install one"
        return Finding("faiss", f"faiss-cpu {cpu} and faiss-gpu {gpu}", remedy)
    if not (cpu or gpu):
        return Finding("faiss", "not installed")
    try:
        import faiss

        whole = hasattr(faiss, "IndexFlatIP")
    except ImportError as error:
        return Finding("faiss", "installed", f"it does not import: {error}")
    return Finding("faiss", "imports", "" if whole else "it is an empty folder; install it anew")


def _disk(free: int) -> Finding:
    problem = "" if free >= LEAST_DISK else "less than 1 GiB is free here; captures need more"
    return Finding("free disk", f"{free / 2**30:.1f} GiB", problem)

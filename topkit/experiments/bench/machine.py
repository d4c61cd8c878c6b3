"""Where and with what the benchmarks ran."""

from __future__ import annotations

import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import topkit

ROOT = Path(topkit.__file__).parents[1]
# Packages of others, by the names that their rows have.
RIVALS = {"flashinfer": "flashinfer-python", "xformers": "xformers"}


def machine(device: torch.device) -> dict[str, Any]:
    """The columns of this machine: no paths, no names of hosts."""
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else processor(),
        "cores": torch.get_num_threads(),
        "driver": _first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        if cuda
        else "",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "cuda": torch.version.cuda or "",
        "topkit": topkit.__version__,
        "commit": _commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def processor() -> str:
    """The name of this machine's CPU."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def other_triton(triton: str, constraints: Path = ROOT / "constraints.txt") -> str:
    """A note where a GPU's Triton is not the one that the kernels are developed with; else nothing."""
    try:
        pin = re.search(r"^triton==(\S+)", constraints.read_text(), re.MULTILINE)
    except OSError:  # an installed package, which pins nothing
        return ""
    if pin is None or triton == pin[1]:
        return ""
    return f"Triton {triton or 'of no known version'}, not the pinned {pin[1]}"


def release(implementation: str) -> str | None:
    """The name and version of a rival's package, which no column holds."""
    package = RIVALS.get(implementation.partition(".")[0])
    return f"{package} {_version(package)}" if package else None


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _commit() -> str:
    if not (ROOT / ".git").exists():
        return ""
    return _first_line("git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12")


def _first_line(*words: str) -> str:
    """The first line that a program prints; nothing where there is no such program."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip().partition("\n")[0]

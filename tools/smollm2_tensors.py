"""Make topkit/data/smollm2/tensors.safetensors of a capture: its last queries, and its keys, in bfloat16.

Which layers they are stands beside it, in tensors.layers.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from topkit.experiments.capture.capture import Capture
from topkit.experiments.capture.stacked import SUFFIX

OUT = Path(__file__).parents[1] / "topkit" / "data" / "smollm2" / "tensors.safetensors"


def write(capture: Path, out: Path = OUT) -> Path:
    """Layers stand below one another: queries [L, Hq, 1, D] of the last position, keys [L, Hk, T, D]."""
    seen = Capture.open(capture)
    layers = [seen.load(0, layer) for layer in seen.layers]
    tensors = {
        "queries": torch.cat([one.queries[:, :, -1:] for one in layers]).bfloat16(),
        "keys": torch.cat([one.keys for one in layers]).bfloat16(),
        "scaling": torch.tensor(layers[0].scaling),
    }
    save_file({name: x.contiguous() for name, x in tensors.items()}, out)
    out.with_suffix(SUFFIX).write_text(f"{json.dumps(seen.layers)}\n")
    return out


if __name__ == "__main__":
    print(write(Path(sys.argv[1])))

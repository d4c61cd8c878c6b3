"""A hook of hatchling: tensors in the wheel are packed by Huffman codes alone.

Deflate looks for strings that come again. Mantissas have none, and the search spoils the codes: without it the wheel is
1.5 % smaller, and any unzip reads it.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Wheel(BuildHookInterface):
    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        repack(Path(artifact_path))


def repack(wheel: Path) -> None:
    """Write a zip anew: the same files in the same order, tensors by Huffman codes alone."""
    new = wheel.with_suffix(".new")
    with ZipFile(wheel) as old, ZipFile(new, "w", ZIP_DEFLATED) as out:
        for entry in old.infolist():
            with old.open(entry) as source, out.open(entry, "w") as target:
                if entry.filename.endswith(".safetensors"):
                    # zipfile offers a level, not a strategy.
                    target._compressor = zlib.compressobj(  # type: ignore[attr-defined]
                        6, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY
                    )
                target.write(source.read())
    new.replace(wheel)

"""Study files from strangers: one line, or a study."""

from __future__ import annotations

import random
from pathlib import Path

import yaml

from fuzz import TIMES, changed_bytes, changed_json, changed_text, line_of
from topkit.experiments.study.preset_files import FOLDER
from topkit.experiments.study.study_file import read_study

FILES = 60 * TIMES


def test_study_files(tmp_path: Path) -> None:
    draw, path = random.Random(7), tmp_path / "study.yaml"
    texts = [preset.read_text() for preset in sorted(FOLDER.glob("*.yaml"))]
    for _ in range(FILES):
        text = draw.choice(texts)
        whole = yaml.safe_dump(changed_json(draw, yaml.safe_load(text)))
        for spoilt in (
            whole.encode("utf-8", "surrogatepass"),
            changed_text(draw, text).encode("utf-8", "surrogatepass"),
            changed_bytes(draw, text.encode()),
        ):
            path.write_bytes(spoilt)
            line_of(lambda: read_study(path))

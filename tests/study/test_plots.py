"""Figures for notebooks: charts that hold their numbers and their citation, and their files."""

from __future__ import annotations

from pathlib import Path

import pytest

from topkit.errors import InputError
from topkit.experiments.study import plots

RUN = Path(__file__).parents[2] / "results" / "fidelity-vs-accuracy"


@pytest.mark.slow
def test_a_figure_holds_its_numbers_and_its_citation(tmp_path: Path):
    for chart in (plots.accuracy_by_bytes(RUN), plots.accuracy_by_fidelity(RUN, "mass"), plots.accuracy_by_k(RUN)):  # fmt: skip
        spec = chart.to_dict()
        assert len(spec["datasets"]["cells"]) == 42
        assert spec["title"]["subtitle"].startswith("topkit 0.2.0, run 9be00d89a9b7, commit dc0e11")
        assert not [layer for layer in spec["layer"] if layer.get("name") == "names"]
    named = plots.save(plots.accuracy_by_bytes(RUN, 16, names=True), tmp_path / "a.svg")
    assert "quest(page_size=4)" in named.read_text() and "run 9be00d89a9b7" in named.read_text()


def test_what_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="nothing was run at k = 5"):
        plots.accuracy_by_bytes(RUN, 5)
    with pytest.raises(InputError, match="metric must be one of"):
        plots.accuracy_by_fidelity(RUN, "kept")
    with pytest.raises(InputError, match="name one of this run's tasks"):
        plots.accuracy_by_k(RUN, "books")
    with pytest.raises(InputError, match=r"as \.png or \.svg"):
        plots.save(plots.accuracy_by_k(RUN), tmp_path / "a.gif")

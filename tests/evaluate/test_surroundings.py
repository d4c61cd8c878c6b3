"""Answers and what is observed of them are the same whatever the process is set to."""

import functools

import pytest
import torch

import tiny
import topkit
from surroundings import SURROUNDINGS
from topkit.experiments.runs.parts import read_table

SPECS = ["exact", "sign", "degraded(0.6)", "sampled", "shared(quantized())"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    model = tiny.folder(
        tmp_path_factory.mktemp("model"), tiny.tiny("llama", **tiny.READS_REFERENCE)
    )

    @functools.cache
    def run(name=""):
        out = tmp_path_factory.mktemp("run")
        answers = topkit.evaluate(
            str(model), "niah-single", 200, 1, SPECS, 8, out=out, device="cpu", observe="rows"
        )
        return answers.to_pylist(), read_table(out / "fidelity").to_pylist()

    return run


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_evaluated_rows(name, run):
    plain = run()
    with SURROUNDINGS[name]():
        ours = run(name)
    assert ours == plain


@pytest.mark.parametrize("spec", ["exact", "quest(page_size=4)"])
@pytest.mark.parametrize("name", SURROUNDINGS)
def test_observed_rows_of_an_attachment(name, spec):
    """Autocast and its products are the model's own business; what it chose is judged in float32 all the same."""
    model, prompt = tiny.tiny(), tiny.prompt(2, 30, padded=True)

    def observed():
        with topkit.attach(model, spec, 5, observe=True) as attached:
            said = model.generate(**prompt, max_new_tokens=4, do_sample=False)
        return said.tolist(), attached.fidelity().to_pylist()

    plain = observed()
    with SURROUNDINGS[name]():
        said, rows = observed()
    assert len(rows) == len(plain[1])
    if not name.startswith(("autocast", "products")):
        assert (said, rows) == plain
    if spec == "exact":
        for row in rows:
            assert row["recall"] == row["top1"] == 1
            assert row["mass_ratio"] == pytest.approx(1, abs=1e-5)
            assert row["score_regret"] == pytest.approx(0, abs=1e-5)


def test_truth_is_float32_of_what_the_model_gave():
    """The exact scores of bfloat16 keys are not rounded to bfloat16."""
    from topkit.fidelity import truth

    g = torch.Generator().manual_seed(0)
    queries, keys = (
        torch.randn(s, generator=g).bfloat16() for s in ((1, 2, 3, 64), (1, 1, 50, 64))
    )
    right = (queries.double() @ keys.double().mT)[..., :48].topk(5).values
    with torch.autocast("cpu", torch.bfloat16):
        exact = truth(queries, keys, keys, 5, scaling=0.1, stop=torch.full((1, 3), 48))
    torch.testing.assert_close(exact.scores.double(), right, rtol=1e-6, atol=1e-6)

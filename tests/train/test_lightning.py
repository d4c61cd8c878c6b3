"""The lightning indexer gives the index sets of transformers' own DSA models."""

import pyarrow.compute as pc
import pytest
import torch

import topkit
from tiny import DSA, tiny, tokens
from topkit.errors import InputError
from topkit.experiments.capture.capture import Capture
from topkit.experiments.measure.replay import Replay
from topkit.experiments.train.lightning import export_weights, in_bytes, save_weights
from topkit.indexers import Step
from topkit.indexers.lightning import lightning
from topkit.indexers.lightning_weights import load


def spied(model):
    """Record what each indexer is asked and what it answers: {layer: [(inputs, indices), ...]}."""
    calls = {n: [] for n in range(len(model.model.layers))}

    def spy(number):
        def record(module, args, kwargs, output):
            calls[number].append(((args, kwargs), output))

        return record

    handles = [
        layer.self_attn.indexer.register_forward_hook(spy(n), with_kwargs=True)
        for n, layer in enumerate(model.model.layers)
        if layer.self_attn.indexer is not None
    ]
    return calls, handles


@pytest.mark.parametrize("kind", ["deepseek_v32", "glm_moe_dsa"])
def test_selects_what_the_model_selects(kind, tmp_path):
    model = tiny(kind, **DSA)
    recipe = lightning(str(export_weights(model, tmp_path)))
    calls, _ = spied(model)
    ids = tokens(2, 40)
    with torch.no_grad():
        out = model(ids[:, :33], use_cache=True)
        for position in range(33, 40):
            out = model(ids[:, position : position + 1], past_key_values=out.past_key_values)
    compared = sum(agreeing_rows(recipe, n, asked) for n, asked in calls.items() if asked)
    assert compared >= 2 * (26 + 7), "too few rows have k visible keys: the test shows nothing"


def agreeing_rows(recipe, layer, asked) -> int:
    """Feed the recipe one call after the other, as a driver would; count the rows compared."""
    index, compared = None, 0
    for (args, _), theirs in asked:
        hidden, latent, rope = args[:3]
        keys = hidden.new_zeros(2, 4, hidden.shape[1], 24)
        step = Step(layer, inputs={"hidden": hidden, "latent": latent, "rope": rope})
        if index is None:
            index = recipe.build(keys, step)
        else:
            index.append(keys, step)
        ours = index.select(keys, 8, step).indices[:, 0]
        scores = index.score(keys, step)[:, 0]
        for row in range(2):
            for i in range(keys.shape[2]):
                visible = index.length - keys.shape[2] + i + 1
                if visible < 8:
                    continue
                line = scores[row, i, :visible].sort(descending=True).values
                chosen = scores[row, i][theirs[row, i].long()].sort(descending=True).values
                torch.testing.assert_close(chosen, line[:8])
                if visible == 8 or line[7] - line[8] > 1e-6 * line.abs().max():
                    assert set(ours[row, i].tolist()) == set(theirs[row, i].tolist())
                    compared += 1
    return compared


def random_weights(folder, **metadata):
    torch.manual_seed(1)
    tensors = {
        "0.wq": torch.randn(4 * 16, 24),
        "0.wk": torch.randn(16, 32),
        "0.norm": torch.rand(16) + 0.5,
        "0.norm_bias": torch.randn(16) * 0.1,
        "0.gates": torch.randn(4, 32),
    }
    described = {"heads": 4, "rope": "half", "rope_at": "first", "reads": "latent"} | metadata
    return save_weights(folder, "tiny", tensors, **described)


def asked(length=50):
    torch.manual_seed(2)
    angle = torch.arange(length)[None, :, None] / 10 ** torch.arange(4).repeat(2)[None, None]
    inputs = {
        "hidden": torch.randn(1, length, 32),
        "latent": torch.randn(1, length, 24),
        "rope": (angle.cos(), angle.sin()),
    }
    return torch.zeros(1, 2, length, 8), Step(inputs=inputs)


@pytest.mark.parametrize("rope", ["half", "interleaved"])
@pytest.mark.parametrize("rope_at", ["first", "last"])
def test_scores_are_the_formula(rope, rope_at, tmp_path):
    path = random_weights(tmp_path, rope=rope, rope_at=rope_at)
    keys, step = asked(9)
    w = {n.split(".")[1]: t.double() for n, t in load(str(path)).tensors.items()}
    cos, sin = (a[0].double() for a in step.rope)

    def turn(x, at):  # one vector, pair by pair
        x = x.clone()
        base = 0 if rope_at == "first" else len(x) - 8
        out = x.clone()
        for j in range(4):
            p, q = (2 * j, 2 * j + 1) if rope == "interleaved" else (j, j + 4)
            out[base + p] = x[base + p] * cos[at, j] - x[base + q] * sin[at, j]
            out[base + q] = x[base + q] * cos[at, j] + x[base + p] * sin[at, j]
        return out

    index = lightning(str(path)).build(keys, step)
    scores = index.score(keys, step)[0, 0]
    for t in range(9):
        for s in range(9):
            hidden, latent = step.hidden[0].double(), step.latent[0].double()
            k = w["wk"] @ hidden[s]
            k = (k - k.mean()) / (k.var(unbiased=False) + 1e-6).sqrt() * w["norm"] + w["norm_bias"]
            gates = w["gates"] @ hidden[t] * 4**-0.5
            q = (w["wq"] @ latent[t]).view(4, 16)
            slow = sum(
                gates[j] * torch.relu(turn(q[j], t) @ turn(k, s) * 16**-0.5) for j in range(4)
            )
            assert scores[t, s].item() == pytest.approx(float(slow), rel=1e-4, abs=1e-5)


def test_given_index_tensors_are_scored_by_the_formula():
    """Those of vLLM or SGLang, measured as they came: each query sees the keys up to its own."""
    g = torch.Generator().manual_seed(0)
    q, k, w = (torch.randn(*s, generator=g) for s in ((1, 4, 3, 16), (1, 30, 16), (1, 3, 4)))
    capture = Capture.from_tensors(
        torch.randn(1, 2, 3, 8, generator=g),
        torch.randn(1, 2, 30, 8, generator=g),
        index_queries=q,
        index_keys=k,
        index_weights=w,
    )
    replay = Replay(capture.load(0, 0), 5, 0, torch.device("cpu"))
    found, _ = replay.select(lightning("given"), [5])
    for i, position in enumerate((27, 28, 29)):
        slow = [
            sum(float(w[0, i, j] * (q[0, j, i] @ k[0, s]).clamp_min(0)) for j in range(4))
            for s in range(position + 1)
        ]
        wanted = sorted(range(position + 1), key=lambda s: -slow[s])[:5]
        assert found[5].indices[0, 0, i].tolist() == wanted


def test_given_index_tensors_in_fp8_overlap_those_in_fp32():
    g = torch.Generator().manual_seed(0)
    shapes = (1, 2, 3, 8), (1, 2, 90, 8), (1, 4, 3, 16), (1, 90, 16), (1, 3, 4)
    q, k, *index = [torch.randn(*shape, generator=g) for shape in shapes]
    capture = Capture.from_tensors(q, k, None, index[0], index[1], index[2])
    fp32, fp8 = lightning("given"), lightning("given", dtype="fp8")
    table = topkit.measure(capture, [fp32, fp8], 10, reference=fp32).table
    overlap = {repr(fp32): [], repr(fp8): []}
    for row in table.filter(pc.field("reference") == repr(fp32)).to_pylist():
        overlap[row["indexer"]].append(row["recall"])
    assert overlap[repr(fp32)] == [1, 1, 1]
    assert len(overlap[repr(fp8)]) == 3 and min(overlap[repr(fp8)]) >= 0.7


def test_given_index_tensors_that_are_not_there_are_named():
    capture = Capture.from_tensors(torch.randn(1, 2, 3, 8), torch.randn(1, 2, 30, 8))
    with pytest.raises(InputError, match="needs index_keys, index_queries, index_weights"):
        topkit.measure(capture, "lightning:weights=given", 5)


def test_fp8_keys_are_small_and_near(tmp_path):
    path = str(random_weights(tmp_path))
    keys, step = asked(200)
    exact, coarse = (lightning(path, dtype=d).build(keys, step) for d in ("fp32", "fp8"))
    assert coarse.nbytes == 200 * (16 + 4) and exact.nbytes == 200 * 16 * 4
    a, b = exact.score(keys, step), coarse.score(keys, step)
    assert 0 < (a - b).norm() / a.norm() < 0.1


def test_weights_are_verified(tmp_path):
    path = random_weights(tmp_path)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="altered"):
        lightning(str(path))
    with pytest.raises(InputError, match="no weights at"):
        lightning("nowhere")
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"not safetensors at all")
    with pytest.raises(InputError, match="cannot read"):
        lightning(str(other))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"rope": "zzz"}, "rope must be 'half' or 'interleaved'; got 'zzz'"),
        ({"rope_at": "middle"}, "rope_at must be 'first' or 'last'; got 'middle'"),
        ({"reads": "keys"}, "reads must be 'hidden' or 'latent'; got 'keys'"),
        ({"heads": "many"}, "heads must be a number of heads such as '8'; got 'many'"),
        ({"heads": "-4"}, "heads must be a number of heads"),
        ({"heads": "8"}, r"0.wq must be \(128, 24\); got \(64, 24\)"),
    ],
)
def test_metadata_of_other_values_are_refused(tmp_path, changed, says):
    path = random_weights(tmp_path, **changed)
    with pytest.raises(InputError, match=says) as caught:
        lightning(str(path))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x: x.pop("0.wk"), "layer 0 lacks wk"),
        (lambda x: x.clear(), "it has no tensor"),
        (lambda x: x.update({"layer.wq": torch.ones(1)}), "it has a tensor 'layer.wq'"),
        (lambda x: x.update({"0.norm": torch.ones(3)}), r"0.norm must be \(16,\); got \(3,\)"),
        (lambda x: x.update({"0.wk": torch.ones(16)}), "layer 0 has tensors of the shapes"),
        (lambda x: x["0.gates"].fill_(torch.nan), "0.gates holds NaN or infinity"),
    ],
)
def test_tensors_that_are_no_index_weights_are_refused(tmp_path, change, says):
    held = load(str(random_weights(tmp_path)))
    tensors = {name: x.clone() for name, x in held.tensors.items()}
    change(tensors)
    path = save_weights(tmp_path, "own", tensors, **held.metadata)
    with pytest.raises(InputError, match=says):
        lightning(str(path))


def test_a_layer_without_weights_is_named(tmp_path):
    recipe = lightning(str(random_weights(tmp_path)))
    keys, step = asked(4)
    with pytest.raises(InputError, match="layer 3"):
        recipe.build(keys, Step(3, inputs=step.inputs))


def test_other_models_are_refused(tmp_path):
    with pytest.raises(InputError, match="llama has no lightning indexer"):
        export_weights(tiny("llama"), tmp_path)


def test_small_files_hold_matrices_in_bytes_and_are_read_to_half_a_step(tmp_path):
    whole = load(str(random_weights(tmp_path)))
    small = in_bytes(whole.tensors)
    assert small["0.wq"].dtype == torch.int8 and small["0.norm"].dtype == torch.bfloat16
    read = load(str(save_weights(tmp_path, "small", small, **whole.metadata))).tensors
    assert read.keys() == whole.tensors.keys()
    for name in ("0.wq", "0.wk", "0.gates"):
        step = whole.tensors[name].abs().amax(-1, keepdim=True) / 127
        assert ((read[name] - whole.tensors[name]).abs() <= 0.5001 * step).all()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x: x.pop("0.wq.scale"), "0.wq is torch.int8, and its scales none"),
        (lambda x: x.update({"0.norm.scale": torch.ones(16)}), "its scales there"),
        (lambda x: x.update({"0.other.scale": torch.ones(1)}), "0.other.scale scales nothing"),
        (
            lambda x: x.update({"0.wk.scale": torch.ones(3)}),
            r"0.wk.scale must be \(16,\); got \(3,\)",
        ),
        (lambda x: x["0.wk.scale"].fill_(torch.nan), "0.wk holds NaN or infinity"),
    ],
)
def test_scales_that_are_not_those_of_a_matrix_are_refused(tmp_path, change, says):
    whole = load(str(random_weights(tmp_path)))
    tensors = in_bytes(whole.tensors)
    change(tensors)
    path = save_weights(tmp_path, "small", tensors, **whole.metadata)
    with pytest.raises(InputError, match=says):
        lightning(str(path))


@pytest.mark.parametrize("hadamard", [True, False])
def test_int4_keys_are_half_a_byte_a_number_and_a_scale(hadamard, tmp_path):
    """Scored as float vectors that the levels of keys and queries stand for, one at a time."""
    path = str(random_weights(tmp_path))
    keys, step = asked(30)
    recipe = lightning(path, dtype="int4", hadamard=hadamard)
    index = recipe.build(keys, step)
    assert index.nbytes == 30 * (8 + 4)
    w = load(path).layer(0)

    def rounded(x):
        if hadamard:
            signs = [[(-1.0) ** bin(i & j).count("1") for j in range(16)] for i in range(16)]
            x = torch.tensor(signs) @ x / 4
        scale = x.abs().max() / 8
        return ((x / scale).floor().clamp(-8, 7) + 0.5) * scale

    index_keys, queries = w.keys(step.hidden, step.rope)[0, 0], w.queries(step.latent, step.rope)[0]
    gates, scores = w.gates(step.hidden)[0], index.score(keys, step)[0, 0]
    for t, s in ((0, 0), (7, 3), (29, 12), (29, 29)):
        products = [rounded(queries[h, t]) @ rounded(index_keys[s]) for h in range(4)]
        slow = sum(g * p.relu() for g, p in zip(gates[t], products, strict=True)) / 8
        assert scores[t, s].item() == pytest.approx(float(slow), rel=1e-4, abs=1e-4)


def test_what_is_not_rotated_is_said(tmp_path):
    path = str(random_weights(tmp_path))
    assert "hadamard" not in repr(lightning(path, dtype="fp8"))
    assert "hadamard=False" in repr(lightning(path, dtype="fp8", hadamard=False))
    with pytest.raises(InputError, match="fp32 keys are not rotated"):
        lightning(path, hadamard=False)

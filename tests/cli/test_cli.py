"""The console script: its exit codes, its one line of complaint, and what it lists."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
import typer
from safetensors.torch import save_file

from topkit.cli import doctor, listing
from topkit.cli.commands import app
from topkit.cli.exits import exit_code, run
from topkit.cli.values import parse_length, parse_lengths, parse_task
from topkit.errors import GateFailed, InputError, Undecided
from topkit.experiments.model.load import REFERENCE
from topkit.experiments.runs.parts import read_table
from topkit.indexers import INDEXERS, Combinator

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a command line in this process: exit code, stdout, stderr."""

    def _call(*words: object) -> tuple[int, str, str]:
        code = run(app, [str(word) for word in words])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return _call


@pytest.fixture
def refused(call: Call) -> Callable[..., str]:
    """Run a command line that must be refused: exit 2, and the one line that says why."""

    def _refused(*words: object) -> str:
        code, out, err = call(*words)
        assert (code, out) == (2, ""), err
        assert err.startswith("topkit: ")
        assert err.count("\n") == 1
        return err

    return _refused


def raising(error: BaseException) -> Callable[[], None]:
    def body() -> None:
        raise error

    return body


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("k must be\nat least 1"), 2),
        (GateFailed("recall 0.4 < 0.5"), 1),
        (Undecided("the interval holds 0"), 3),
        (KeyboardInterrupt(), 130),
        (OSError(errno.ENOSPC, "No space left on device", "run/part"), 2),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "gone"), 2),
        (MemoryError(), 2),
        (ModuleNotFoundError("No module named 'faiss'", name="faiss"), 2),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, BaseException) else str(x),
)
def test_errors_become_one_line_and_a_code(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(raising(error)) == code
    err = capsys.readouterr().err
    assert err.startswith("topkit: ")
    assert err.count("\n") == 1


def test_an_interrupted_command_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    interrupted = typer.Typer()
    interrupted.command()(raising(KeyboardInterrupt()))
    assert run(interrupted, []) == 130
    assert "interrupted" in capsys.readouterr().err


def test_a_full_disk_is_said_with_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    exit_code(raising(OSError(errno.ENOSPC, "No space left on device", "run/part")))
    assert capsys.readouterr().err == "topkit: No space left on device: run/part\n"


@pytest.mark.parametrize("error", [ValueError("of torch"), KeyError("x"), RuntimeError("y")])
def test_a_fault_of_ours_shows_its_traceback(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(raising(error)) == 70
    assert "Traceback" in capsys.readouterr().err


def test_help_names_every_command_and_option(call: Call) -> None:
    code, out, _ = call("--help")
    assert code == 0
    assert call()[:2] == (0, out)
    for name in COMMANDS:
        assert f"\n  {name} " in out
        code, text, _ = call(name, "--help")
        assert code == 0
        for flag in COMMANDS[name].split():
            assert f" {flag}" in text, f"{name} lacks {flag}"


COMMANDS = {
    "capture": "--task --text --length --samples --out --layers --positions --hidden --seed "
    "--device --dtype --dry-run --force --json --config",
    "measure": "--indexer -k --out --reduce --seed --device --jobs --dry-run --force --json --config",
    "evaluate": "--task --length --samples --indexer -k --sparse-from --observe --out --seed --device --dtype "
    "--batch-size --jobs --dry-run --force --json --config",
    "report": "--require -k --against --margin --json --config",
    "survey": "--sink --layers --csv --figure --json --config",
    "study": "--preset --out --model --task --length --samples --haystacks -k --indexer --pilot --no-pilot "
    "--pilot-haystacks --distractors --sparse-from --observe --text --reach --seed --device --dtype --batch-size --jobs --dry-run --force "
    "--json --config",
    "bench": "--out --tiny --repeats --json --config",
    "score": "--out --length --samples --corpus --seed --device --jobs --config",
    "train": "--corpus --out --seed --device --jobs --config",
    "calibrate": "--out --model --config",
    "list": "--json",
    "doctor": "--json",
}


def test_unknown_words_suggest_the_nearest(refused: Callable[..., str]) -> None:
    assert "'list'" in refused("lisst")
    assert "--json" in refused("list", "tasks", "--jsno")
    assert "'indexers'" in refused("list", "indexer")
    train = ("train", "refrence", "--corpus", ".", "--out", "x")
    assert "'reference'" in refused(*train, *CPU)
    assert "'reference'" in refused(*train)
    assert "known: indexers, metrics, studies, tasks" in refused("list", "foo")


@pytest.mark.parametrize("command", ["capture", "evaluate", "measure", "study", "train", "score"])
def test_out_that_cannot_be_written_is_said_first(
    command: str, refused: Callable[..., str], tmp_path: Path
) -> None:
    taken = tmp_path / "taken"
    taken.touch()
    if command == "score":
        taken = tmp_path
    kind = "folder" if command == "score" else "file"
    assert f"'--out': {taken} is a {kind}" in refused(command, "reference", "--out", taken)
    assert "'--out': give a " in refused(command, "reference", "--out", "")


def test_sft_says_what_it_takes(refused: Callable[..., str], tmp_path: Path) -> None:
    words = ("train", "sft", "reference", "--tiny", "--out", tmp_path / "out", *CPU)
    assert "ratio must lie in (0, 1], as 0.01 or 1%; got '150%'" in refused(
        *words, "--ratio", "150%"
    )
    assert "needs a ratio" in refused(*words)
    assert "dense attention keeps all keys" in refused(
        *words, "--attention", "dense", "--ratio", "1%"
    )
    assert "cannot read" in refused(*words, "--difference", tmp_path / "none")
    assert "--corpus" in refused("train", "reference", "--out", tmp_path / "out", *CPU)
    assert not (tmp_path / "out").exists()


def test_a_model_to_start_from_must_be_there(refused: Callable[..., str], tmp_path: Path) -> None:
    words = ("train", "reference", "--corpus", tmp_path, "--out", tmp_path / "out", *CPU)
    assert "lacks tokenizer.json" in refused(*words, "--start-from", tmp_path / "nope")
    assert not (tmp_path / "out").exists()


def test_a_folder_whose_run_cannot_be_read_is_refused(
    refused: Callable[..., str], tensors: Path, tmp_path: Path
) -> None:
    (tmp_path / "run.json").write_text("[" * 100_000)
    words = ("measure", tensors, "--indexer", "sign", "-k", 4, "--out", tmp_path)
    assert "cannot read" in refused(*words)


def test_a_score_beyond_the_models_positions_is_refused(
    refused: Callable[..., str], tmp_path: Path
) -> None:
    out = tmp_path / "scores.json"
    assert "8,192 positions" in refused("score", "reference", "--length", "4k,999k", "--out", out)


CPU = ("--device", "cpu")
CAPTURE = ("capture", "reference", "--samples", "1", "--out", "unwritten")


def test_bad_words_are_refused_before_anything_is_written(
    refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    single = ("--task", "niah-single")
    assert "4096 or 4k" in refused(*CAPTURE, *single, "--length", "4q")
    assert "'niah-single'" in refused(*CAPTURE, "--task", "niah-singel", "--length", "4k")
    assert "'depth'" in refused(*CAPTURE, "--task", "niah-single:depht=1", "--length", "4k")
    assert "bfloat16" in refused(*CAPTURE, *single, "--length", "4k", "--dtype", "bf16")
    assert "cuda:N" in refused(*CAPTURE, *single, "--length", "4k", "--device", "gpu")
    assert "GPUs" in refused(*CAPTURE, *single, "--length", "4k", "--device", "cuda:99")
    assert "either a task or a text" in refused(*CAPTURE, "--length", "4k")
    assert "nowhere.txt" in refused(*CAPTURE, "--text", "nowhere.txt", "--length", "4k")
    assert "8,192 positions" in refused(*CAPTURE, *single, "--length", "16k")
    assert list(tmp_path.iterdir()) == []


EVALUATE = ("evaluate", "reference", "--samples", "1", "--out", "unwritten")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--indexer sing -k 16", "did you mean 'sign'"),
        ("--indexer sign -k 0", "at least 1; got '0'"),
        ("--indexer sign -k 120%", "(0, 100]"),
        ("--indexer sign", "sign() has no budget"),
        ("-k 16", "no indexer to keep so many keys; add --indexer"),
        ("--indexer quest:page_sise=3 -k 16", "did you mean 'page_size'"),
        ("--indexer quantized:dtype=int3 -k 16", "int8"),
        ("--indexer sign(( -k 16", "cannot read the indexer"),
        ("--indexer sign -k 16 --sparse-from prompt", "question or answer"),
        ("--indexer sign -k 16 --length 20", "longer length"),
        ("--indexer sign -k 16 --length 4k,16k", "beyond the 8,192 positions"),
        ("--indexer sign -k 16 --jobs 0", "--jobs"),
        ("--indexer sign -k 16 --batch-size 0", "--batch-size"),
        ("--indexer sign -k 16 --task niah-multikee", "niah-multikey"),
    ],
)
def test_a_bad_evaluation_is_refused(
    words: str,
    said: str,
    call: Call,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    given = words.split()
    for flag, value in (("--task", "niah-single"), ("--length", "1k")):
        given += [] if flag in given else [flag, value]
    code, out, err = call(*EVALUATE, *given)
    *_, line = err.splitlines()
    assert (code, out) == (2, "")
    assert line.startswith("topkit: ")
    assert said in line
    assert not list(tmp_path.rglob("*.parquet"))


@pytest.mark.slow
@pytest.mark.parametrize("sparse", [[], ["--indexer", "sign", "-k", 4, "--observe", "no"]])
def test_without_fidelity_there_is_accuracy_and_a_report(
    sparse: list, call: Call, tmp_path: Path
) -> None:
    words = ("--task", "niah-multikey:distractors=6", "--length", 640, "--samples", 2)
    code, out, err = call("evaluate", "reference", *words, *sparse, "--out", tmp_path, "--json")
    assert code == 0, err
    rows = json.loads(out)
    assert [row["indexer"] for row in rows] == [None, *(["sign()"] if sparse else [])]
    assert all(row["accuracy"] is not None and row["recall"] is None for row in rows)
    code, out, err = call("report", tmp_path)
    assert code == 0, err
    assert "Full attention scores" in Path(out.strip()).read_text()


@pytest.mark.slow
def test_a_report_takes_budgets_and_what_to_compare_with(call: Call, tmp_path: Path) -> None:
    run, words = tmp_path / "run", ("--task", "niah-single", "--length", 640, "--samples", 2)
    indexers = ("--indexer", "exact", "--indexer", "sign", "-k", "4,1%,8")
    assert call("evaluate", "reference", *words, *indexers, "--out", run)[0] == 0
    code, out, err = call("report", run, "-k", 4, "-k", "8,1%")
    assert code == 0, err
    page = Path(out.strip()).read_text()
    assert all(f"k = {k} scores" in page for k in ("4", "8", "1%"))
    config = tmp_path / "report.yaml"
    config.write_text("k: 8\n")
    code, out, err = call("report", run, "--config", config)
    page = Path(out.strip()).read_text()
    assert code == 0 and "k = 8 scores" in page and "k = 4 scores" not in page
    code, _, err = call("report", run, "-k", 5)
    assert code == 2 and err.strip().endswith("nothing was run at k = 5; there is -k 4,1%,8")
    code, _, err = call("report", run, "--require", "exact", "-k", 8, "--against", "exact")
    assert code == 0 and "to exact Top-k at its budget" in err
    code, _, err = call("report", run, "--against", "full")
    assert code == 2 and err == "topkit: --against must be dense or exact; got 'full'\n"


def test_nll_and_kl_are_shown(call: Call, tmp_path: Path) -> None:
    words = ("--task", "books:tokens=64", "--length", 640, "--samples", 2)
    words = ("evaluate", "reference", *words, "--indexer", "random", "-k", 4, "--out", tmp_path)
    code, out, _ = call(*words, "--json")
    dense, chance = json.loads(out)
    assert code == 0
    assert dense["nll_less_dense"] == dense["kl"] == 0
    assert chance["nll_less_dense"] == pytest.approx(chance["nll"] - dense["nll"])
    assert chance["nll_less_dense_low"] < chance["nll_less_dense"] < chance["nll_less_dense_high"]
    assert chance["kl_low"] < chance["kl"]
    code, out, _ = call(*words)
    for name in ("NLL", "minus full attention", "KL"):
        assert f" {name}" in out.splitlines()[0]
    for value in ("nll", "kl"):
        assert f"{chance[value]:.3f} [" in out
    assert f"{chance['nll_less_dense']:+.3f} [" in out


@pytest.mark.slow
def test_fidelity_is_a_mean_or_a_row_a_position(call: Call, tmp_path: Path) -> None:
    words = ("--task", "niah-multikey:distractors=6", "--length", 640, "--samples", 2)
    words = ("evaluate", "reference", *words, "--indexer", "sign", "-k", 4)
    rows = {}
    for how in ("mean", "rows"):
        assert call(*words, "--observe", how, "--out", tmp_path / how)[0] == 0
        rows[how] = read_table(tmp_path / how / "fidelity").to_pylist()
        assert {row["sample"] for row in rows[how]} == {0, 1}
        assert all(row["sample"] == row["haystack"] for row in rows[how])
    assert {row["position"] for row in rows["mean"]} == {None}
    assert min(row["position"] for row in rows["rows"]) > 500
    assert len(rows["rows"]) == sum(row["positions"] for row in rows["mean"])
    code, _, err = call(*words, "--observe", "rows", "--out", tmp_path / "mean")
    assert (code, "observe" in err) == (2, True)
    code, _, err = call(*words, "--observe", "row", "--out", tmp_path / "row")
    assert (code, "did you mean 'rows'" in err) == (2, True)


@pytest.fixture
def tensors(tmp_path: Path) -> Path:
    """A safetensors file of one's own: queries and keys."""
    drawn = torch.Generator().manual_seed(0)
    path = tmp_path / "own.safetensors"
    save_file(
        {
            "queries": torch.randn(2, 4, 3, 16, generator=drawn),
            "keys": torch.randn(2, 2, 50, 16, generator=drawn),
        },
        path,
    )
    return path


def test_measure_prints_numbers_that_are_in_its_table(
    call: Call, tensors: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = ("measure", tensors, "--indexer", "sign", "--indexer", "exact", "-k", "8,100%")
    words = (*words, "--metric", "own_recall")
    code, text, _ = call(*words, "--out", out, "--json")
    rows = {(row["indexer"], row["budget"]): row for row in json.loads(text)}
    table = read_table(out / "fidelity").to_pylist()
    mine = [r["recall"] for r in table if (r["indexer"], r["budget"]) == ("sign()", "8")]
    assert code == 0
    assert rows["exact()", "8"]["recall"] == 1
    assert rows["sign()", "8"]["recall"] == pytest.approx(sum(mine) / len(mine))
    assert rows["sign()", "8"]["own_recall"] == pytest.approx(sum(mine) / len(mine))
    assert rows["sign()", "100%"]["recall"] == rows["sign()", "100%"]["own_recall"] == 1
    assert rows["sign()", "100%"]["note"] == "k covers the whole context"
    code, text, err = call(*words, "--out", out)
    assert code == 0
    assert f"{rows['sign()', '8']['recall']:.3f} [" in text and "own recall" in text
    assert "2 of 2 jobs done" in err


@pytest.mark.slow
def test_a_dry_run_says_in_json_what_would_be_done(
    call: Call, tensors: Path, tmp_path: Path
) -> None:
    out, dry = tmp_path / "run", ("--out", tmp_path / "run", "--dry-run", "--json")
    sign = ("--indexer", "sign", "-k", "4,10%")
    asked = ("reference", "--task", "niah-single", "--samples", 2)
    shown = {
        "measure": call("measure", tensors, *sign, *dry),
        "capture": call("capture", *asked, "--length", 256, "--layers", "1,3", *dry),
        "evaluate": call("evaluate", *asked, "--length", "256,512,256", *sign, *dry),
        "study": call("study", "fidelity-vs-accuracy", *dry),
    }
    plans = {name: json.loads(text)[0] for name, (code, text, _) in shown.items() if code == 0}
    assert {plan["out"] for plan in plans.values()} == {str(out)}
    assert (plans["measure"]["jobs"], plans["measure"]["rows"]) == (2, 48)
    assert (plans["capture"]["samples"], plans["capture"]["layers"]) == (2, [1, 3])
    assert plans["capture"]["bytes"] > 10**5
    assert (plans["evaluate"]["jobs"], plans["evaluate"]["lengths"]) == (4, [256, 512])
    assert [cell["budget"] for cell in plans["evaluate"]["cells"]] == ["", "4", "10%"]
    assert plans["study"]["jobs"] == 34
    assert not out.exists()


def test_a_plan_goes_to_stderr_and_a_bar_follows_it(
    call: Call, tensors: Path, tmp_path: Path
) -> None:
    words = ("measure", tensors, "--indexer", "sign", "-k", 4, "--out", tmp_path / "run")
    code, out, err = call(*words, "--dry-run")
    said = (
        f"{tensors.name}: 14.5 kB, read a layer of a sample at a time (2 of them); less than a minute\n"
        "2 layers of samples, 1 cells: 24 rows at the level of heads; 0 of 2 jobs done\n"
    )
    assert (code, out, err) == (0, "", said)
    code, _, err = call(*words, "--json")
    assert (code, err.startswith(said)) == (0, True)
    assert err.removeprefix(said).split()[0] == "measuring"
    assert "100%" in err
    code, _, err = call(*words, "--json")
    assert (code, err) == (0, said.replace("0 of 2", "2 of 2"))


def test_layers_that_are_left_out_are_named(call: Call, tmp_path: Path) -> None:
    kinds = ["sliding_attention", "full_attention"]
    config = transformers.AutoConfig.for_model(
        "gemma3_text",
        vocab_size=4096,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=8,
        layer_types=kinds,
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "gemma")
    transformers.AutoTokenizer.from_pretrained(REFERENCE).save_pretrained(tmp_path / "gemma")
    words = ("capture", tmp_path / "gemma", "--task", "niah-single", "--samples", 1)
    code, out, err = call(*words, "--length", 512, "--out", tmp_path / "run", "--dry-run", "--json")
    (plan,) = json.loads(out)
    assert (code, plan["layers"], plan["skipped"][0]["layer"]) == (0, [1], 0)
    assert "; layer 1 sparse; layer 0 dense (a sliding window of 8 keys)\n" in err


def test_measure_from_a_config_file_and_dry(call: Call, tensors: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(f"indexer: [sign, exact]\nk: [8, 10%]\nout: {tmp_path}/run\ndry-run: true\n")
    code, out, err = call("measure", tensors, "--config", config)
    assert (code, out) == (0, "")
    assert "4 cells" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--indexer sign -k 0", "at least 1"),
        ("--indexer sgn -k 4", "did you mean 'sign'"),
        ("--indexer lightning -k 4", "lightning"),
        ("--indexer sign -k 4 --layers 0,x", "0,3,5"),
        ("--indexer sign -k 4 --layers 7", "no layer"),
        ("--indexer sign -k 4 --reference exakt", "did you mean 'exact'"),
        ("--indexer sign -k 4 --device cuda:99", "GPUs"),
        ("--indexer sign -k 4 --metric recal", "did you mean 'recall'"),
    ],
)
def test_a_bad_measurement_is_refused(
    words: str, said: str, call: Call, tensors: Path, tmp_path: Path
) -> None:
    code, out, err = call("measure", tensors, "--out", tmp_path / "run", *words.split())
    assert (code, out) == (2, "")
    assert said in err.splitlines()[-1]
    assert not list(tmp_path.rglob("*.parquet"))


def test_nan_is_refused_with_its_layer_and_head(call: Call, tmp_path: Path) -> None:
    """By the last line: a file's plan comes before its numbers are read."""
    keys = torch.ones(1, 2, 50, 16)
    keys[0, 1, 7, 3] = torch.nan
    save_file({"queries": torch.ones(1, 4, 3, 16), "keys": keys}, tmp_path / "own.safetensors")
    code, out, err = call(
        "measure", tmp_path / "own.safetensors", "--indexer", "sign", "-k", 4, "--out", tmp_path
    )
    line = err.splitlines()[-1]
    assert (code, out) == (2, "") and line.startswith("topkit: ")
    assert "layer 0" in line
    assert "head 1" in line


def test_shards_say_what_is_left_and_their_folders_are_merged(
    call: Call, refused: Callable[..., str], tensors: Path, tmp_path: Path
) -> None:
    words = ("measure", tensors, "--indexer", "sign", "-k", "4", "--json")
    out = [tmp_path / name for name in ("0", "1", "all", "whole")]
    for number in (0, 1):
        code, _, said = call(*words, "--out", out[number], "--shard", f"{number}/2")
        assert code == 0 and f"shard {number}/2" in said
    assert call("merge", out[0], out[1], "--out", out[2])[:2] == (0, f"{out[2]}\n")
    assert call(*words, "--out", out[2])[:2] == call(*words, "--out", out[3])[:2]
    assert "counted from 0: 0/2 to 1/2; got '2/2'" in refused(
        *words, "--out", out[3], "--shard", "2/2"
    )
    assert "shard 0/2 is one of several" in refused(
        *words, "--out", out[3], "--shard", "0/2", "--force"
    )
    assert "did you mean 'ray'" in refused(*words, "--out", out[3], "--runner", "rey")
    assert "one job at a time" in refused(
        *words, "--out", out[3], "--runner", "serial", "--jobs", "2"
    )
    assert "lies within it" in refused("merge", out[0], "--out", out[0])


@pytest.mark.slow
def test_what_recipes_print_is_not_on_stdout(tensors: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from topkit.indexers import INDEXERS\n"
        "@dataclass(frozen=True)\n"
        "class loud(INDEXERS['sign']):\n"
        "    def encode(self, keys, step):\n"
        "        print('a word')\n"
        "        return super().encode(keys, step)\n"
    )
    words = [
        "measure",
        tensors,
        "--indexer",
        "mine:loud",
        "-k",
        "4",
        "--json",
        "--out",
        tmp_path / "run",
    ]
    command = [sys.executable, "-m", "topkit", *map(str, words)]
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    }
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert json.loads(done.stdout)[0]["indexer"] == "mine:loud()" and "a word" in done.stderr


def test_a_config_file_gives_defaults_under_the_flags(call: Call, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("task: niah-singel\nlength: 4k\nsamples: 2\nout: x\nmodel: reference\n")
    code, _, err = call("capture", "--config", config)
    assert (code, "niah-singel" in err) == (2, True)
    code, _, err = call("capture", "--config", config, "--task", "reciet")
    assert (code, "'recite'" in err) == (2, True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lenght: 4k", "did you mean 'length'"),
        ("- 1", "option: value"),
        ("a: [", "cannot read"),
        pytest.param("a: " + "[" * 3000, "cannot read", id="deep"),
        ("samples: many\nlength: 4k\nout: x", "--samples"),
    ],
)
def test_a_config_file_is_read_with_care(
    text: str, said: str, refused: Callable[..., str], tmp_path: Path
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(text)
    assert said in refused("capture", "reference", "--config", config)


def test_a_config_file_must_be_there(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "No such file" in refused("capture", "--config", tmp_path / "no.yaml")


@pytest.mark.parametrize(("text", "tokens"), [("4096", 4096), ("4k", 4096), ("1K", 1024)])
def test_lengths(text: str, tokens: int) -> None:
    assert parse_length(text) == tokens


def test_several_lengths() -> None:
    assert parse_lengths("4k, 8k,4096") == [4096, 8192]


@pytest.mark.parametrize("text", ["", "0", "-4k", "4.5k", "k", "4kk", "1e3"])
def test_lengths_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match="length"):
        parse_length(text)


def test_tasks_with_parameters() -> None:
    task = parse_task("niah-multikey:distractors=3,wording=code,depth=0.5")
    assert vars(task) == {**vars(parse_task("niah-multikey")), **vars(task)}
    assert (vars(task)["distractors"], vars(task)["wording"], vars(task)["depth"]) == (
        3,
        "code",
        0.5,
    )
    with pytest.raises(InputError, match="write distractors=VALUE"):
        parse_task("niah-multikey:distractors")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("depth={[]:1}", "depth must be float"),
        pytest.param(f"depth={'-' * 50_000}1", "cannot read depth .* too deeply", id="deep"),
        ("name=x", "no parameter 'name'"),
        ("depth=0.5,depth=0.6", "'depth' is given twice"),
    ],
)
def test_tasks_that_cannot_be_read(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        parse_task(f"niah-single:{text}")


def test_list_shows_the_registry(call: Call) -> None:
    code, out, _ = call("list", "indexers", "--json")
    # What is installed beside topkit may have names too.
    shown = {row["name"]: row for row in json.loads(out) if row["package"] == "topkit"}
    assert code == 0
    assert list(shown) == list(INDEXERS)
    for name, recipe in INDEXERS.items():
        properties = {"name", "family", "source", "parameters", "cost", "package", "formula"}
        assert set(shown[name]) == properties
        assert issubclass(recipe, Combinator) or shown[name]["family"] != "combinator"
        assert shown[name]["family"]
        assert shown[name]["cost"]
    assert shown["quest"]["parameters"] == "page_size=16, min_pages=1"
    assert shown["quest"]["formula"]["read"] == "2 * Hk * D * e * ceil(T / page_size)"
    assert shown["refine"]["formula"]["build"] == "base.build"
    assert (
        "what the model's own indexer reads is not counted"
        in shown["native"]["formula"]["unstated"]
    )
    columns = {"index", "read", "operations", "build", "append"}
    assert all({*row["formula"]} in (columns, {"unstated"}) for row in shown.values())
    combinators = {name for name, row in shown.items() if row["family"] == "combinator"}
    assert combinators == {"exact_group", "keep", "refine", "shared"}
    text = call("list", "indexers")[1]
    assert all(name in text for name in INDEXERS)


@pytest.mark.parametrize("kind", listing.KINDS)
def test_every_list_is_a_table_of_text(kind: str) -> None:
    table = listing.rows(kind)
    assert table
    assert len({tuple(row) for row in table}) == 1
    assert all(isinstance(x, str) for row in table for x in row.values())
    assert len(listing.markdown(table).splitlines()) == len(table) + 2


def test_doctor_says_what_is_here(call: Call) -> None:
    code, out, err = call("doctor", "--json")
    findings = {row["name"]: row for row in json.loads(out)}
    assert findings["torch"]["value"] == torch.__version__
    assert (code == 1) == any(row["problem"] for row in findings.values())
    assert (code == 1) == bool(err)


def test_doctor_finds_what_is_broken() -> None:
    assert "both" in doctor._faiss("1.15.1", "1.15.1").problem
    assert doctor._triton("2.13.0+cpu", "3.6.0").problem
    assert not doctor._triton("2.13.0+cpu", "3.7.1").problem
    assert not doctor._triton("2.13.0", "").problem
    assert doctor._disk(2**20).problem
    assert not doctor._disk(2**40).problem
    assert doctor._package("no-such-distribution", needed=True).problem
    assert not doctor._package("no-such-distribution", needed=False).problem
    assert doctor._release("5.23.0") == (5, 23)
    assert doctor._release("2.13.0+cpu") == (2, 13)
    assert doctor._release("3") == (3, 0)


def test_doctor_fails_when_something_is_broken(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LEAST_DISK", 2**80)
    code, _, err = call("doctor")
    assert (code, err.count("\n")) == (1, 1)
    assert "free disk" in err


def test_the_installed_script_leaves_with_the_code() -> None:
    code = "import sys; sys.argv = ['topkit', 'lisst']; from topkit.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("topkit: ")


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`"),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
        MemoryError(),
    ],
)
def test_whoever_runs_out_of_memory_is_told(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    """A graph that finds no room on a GPU raises what torch raises of any fault of CUDA."""

    def body() -> None:
        raise error

    assert exit_code(body) == 2
    assert "out of memory; lower --batch-size" in capsys.readouterr().err


def test_another_fault_of_cuda_is_no_lack_of_memory(capsys: pytest.CaptureFixture[str]) -> None:
    def body() -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    assert exit_code(body) == 70
    assert "out of memory" not in capsys.readouterr().err

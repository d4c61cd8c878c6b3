"""Models of the hub: from a filled cache without a network, and fetched from a server that talks as it does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from hub_cache import fill, forget
from tiny import READS_REFERENCE, folder, tiny
from topkit import evaluate
from topkit.errors import InputError
from topkit.experiments.model.hub import HubModel
from topkit.experiments.model.load import load, origin_of
from topkit.experiments.model.source import named, source_of

NAME = "tiny-lab/Tiny-0.1B"


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[Path]:
    """Two models that differ in their weights."""
    place = tmp_path_factory.mktemp("models")
    return [folder(place / str(n), tiny("llama", n, **READS_REFERENCE)) for n in range(2)]


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    # Of workers, which read them as they begin.
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "hub"


def same(one, other) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return all(torch.equal(x, theirs[name]) for name, x in ours.items())


def test_what_the_cache_holds_is_loaded_by_its_id(models, cache) -> None:
    old = fill(cache, NAME, models[1], branch=None)
    now = fill(cache, NAME, models[0])
    fill(cache, "tiny-lab/other", models[1], branch="v1.0/rc")
    cases = [
        (NAME, models[0], now),
        (f"{NAME}@main", models[0], now),
        (f"{NAME}@{old}", models[1], old),
        ("tiny-lab/other@v1.0/rc", models[1], old),
    ]
    for name, path, commit in cases:
        model, tokenizer = load(name)
        assert same(model, load(path)[0])
        assert origin_of(model) == {"revision": commit}
        assert (named(name), model.config.name_or_path) == (name, name)
        assert tokenizer("a b")["input_ids"] == load("reference")[1]("a b")["input_ids"]


def test_a_folder_stands_before_the_hub_and_a_path_is_none_of_it(
    models, cache, tmp_path, monkeypatch
) -> None:
    fill(cache, NAME, models[0])
    monkeypatch.chdir(tmp_path)
    assert source_of(NAME).revision
    with pytest.raises(InputError, match="no model at"):
        source_of(Path(NAME))
    Path(NAME).mkdir(parents=True)
    with pytest.raises(InputError, match="no model at"):  # meant as a path, and no model
        source_of(NAME)
    for file in models[1].iterdir():
        (Path(NAME) / file.name).symlink_to(file)
    assert source_of(NAME) == source_of(Path(NAME))
    assert source_of(NAME).revision is None


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tiny-lab/Tinny-0.1B", "did you mean tiny-lab/Tiny-0.1B?"),
        ("tiny-lab/tiny-0.1b", "did you mean tiny-lab/Tiny-0.1B?"),
        ("Tiny-lab/Tiny-0.1", "did you mean tiny-lab/Tiny-0.1B?"),
        (f"{NAME}@maim", "the cache holds its revision main; unset it"),
        ("owner/nothing-alike", "HF_HUB_OFFLINE"),
        ("smolm2", "did you mean smollm2?"),
        ("refrence", "did you mean reference?"),
    ],
)
def test_a_typing_error_is_one_line_with_the_nearest_name(models, cache, name, said) -> None:
    fill(cache, NAME, models[0])
    with pytest.raises(InputError, match=said.replace("?", r"\?")) as error:
        load(name)
    assert "\n" not in str(error.value)


def test_what_is_there_in_part_is_not_there(models, cache) -> None:
    commit = fill(cache, NAME, models[0])
    snapshot = cache / f"models--{NAME.replace('/', '--')}" / "snapshots" / commit
    (snapshot / "model.safetensors").resolve().unlink()
    with pytest.raises(InputError, match=r"without model\.safetensors, and HF_HUB_OFFLINE is set"):
        load(NAME)
    forget(cache, NAME)
    fill(cache, NAME, models[0])
    (snapshot / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"without tokenizer\.json"):
        load(NAME)


def test_weights_in_shards_are_whole_with_the_last_of_them(models, cache, tmp_path) -> None:
    parts = tmp_path / "parts"
    parts.mkdir()
    for file in models[0].iterdir():
        if file.suffix != ".safetensors":
            (parts / file.name).write_bytes(file.read_bytes())
    weights = load_file(models[0] / "model.safetensors")
    names = sorted(weights)
    where = {name: f"model-0000{1 + n % 2}-of-00002.safetensors" for n, name in enumerate(names)}
    for shard in set(where.values()):
        save_file(
            {n: weights[n] for n in names if where[n] == shard}, parts / shard, {"format": "pt"}
        )
    index = {"metadata": {"total_size": 0}, "weight_map": where}
    (parts / "model.safetensors.index.json").write_text(json.dumps(index))
    commit = fill(cache, NAME, parts)
    assert same(load(NAME)[0], load(models[0])[0])
    last = cache / f"models--{NAME.replace('/', '--')}" / "snapshots" / commit / max(where.values())
    last.unlink()
    with pytest.raises(InputError, match=f"without {last.name}"):
        load(NAME)


@pytest.mark.slow
def test_a_run_holds_its_revision(models, cache, tmp_path) -> None:
    old = fill(cache, NAME, models[0])
    where: Any = dict(lengths=300, samples=1, out=tmp_path / "run", dense=True, observe=False)
    evaluate(NAME, "niah-single", jobs=2, **where)
    run = json.loads((tmp_path / "run/run.json").read_text())
    assert (run["identity"]["revision"], run["asked"][0]["model"]) == (old, NAME)
    assert evaluate.plan(f"{NAME}@{old}", "niah-single", **where).done == 1
    fill(cache, NAME, models[1])  # the branch moves on
    with pytest.raises(InputError, match=r"holds another run \(weights, revision differ\)"):
        evaluate.plan(NAME, "niah-single", **where)
    from topkit.experiments.study.report import write_report

    assert f"The model is {NAME}, revision {old}." in write_report(tmp_path / "run").read_text()


@pytest.mark.slow
def test_the_console_script_reads_the_cache_of_hf_home(models, tmp_path) -> None:
    commit = fill(tmp_path / "hub", NAME, models[0])
    words = "--task niah-single --length 300 --samples 1 --out run".split()
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HUB_CACHE", None)
    run = [sys.executable, "-m", "topkit", "capture"]
    done = subprocess.run(
        [*run, NAME, *words], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr
    origin = json.loads((tmp_path / "run/manifest.json").read_text())["origin"]
    assert (origin["model"], origin["revision"]) == (NAME, commit)
    done = subprocess.run(
        [*run, "tiny-lab/Tiny-1B", *words],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    assert (done.returncode, done.stderr.count("\n"), done.stdout) == (2, 1, "")
    assert f"did you mean {NAME}?" in done.stderr


@pytest.mark.parametrize(
    "text", ["", "a", "a/b/c", "/a/b", "./a", "../a/b", "a/b@", "a/..", "a--b/c", "a/b.git", "é/b"]
)
def test_what_is_no_id_of_the_hub(text: str) -> None:
    assert HubModel.of(text) is None


class Hub(BaseHTTPRequestHandler):
    """The part of the hub's interface that its client fetches a model through."""

    repositories: dict[str, Path] = {}
    commit = "c" * 40

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = self.path.partition("?")[0].strip("/")
        api = path.removeprefix("api/models/")
        name = "/".join((api if api != path else path).split("/")[:2])
        rest = (api if api != path else path).split("/")[2:]
        model = self.repositories.get(name)
        if model is None:
            self.say(404, b"{}", body, {"X-Error-Code": "RepoNotFound"})
        elif api == path:
            self.say(200, (model / rest[-1]).read_bytes(), body, {"ETag": f'"{rest[-1]}"'})
        elif rest and rest[-1] not in ("main", self.commit):
            self.say(404, b"{}", body, {"X-Error-Code": "RevisionNotFound"})
        else:
            files = sorted(model.iterdir())
            info = {
                "id": name,
                "sha": self.commit,
                "siblings": [{"rfilename": f.name} for f in files],
            }
            tree = [
                {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": f.name}
                for f in files
            ]
            self.say(200, json.dumps(tree if "tree" in rest else info).encode(), body)

    def say(
        self, code: int, content: bytes, body: bool, headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(code)
        about = {
            "X-Repo-Commit": self.commit,
            "Content-Length": str(len(content)),
            **(headers or {}),
        }
        for key, value in about.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def hub(models) -> Iterator[str]:
    Hub.repositories = {NAME: models[0]}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.slow
def test_what_the_cache_lacks_is_fetched_once(hub, models, tmp_path) -> None:
    code = """
import sys, topkit
from topkit.experiments.model.load import origin_of
for name in sys.argv[1:]:
    try:
        model, _ = topkit.load(name)
        print(origin_of(model)["revision"], float(sum(x.double().sum() for x in model.state_dict().values())))
    except topkit.InputError as error:
        print(error)
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_ENDPOINT": hub, "NO_PROXY": "*"}
    for name in ("HF_HUB_OFFLINE", "HF_HUB_CACHE", "TRANSFORMERS_OFFLINE"):
        environment.pop(name, None)

    def run(**more: str) -> list[str]:
        names = [NAME, "tiny-lab/Tiny-0.1", f"{NAME}@v2"]
        done = subprocess.run(
            [sys.executable, "-c", code, *names],
            capture_output=True,
            text=True,
            env={**environment, **more},
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        return done.stdout.splitlines()

    total = float(sum(x.double().sum() for x in load(models[0])[0].state_dict().values()))
    there, unknown, moved = run()
    assert there.split() == [Hub.commit, str(total)]
    assert "there is no model tiny-lab/Tiny-0.1 here or on the hub" in unknown
    assert f"did you mean {NAME}?" in unknown
    assert moved == f"{NAME} has no revision 'v2' on the hub"
    # Once in the cache, nobody is asked for it again.
    assert run(HF_ENDPOINT="http://127.0.0.1:9")[0] == there
    assert run(HF_HUB_OFFLINE="1")[0] == there

"""The grammar: what is printed parses back, in every form, and what cannot be read says why."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import topkit
from topkit.cli.commands import app
from topkit.cli.exits import run
from topkit.errors import InputError
from topkit.experiments.study.curve import Curve
from topkit.experiments.tasks import TASKS, Task, make_task, task_name
from topkit.grammar import Named, flat, full, quoted, short
from topkit.grammar.values import hints
from topkit.indexers import INDEXERS, Combinator, Indexer, keep, sign
from topkit.indexers.spec import parse, recorded, unknown

HERE = __name__


@dataclass(frozen=True)
class odd(Indexer):
    """A recipe whose parameters are of every type."""

    text: str = ""
    maybe: str | None = None
    file: Path = Path("weights")
    number: float = 0.5
    bound: float | None = None
    whole: int = 1
    flag: bool = False
    how: Literal["mean", "max"] = "mean"
    layers: tuple[int, ...] = ()
    other: Any = None


@dataclass(frozen=True)
class around(Combinator):
    """A recipe around another, and perhaps a second."""

    text: str = ""
    second: Indexer | None = None


@dataclass(frozen=True)
class Said(Task):
    """A task whose parameters are texts and files."""

    file: str = ""
    share: float = 1


@dataclass(frozen=True)
class failing(Indexer):
    """A recipe whose own code fails, in one manner or another."""

    how: str = "ZeroDivisionError"

    def __post_init__(self) -> None:
        raise {"exit": SystemExit, "key": KeyError}.get(self.how, ZeroDivisionError)("at home")


class bare(Indexer):
    """A class without the decorator."""


@dataclass(unsafe_hash=True)
class thawed(bare):
    """A dataclass whose parameters may change."""

    r: int = 1


def __getattr__(name: str) -> object:
    if name == "lazily":
        raise OSError("gone")
    raise AttributeError(name)


TEXTS = st.text(max_size=12) | st.sampled_from(
    [
        "/my folder/w.safetensors",
        r"C:\models\new, old\w.safetensors",
        "C:/w",
        "o'neil's",
        'say "x"',
        "a,b=c",
        "f(x)",
        ")",
        "über/мир/鍵",
        "12",
        "-1",
        "1e5",
        "inf",
        "nan",
        "None",
        "null",
        "true",
        "False",
        "sign",
        "sign()",
        "...",
        " x ",
        "\\",
        "\n",
        "\x00",
        "\udc80",
        "mine.selectors:x",
        "~/a+b%20@c",
    ]
)
NUMBERS = st.floats(allow_nan=False)
OWN = st.builds(
    odd,
    text=TEXTS,
    maybe=st.none() | TEXTS,
    file=st.builds(Path, TEXTS.filter(lambda text: "\x00" not in text)),
    number=NUMBERS | st.integers(-3, 3) | st.builds(np.float64, NUMBERS),
    bound=st.none() | NUMBERS,
    whole=st.integers() | st.builds(np.int64, st.integers(-3, 3)),
    flag=st.booleans(),
    how=st.sampled_from(["mean", "max"]),
    layers=st.lists(st.integers(), max_size=3).map(tuple),
    other=st.none() | st.booleans() | st.integers() | NUMBERS | TEXTS,
)
WORDS = st.sampled_from(
    "int8 int4 int2 fp8_e4m3 pow2 float boundary uniform next none stream step layer group head max sum "
    "mean given reference fp8".split()
)


# But for what reads a file that must be there.
DRAWN = [name for name in INDEXERS if name not in ("indices", "hashattention")]  # of files


def registered(inner: st.SearchStrategy[Indexer]) -> st.SearchStrategy[Indexer]:
    """topkit's own recipes, with parameters as their types allow, around `inner`."""
    return st.sampled_from(DRAWN).flatmap(lambda name: recipe_of(INDEXERS[name], inner))


def recipe_of(
    recipe: type[Indexer], inner: st.SearchStrategy[Indexer]
) -> st.SearchStrategy[Indexer]:
    kinds: dict[Any, st.SearchStrategy[Any]] = {
        int: st.integers(1, 64),
        float: st.floats(0.01, 1),
        bool: st.booleans(),
        str: WORDS,
        Indexer: inner,
        tuple[int, ...]: st.sets(st.integers(0, 30), max_size=3).map(sorted).map(tuple),
        int | float: st.integers(1, 64) | st.floats(0.01, 0.99),
        int | None: st.none() | st.integers(1, 64),
    }
    drawn = {name: kinds.get(hint, st.nothing()) for name, hint in hints(recipe).items()}

    def built(values: dict[str, Any]) -> Indexer:
        made = recipe(**{f.name: values[f.name] for f in fields(recipe) if _bare(f)})  # type: ignore[arg-type]
        for name, value in values.items():
            try:
                made = replace(made, **{name: value})  # type: ignore[type-var]
            except InputError:
                continue  # a word that is another parameter's
        return made

    return st.fixed_dictionaries(drawn).filter(lambda v: _stands(recipe, v)).map(built)


def _bare(field: Any) -> bool:
    return type(field.default).__name__ == "_MISSING_TYPE"


def _stands(recipe: type[Indexer], values: dict[str, Any]) -> bool:
    """Whether the recipe takes such a base."""
    try:
        recipe(**{f.name: values[f.name] for f in fields(recipe) if _bare(f)})  # type: ignore[arg-type]
    except InputError:
        return False
    return True


def nested(inner: st.SearchStrategy[Indexer]) -> st.SearchStrategy[Indexer]:
    base = inner.filter(lambda indexer: not (indexer.traits().weighted or indexer.traits().rest))
    own = st.builds(around, base, text=TEXTS, second=st.none() | inner)
    return registered(inner) | own


RECIPES = st.recursive(
    st.sampled_from([parse(name) for name in ("exact", "sign", "random", "quest")]) | OWN,
    nested,
    max_leaves=4,
)


def forms(thing: Named) -> list[str]:
    return [full(thing), repr(thing), short(thing), flat(thing)]


@settings(max_examples=400, deadline=None)
@given(RECIPES)
def test_an_indexer_parses_back_from_every_form(indexer: Indexer) -> None:
    for text in forms(indexer):
        again = parse(text)
        assert again == indexer and hash(again) == hash(indexer), text
        assert forms(again) == forms(indexer)  # equal recipes have one name


@pytest.mark.parametrize("name", DRAWN)
def test_every_registered_recipe_is_drawn(name: str) -> None:
    @settings(max_examples=5, deadline=None, database=None)
    @given(recipe_of(INDEXERS[name], st.sampled_from([sign(), parse("exact")])))
    def drawn(indexer: Indexer) -> None:
        assert type(indexer) is INDEXERS[name]
        assert [parse(text) for text in forms(indexer)] == [indexer] * 4

    drawn()


TASK_VALUES = {
    "questions": st.integers(1, 9),
    "distractors": st.integers(0, 99),
    "digits": st.integers(0, 20),
    "depth": st.floats(0, 1) | st.just(-1),
    "wording": st.sampled_from(["any", "trained", "held-out", "code"]) | TEXTS,
    "form": st.sampled_from(["plain", "chat", "fewshot"]),
    "hops": st.integers(1, 4),
    "words": st.integers(1, 200),
    "tokens": st.integers(1, 200),
}


@st.composite
def tasks(draw: st.DrawFn) -> Task:
    if draw(st.booleans()):
        return Said(wording=draw(TEXTS), file=draw(TEXTS), share=draw(NUMBERS | st.integers(0, 3)))
    kind = draw(st.sampled_from(list(TASKS.values())))
    names = [f.name for f in fields(kind) if kind.__name__ != "Books" or f.name != "questions"]
    return kind(
        **{n: draw(TASK_VALUES.get(n, st.integers(1, 9))) for n in names if draw(st.booleans())}
    )


@settings(max_examples=300, deadline=None)
@given(tasks())
def test_a_task_parses_back_from_every_form(task: Task) -> None:
    assert [make_task(text) for text in forms(task)] == [task] * 4
    assert task_name(task) == flat(task) == task_name(make_task(repr(task)))


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    with suppress(InputError):
        assert isinstance(parse(text), Indexer)


def test_what_tables_of_0_1_hold_parses() -> None:
    for text in (
        "degraded(precision=0.6, miss='boundary', fill='next', persist='step', per='head')",
        "keep(base=sign(), sink=2, window=4)",
        "shared(base=quantized(dtype='int8', hadamard=False, scale='float'), per='group', how='mean')",
        "lightning(weights='reference', dtype='fp8')",
    ):
        assert repr(parse(text)) == text
    assert task_name(make_task("niah-multikey:wording=trained")) == "niah-multikey:wording=trained"


@pytest.mark.parametrize(
    ("text", "task"),
    [
        ("niah-multikey", "niah-multikey"),
        ("niah-multikey()", "niah-multikey"),
        ("niah-multikey(distractors=4, wording='trained')", None),
        (" niah-multikey : wording=trained , distractors=4", None),
        ("niah-multikey:wording='trained',distractors=4", None),
        ("niah-multikey:4", "niah-multikey"),
    ],
)
def test_a_task_is_written_in_either_form(text: str, task: str | None) -> None:
    named = "niah-multikey:wording=trained,distractors=4" if task is None else task
    assert task_name(make_task(text)) == named


def test_a_class_of_a_module_is_named_by_it() -> None:
    inner = f"{HERE}:odd(text='x', maybe=None, file='weights', number=0.5, bound=None, whole=1, "
    assert repr(odd("x")).startswith(inner)
    assert short(odd("x")) == f"{HERE}:odd(text=x)"
    assert flat(odd("x")) == f"{HERE}:odd:text=x"
    assert task_name(Said(file="a b")) == f"{HERE}:Said:file='a b'"
    for text in (f"{HERE}:odd", f"{HERE}:odd()", f"{HERE}:odd:", f" {HERE} : odd ( ) "):
        assert parse(text) == odd()
    assert parse(f"keep({HERE}:odd(whole=2), sink=2)") == keep(odd(whole=2), sink=2)
    assert parse(f"keep:base={HERE}:odd:whole=2,sink=2") == keep(odd(whole=2), sink=2)
    assert parse("topkit.indexers.sign:sign") == sign()


@pytest.mark.parametrize(
    "path", [r"C:\a\b.bin", "/a b/c", "/o'neil/x", "x(1)/y", "über", "12", "a=b"]
)
def test_a_path_needs_quotes_for_its_commas_alone(path: str) -> None:
    for text in (f"{HERE}:Said(file={path}, share=2)", f"{HERE}:Said:file={path},share=2"):
        assert make_task(text) == Said(file=path, share=2)
    assert make_task(f"{HERE}:Said:file={f'{path},x'!r},share=2") == Said(file=f"{path},x", share=2)


def test_values_are_read_by_the_type_of_their_parameter() -> None:
    assert parse(f"{HERE}:odd:text=sign,maybe=null,bound=inf,layers=[0,3],flag=TRUE") == odd(
        "sign", None, bound=float("inf"), layers=(0, 3), flag=True
    )
    assert parse(f"{HERE}:around(sign, second=quest:page_size=4)") == around(
        sign(), second=parse("quest(page_size=4)")
    )
    assert parse("degraded(1)") == parse("degraded(1.0)")
    assert repr(parse("degraded(1)")) == repr(parse("degraded(1.0)"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{HERE}:od", f"{HERE} has no indexer 'od'; did you mean 'odd'"),
        (f"{HERE}:bare", r"bare is no indexer: .* under @dataclass\(frozen=True\); got .<class"),
        (f"{HERE}:thawed", r"thawed is no indexer: .* under @dataclass\(frozen=True\)"),
        (f"{HERE}:failing", f"indexer {HERE}:failing cannot be made: ZeroDivisionError: at home"),
        (f"keep({HERE}:failing(key))", f"{HERE}:failing cannot be made: KeyError: 'at home'"),
        (f"{HERE}:failing:exit", f"{HERE}:failing cannot be made: SystemExit: at home"),
        (f"{HERE}:lazily", f"{HERE} failed on 'lazily': OSError: gone"),
        (f"{HERE}:Said", "Said is no indexer: expected a class derived from topkit.indexers"),
        (f"{HERE}:HERE", "HERE is no indexer"),
        (f"{HERE}:odd(whol=1)", "odd has no parameter 'whol'; did you mean 'whole'"),
        (f"{HERE}:odd(whole=x)", "odd: whole must be int; got 'x'"),
        (f"{HERE}:odd(whole=True)", "odd: whole must be int; got True"),
        (f"{HERE}:odd(how=min)", "odd: how must be .*; got 'min'"),
        (f"{HERE}:odd(text='a)", "a quote is not closed"),
        (f"{HERE}:odd(text='a'b)", "cannot read text .*close its quotes"),
        (f"{HERE}:odd(text=(a)", "a bracket is not closed"),
        (f"{HERE}:odd(text=a", "does not end with the bracket"),
        (f"{HERE}:odd(whole)", "whole stands without a value; write whole=VALUE"),
        ("quantised:int4", "unknown indexer 'quantised'; did you mean 'quantized'"),
        (
            "no_such_module:x",
            "no module 'no_such_module' to import the indexer 'x' from; install it",
        ),
        ("topkit.no_such:x", "no module 'topkit.no_such'"),
        ("keep(" * 60 + "sign" + ")" * 60, "nested too deeply"),
        ("keep:base=" * 5000 + "sign", "nested too deeply"),
        ("sign() ()", "closed before it opens|no list of parameters"),
        ("sign() x", "does not end with the bracket"),
        ("sign x", "'x' after the name is no list of parameters"),
    ],
)
def test_what_cannot_be_read_says_why(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        parse(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("niah-multikeys", "unknown task 'niah-multikeys'; did you mean 'niah-multikey'"),
        ("niah-multikey:distractor=3", "no parameter 'distractor'; did you mean 'distractors'"),
        ("niah-multikey:distractors=x", "niah-multikey: distractors must be int; got 'x'"),
        ("niah-multikey(depth=True)", "niah-multikey: depth must be float; got True"),
        ("niah-multikey:distractors", "distractors stands without a value"),
        ("sign", "unknown task 'sign'"),
        ("topkit.indexers.sign:sign", "sign is no task"),
        ("", "expected a task such as niah-multikey:distractors=4"),
    ],
)
def test_tasks_are_checked_as_indexers_are(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        make_task(text)


def test_parameters_of_python_are_checked_too() -> None:
    assert make_task("niah-multikey:digits=3", distractors=4) == make_task(
        "niah-multikey(digits=3, distractors=4)"
    )
    for values, said in (
        ({"wording": 3}, "wording must be str; got 3"),
        ({"digits": 4}, "'digits' is given twice"),
        ({"digit": 4}, "did you mean 'digits'"),
    ):
        with pytest.raises(InputError, match=said):
            make_task("niah-multikey:digits=3", **values)


def test_a_class_without_a_module_to_import_it_from_is_shown_as_it_is() -> None:
    @dataclass(frozen=True)
    class local(odd):
        pass

    name = repr(keep(local(), sink=2))
    assert "<locals>.local(" in name
    assert recorded(name) == unknown(name)
    assert forms(recorded(name)) == [name] * 4
    assert recorded("sign()") == sign()


def test_a_main_module_has_one_name_in_every_process() -> None:
    code = (
        "from dataclasses import dataclass\nfrom topkit.indexers import Indexer\n"
        "@dataclass(frozen=True)\nclass mine(Indexer):\n    dims: int = 4\n"
        "from topkit.indexers.spec import parse\nassert parse(repr(mine(5))) == mine(5)\n"
        "print(repr(mine()))\nmine.__module__ = '__mp_main__'\nprint(repr(mine()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["__main__:mine(dims=4)"] * 2


# Plain scalars, one a line; those marked so need quotes.
YAML = """
- niah-multikey:distractors=4
- niah-multikey(distractors=4, wording='trained')
- degraded(0.8)
- keep(sign(), sink=4)
- quantized:dtype=int4,hadamard=true
- mine.selectors:lowrank(r=16)
- lightning:weights=C:\\models\\w.safetensors
- exact
- 1%
- [exact, degraded(0.8), "keep(sign(), sink=4)", quantized:dtype=int4, "quantized:dtype=int4,hadamard=true"]
- "ruler:file='a: b.jsonl'"
"""


def test_yaml_gives_the_texts_as_they_stand() -> None:
    lines = [line[2:] for line in YAML.strip().splitlines()]
    read = yaml.safe_load(YAML)
    assert read[:9] == lines[:9]
    assert read[9] == [
        "exact",
        "degraded(0.8)",
        "keep(sign(), sink=4)",
        "quantized:dtype=int4",
        "quantized:dtype=int4,hadamard=true",
    ]
    assert read[10] == "ruler:file='a: b.jsonl'"
    # What goes wrong without quotes, as docs/grammar.md says.
    assert yaml.safe_load("[keep(sign(), sink=4)]") == ["keep(sign()", "sink=4)"]
    assert yaml.safe_load("[keep(sign(), sink=4)]") != ["keep(sign(), sink=4)"]
    assert yaml.safe_load("- quantized: dtype=int4") == [{"quantized": "dtype=int4"}]


def test_python_yaml_and_flags_take_what_the_plan_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def plan(*words: str) -> dict[str, Any]:
        common = ["evaluate", "reference", "--length", "512", "--samples", "1", "-k", "8"]
        assert (
            run(app, [*common, "--out", str(tmp_path / "out"), "--dry-run", "--json", *words]) == 0
        )
        return json.loads(capsys.readouterr().out)[0]

    file = tmp_path / "asked.yaml"
    file.write_text(
        "task: [niah-single, niah-multikey:distractors=4]\n"
        "indexer:\n  - degraded(0.8)\n  - keep:base=quest:page_size=4,sink=2\n"
    )
    first = plan("--config", str(file))
    tasks = first["tasks"]
    indexers = {cell["indexer"] for cell in first["cells"]} - {"dense"}
    assert tasks == ["niah-single", "niah-multikey:distractors=4"] and len(indexers) == 2
    flags = [("--task", task) for task in tasks] + [("--indexer", x) for x in indexers]
    assert plan(*(word for flag in flags for word in flag)) == first
    file.write_text(yaml.safe_dump({"task": tasks, "indexer": sorted(indexers)}))
    assert plan("--config", str(file)) == first
    assert [task_name(make_task(task)) for task in tasks] == tasks


def test_a_long_path_in_a_task_makes_no_long_file_name() -> None:
    task = task_name(Said(file="/a" * 200))
    assert curve_of(task).slug != curve_of(task + "b").slug
    assert max(len(curve_of(task).slug), len(curve_of(task + "b").slug)) <= 121


def curve_of(task: str) -> Curve:
    """A curve of which nothing but the name matters."""
    none = np.zeros(0)
    return Curve(task, 512, "question", "score", (), (), none, none, none, {}, {}, 1.0, {})


def test_hints_are_one_word_of_a_shell() -> None:
    assert quoted(parse("keep(sign(), sink=4)")) == "'keep(sign(), sink=4)'"
    assert quoted("quantized:dtype=int4") == "quantized:dtype=int4"


def test_python_takes_every_form() -> None:
    assert topkit.indexer("keep:base=sign,sink=4") == topkit.indexer(keep(sign(), sink=4))


def test_the_page_reads_as_it_says() -> None:
    page = (Path(__file__).parents[2] / "docs" / "grammar.md").read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert yaml.safe_load(blocks[0]) == {
        "task": ["niah-single", "niah-multikey:distractors=4"],
        "indexer": [
            "degraded(0.8)",
            "keep(sign(), sink=4)",
            "quantized:dtype=int4,hadamard=true",
            "mine.selectors:lowrank(r=16)",
            r"lightning:weights=C:\models\w.safetensors",
        ],
    }
    spans = re.findall(r"`([^`\n]+)`", page)
    own = {text for text in spans if re.match(r"(keep|sign|niah-multikey)\b(?!.*mine)", text)}
    assert len(own) == 5
    for text in own:
        assert make_task(text) if text.startswith("niah") else parse(text)
    for text in {text for text in spans if text.startswith("lightning")}:
        with pytest.raises(InputError, match=r"no weights at ['\"](/my models/o.neil|C:)"):
            parse(text)

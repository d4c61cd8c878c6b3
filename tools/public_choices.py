"""Record what public code chooses of drawn tensors, as small numbers: tests/indexers/public/METHOD.json.

    python tools/public_choices.py METHOD CHECKOUT COMMIT

METHOD is a file of tools/public, which names the repository; CHECKOUT, a folder with its files at COMMIT. Nothing
of the code is kept: its names, what it was set to and what it chose are.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from public.case import Case
from public.checkout import Checkout
from safetensors.torch import load_file

OUT = Path(__file__).parents[1] / "tests" / "indexers" / "public"
# What a method's file may say: what stood in for a part, where the code departs from the paper, and the recipe's
# share of each case's choices then.
ABOUT = ("note", "departs", "agreement")
DRAWN = 3  # numbers of the queries that are written down


def record(method: str, checkout: Path, commit: str) -> dict[str, Any]:
    """The document of a method."""
    own: Any = importlib.import_module(f"public.{method}")
    about = {name: getattr(own, name.upper(), "") for name in ABOUT}
    return {
        "method": method,
        "repository": own.REPOSITORY,
        "commit": commit,
        "code": own.CODE,
        "torch": torch.__version__,
        "command": f"python tools/public_choices.py {method} CHECKOUT {commit}",
        **{name: said for name, said in about.items() if said},
        "cases": [_case(own, Checkout(checkout), case) for case in own.CASES],
    }


def _case(own: Any, checkout: Checkout, case: Case) -> dict[str, Any]:
    tensors = case.tensors()
    drawn = [round(float(x), 4) for x in tensors["queries"].flatten()[:DRAWN]]
    with tempfile.TemporaryDirectory() as folder:
        path = case.written(Path(folder))
        tensors |= load_file(path) if path else {}
    with torch.no_grad():
        choices = own.choices(checkout, case, tensors)
    return {"case": case.document(), "drawn": drawn, "choices": choices}


def written(document: dict[str, Any]) -> str:
    """JSON, each choice on a line."""
    text = json.dumps({**document, "cases": []}, indent=1)
    cases = ",\n".join(_line(case) for case in document["cases"])
    return text.replace('"cases": []', f'"cases": [\n{cases}\n ]') + "\n"


def _line(case: dict[str, Any]) -> str:
    choices = ",\n".join(f"   {json.dumps(chosen)}" for chosen in case["choices"])
    asked, drawn = json.dumps(case["case"]), json.dumps(case["drawn"])
    return f'  {{"case": {asked},\n   "drawn": {drawn}, "choices": [\n{choices}]}}'


def main() -> None:
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    method, checkout, commit = sys.argv[1:]
    OUT.mkdir(exist_ok=True)
    path = OUT / f"{method}.json"
    path.write_text(written(record(method, Path(checkout), commit)))
    print(path)


if __name__ == "__main__":
    main()

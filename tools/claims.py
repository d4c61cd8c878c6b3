"""Write docs/claims.md from results/: what was published, what was asked of it here, and what came.

python tools/claims.py [--check]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import exact_claims
import fp4_claims
import law_claims
import precision_claims
import trained_claims
from claimed import NOT_RUN, Answer, Claim

from topkit.cli.listing import markdown
from topkit.experiments.study.blocks import as_markdown

PAGE = Path(__file__).parents[1] / "docs" / "claims.md"
INTRO = """# Claims

What others published about Top-k and sparse attention, and what topkit's own results say to it. Each section names the
runs in `results/` that its numbers come from, and the commands that repeat them; brackets are 95 % intervals
([statistics.md](statistics.md)). `python tools/claims.py` makes this page.

- *Supported*: the intervals show it, on what was asked. *Not supported*: they show the contrary. *Undecided*: neither.
- Two small models, and of the law a third, were asked for what stands in their context. A verdict is about them, not about a paper's own models.
- BOOKS in a command is the folder of the books that models train on ([studies.md](studies.md#studies-that-train)).
- HELMET and LongBench v2, on which arXiv 2512.03494 rests, were **not run**: their data could not be had. topkit reads
  their files: `topkit evaluate MODEL --task helmet:file=...` and `longbench-v2:file=...` ([tasks.md](tasks.md))."""

ABSTRACT = "arXiv 2512.03494, abstract"
# Those that the README names too.
EXACT_EQUALS_FROM_ANSWER = "Exact Top-k decoding equals full attention: from the answer on"
EXACT_EQUALS_FROM_QUESTION = "Exact Top-k decoding equals full attention: from the question on"
RISES = "Accuracy rises with the precision of Top-k: in one manner of loss"
TRAINED = "Training through Top-k makes a model do better with it"
ENTROPY = "Models trained through Top-k attend with less entropy"
CLAIMS = (
    Claim(
        EXACT_EQUALS_FROM_ANSWER,
        ABSTRACT,
        "keeping the keys of the largest scores while decoding does as well as full attention or better",
        "are the two equal within 0.01 at 5 % of the keys and more, the share from which summaries of the paper have "
        "them level, where all attention is full until the answer begins?",
        "topkit study exact-topk --out runs/exact-topk",
        partial(exact_claims.exact_equals, "answer"),
    ),
    Claim(
        EXACT_EQUALS_FROM_QUESTION,
        ABSTRACT,
        "keeping the keys of the largest scores while decoding does as well as full attention or better",
        "the same where the question is read by exact Top-k, too, and the haystack alone by full attention?",
        "topkit study exact-topk --out runs/exact-topk",
        partial(exact_claims.exact_equals, "question"),
    ),
    Claim(
        RISES,
        ABSTRACT,
        "task performance and the fidelity of the approximation go together",
        "does exact Top-k that loses fewer keys, in the same manner, score more?",
        "topkit study precision --out runs/precision",
        precision_claims.rises_in_a_manner,
    ),
    Claim(
        "Accuracy rises with the precision of Top-k: from method to method",
        ABSTRACT,
        "task performance and the fidelity of the approximation go together",
        "over families of real indexers, does accuracy rise with recall, and what predicts a family left out?",
        "topkit study precision --out runs/precision",
        precision_claims.rises_over_methods,
    ),
    Claim(
        TRAINED,
        ABSTRACT,
        "Top-k in training as in decoding makes Top-k decoding markedly better",
        "trained by exact Top-k attention, does a model answer more with few keys than one trained alike by full "
        "attention?",
        "topkit study topk-sft --corpus BOOKS --out runs/topk-sft",
        trained_claims.sft_helps,
    ),
    Claim(
        ENTROPY,
        ABSTRACT,
        "after training through Top-k the entropy of attention falls on downstream tasks",
        "does the entropy of attention at question and answer fall further with Top-k training than with dense?",
        "topkit study entropy --corpus BOOKS --out runs/entropy",
        trained_claims.entropy_falls,
    ),
    Claim(
        "Total variation is 1 - mass, KL is -ln mass",
        "arXiv 2512.07647, abstract",
        "the total variation between attention and its truncation is the tail's mass tau = 1 - exp(-KL), and the "
        "output's error is tau times the distance of the two parts' means",
        "do the fidelity columns obey this, for any selection?",
        "python -m pytest tests/fidelity/test_identities.py",
        precision_claims.identities,
    ),
    Claim(
        "Longer contexts tolerate more sparsity",
        "arXiv 2504.17768 (by a summary)",
        "the share of keys that can be left out grows with the length of the context",
        "does exact Top-k lose less at 1/32 of the keys in a longer context?",
        "topkit study smollm2 --task niah-single:wording=code --out runs/smollm2",
        exact_claims.longer_contexts,
    ),
    Claim(
        "One missed key breaks an answer",
        "arXiv 2605.06763, abstract",
        "leaving out even one critical key leads to sharp spikes of error",
        "of answers with a step whose key all reading heads missed, how many are right? (supported below 0.1)",
        "topkit study law --out runs/law",
        law_claims.missed_key,
    ),
    Claim(
        "Few heads need the full context",
        "RTPurbo, arXiv 2605.16928 (not read: as others cite it)",
        "most heads do with a local or sparse view, and few retrieve",
        "how many KV groups raise a poor indexer by being exact alone? (not supported above a quarter of them; that few do alone is no "
        "proof that few are needed, so it cannot be supported)",
        "topkit study heads --out runs/heads",
        exact_claims.heads,
    ),
    Claim(
        "Retrieval heads change from token to token",
        "arXiv 2602.11162, abstract",
        "heads that retrieve vary over the steps of an answer, and static ones cannot stand in for them",
        "in a dense pass, are the heads that read answers on average those of each step? (not supported above 0.9 of the "
        "steps, supported below)",
        "topkit study law --out runs/law",
        law_claims.retrieval_heads,
    ),
    Claim(
        "Index keys of fp4 cost GSM8K one to two points",
        "sglang#26209, sglang#27059 (descriptions)",
        "GSM8K 0.980 with fp8 index keys and 0.965 with fp4; 0.955 and 0.930 on another machine",
        "can numbers like these show a cost, and what would rows of fidelity have said?",
        "topkit study precision --out runs/precision",
        fp4_claims.fp4_keys,
    ),
    Claim(
        "The law of topkit: what the answer's key keeps of its weight predicts the answer",
        "topkit, `topkit/data/laws/answer-key.yaml`, registered before its run",
        "half of the steps go right where the reading heads leave the answer's key a weight of 0.27; a mean error above "
        "0.05 on unseen families refutes it",
        "does it hold on tasks, families and a model that it was not chosen on?",
        "topkit study law --out runs/law",
        law_claims.law,
    ),
)


def page() -> str:
    """The whole page: a table of verdicts, and a section a finding."""
    answered = [(claim, claim.answer()) for claim in CLAIMS]
    table = [
        {
            "finding": claim.name,
            "source": claim.source,
            "verdict": f"**{answer.verdict}**",
            "the whole study": f"`{claim.command}`" if claim.command else "no command yet",
        }
        for claim, answer in answered
    ]
    return "\n\n".join([INTRO, markdown(table), *(_section(*one) for one in answered)]) + "\n"


def _section(claim: Claim, answer: Answer) -> str:
    about = [
        f"- **Says** ({claim.source}): {claim.says}.",
        f"- **Asked**: {claim.asked}",
        *_on(answer.on),
    ]
    if answer.verdict == NOT_RUN and claim.command:
        about.append(f"- `{claim.command}` answers it; the study with `-quick` behind its name, where there is one, tries it in minutes.")  # fmt: skip
    found = as_markdown(answer.found, "figures")
    return "\n\n".join(
        filter(None, [f"## {claim.name}: {answer.verdict}", "\n".join(about), found])
    )


def _on(several: Sequence[str]) -> list[str]:
    """What was asked: on the line where it is one thing, else a list below it."""
    if len(several) < 2:
        return [f"- **On**: {''.join(several) or 'nothing yet'}."]
    return ["- **On**:", *(f"    - {one}" for one in several)]


def main() -> None:
    made = page()
    if "--check" in sys.argv:
        if not PAGE.exists() or PAGE.read_text() != made:
            raise SystemExit(f"{PAGE} is not current: run python tools/claims.py")
        return
    PAGE.write_text(made)


if __name__ == "__main__":
    main()

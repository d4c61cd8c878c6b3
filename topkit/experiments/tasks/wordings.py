"""How facts about things are worded, and the questions about them."""

# pyright: strict
from __future__ import annotations

from dataclasses import dataclass

from topkit.experiments.tasks.base import HELD_OUT, TRAINED
from topkit.experiments.tasks.prompt import Question


@dataclass(frozen=True)
class Wording:
    """How a fact, a question about it and its answer's start are worded; {a}: attribute, {key}: thing."""

    attribute: str
    fact: str
    ask: str
    begin: str
    kind: str = TRAINED

    def question(self, key: str, value: str) -> Question:
        """The question about a thing, and its answer."""
        ask, begin = (text.format(a=self.attribute, key=key) for text in (self.ask, self.begin))
        facts = (self.said(key, value),)
        return Question(ask + begin, f" {value}", (value,), prefix=begin, facts=facts)

    def said(self, key: str, value: str) -> str:
        """The fact about a thing."""
        return self.fact.format(a=self.attribute, key=key, value=value)


WORDINGS = {
    "code": Wording(
        "access code",
        "The {a} of the {key} is {value}.",
        "\nWhat is the {a} of the {key}?",
        " The {a} of the {key} is",
    ),
    "price": Wording(
        "price",
        "For the {key} the {a} was set at {value}.",
        "\nTell me the {a} of the {key}.",
        " For the {key} the {a} was set at",
    ),
    "weight": Wording(
        "weight",
        "It was noted that the {key} had a {a} of {value}.",
        "\nHow heavy was it?",
        " The {key} had a {a} of",
    ),
    "serial": Wording(
        "serial number",
        "Whoever asks for the {key} must give the {a} {value}.",
        "\nWhich {a} must be given for the {key}?",
        " Answer:",
    ),
    "distance": Wording(
        "distance",
        "From here to the {key} the {a} is {value} steps.",
        "\nHow far is it?",
        " From here to the {key} the {a} is",
    ),
    "account": Wording(
        "account",
        "The {key} keeps its money in {a} {value}.",
        "\nWhere does the {key} keep its money?",
        " The {key} keeps its money in {a}",
    ),
    "reward": Wording(
        "reward",
        "Anyone who returns the {key} will earn a {a} of {value} coins.",
        "\nHow large is the {a} for the {key}?",
        " Answer:",
        HELD_OUT,
    ),
    "record": Wording(
        "year",
        "Old papers name for the {key} a {a} of {value}.",
        "\nSay which {a} old papers name.",
        " For the {key} a {a} of",
        HELD_OUT,
    ),
}

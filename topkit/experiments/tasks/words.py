"""The words that tasks draw from."""

from __future__ import annotations

import numpy as np

from topkit.errors import InputError

ADJECTIVES = (
    "amber ancient bitter brave bright broken bronze calm careful clever cold copper coral "
    "crimson crooked curious dark distant dusty eager early empty faded fair false fierce "
    "final foreign fragile frozen gentle giant golden grand green grey happy hasty heavy "
    "hidden hollow honest humble idle iron jolly kind lonely loud lucky marble merry mild "
    "modern narrow nervous noble northern odd old pale patient plain polite proud purple "
    "quick quiet rapid rare restless round royal rusty sacred savage scarlet secret serious "
    "sharp silent silver simple sleepy slender slow small smooth solemn southern spare steady "
    "steep stone strange sudden sunny sweet swift tall tender thin tidy tiny tired true upper "
    "velvet violet warm weary wide wild windy wise wooden yellow young"
).split()
NOUNS = (
    "actor anchor apple arch archer arrow badger baker balcony barn barrel basin basket "
    "beacon bear bell bench bishop blanket boat bottle bridge brook broom bucket cabin candle "
    "captain carpet castle cellar chain chair chapel clock coach coast cottage cradle crane "
    "creek crown curtain dagger deer desk dial doctor dragon drum eagle engine falcon farmer "
    "feather fence ferry fiddle field flag flute forest fountain fox galley garden gate glove "
    "goose grove hammer harbor harp hawk helmet heron hill hotel hunter island jacket jewel "
    "judge kettle king kitchen ladder lake lamp lantern letter lily lion lodge lodger market "
    "mason meadow merchant mill miner mirror monk mountain museum needle nest oak oar orchard "
    "organ otter oven owl palace parrot path pearl pepper piano pigeon pilot planet plough "
    "poet pond porter prince queen quill rabbit raven reaper ribbon river robin rope saddle "
    "sailor school shepherd ship singer soldier spade sparrow spoon stable statue stove swan "
    "sword table tailor temple thorn tiger tower trader tunnel turtle valley vessel village "
    "violin wagon wall walnut warden watch weaver well whale wheel widow willow window wizard "
    "wolf yard"
).split()
_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"


def things(rng: np.random.Generator, count: int) -> list[str]:
    """So many different names of things: "copper lantern"."""
    places = _places(rng, len(ADJECTIVES) * len(NOUNS), count, "names of things")
    return [f"{ADJECTIVES[p // len(NOUNS)]} {NOUNS[p % len(NOUNS)]}" for p in places]


def names(rng: np.random.Generator, count: int) -> list[str]:
    """So many different made-up names of three syllables: "Kabore"."""
    syllables = len(_CONSONANTS) * len(_VOWELS)
    places = _places(rng, syllables**3, count, "made-up names")
    return [
        (
            _syllable(p % syllables)
            + _syllable(p // syllables % syllables)
            + _syllable(p // syllables**2)
        ).capitalize()
        for p in places
    ]


def values(rng: np.random.Generator, count: int, digits: int) -> list[str]:
    """So many different numbers of so many digits, no leading zero; or, digits 0, made-up names."""
    if digits == 0:
        return names(rng, count)
    low, high = 10 ** (digits - 1), 10**digits
    if high - low <= 10**6:
        places = _places(rng, high - low, count, f"numbers of {digits} digits")
        return [str(low + place) for place in places]
    drawn: dict[str, None] = {}
    while len(drawn) < count:
        drawn["".join(map(str, [rng.integers(1, 10), *rng.integers(0, 10, digits - 1)]))] = None
    return list(drawn)


def _places(rng: np.random.Generator, most: int, count: int, what: str) -> list[int]:
    if count > most:
        raise InputError(f"there are {most} different {what}, and {count} are needed")
    return rng.choice(most, count, replace=False).tolist()


def _syllable(place: int) -> str:
    return _CONSONANTS[place // len(_VOWELS)] + _VOWELS[place % len(_VOWELS)]

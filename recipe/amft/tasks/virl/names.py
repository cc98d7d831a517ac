"""Invented names for shops and cities, in four sets that share no name whatever the seed.

A word belongs to the set that its checksum says, so that train, validation, test and other cities never meet a name of
one another. The other cities also have another sound and other kinds of shops.
"""

import random
import zlib
from collections.abc import Iterator
from typing import Literal

NameSet = Literal["train", "validation", "test", "cities"]
Sound = Literal["home", "abroad"]

NAME_SETS: tuple[NameSet, ...] = ("train", "validation", "test", "cities")
KINDS: dict[Sound, tuple[str, ...]] = {
    "home": ("Bakery", "Bank", "Books", "Cafe", "Deli", "Diner", "Florist", "Gallery", "Hotel", "Museum", "Pharmacy"),
    "abroad": ("Atelier", "Bazaar", "Bistro", "Cantina", "Casa", "Inn", "Kiosk", "Lounge", "Market", "Salon", "Studio"),
}
_ONSETS: dict[Sound, tuple[str, ...]] = {
    "home": ("B", "Br", "C", "Cl", "D", "Dr", "F", "G", "H", "L", "M", "N", "P", "R", "S", "St", "T", "W"),
    "abroad": (
        "Ai",
        "Ch",
        "E",
        "Gw",
        "J",
        "K",
        "Kh",
        "Ll",
        "Ny",
        "O",
        "Q",
        "Rh",
        "Sh",
        "Ts",
        "U",
        "V",
        "X",
        "Y",
        "Z",
        "Zh",
    ),
}
_MIDDLES: dict[Sound, tuple[str, ...]] = {
    "home": ("ab", "al", "an", "ar", "el", "en", "er", "il", "in", "od", "ol", "on", "or", "ul", "um"),
    "abroad": ("aka", "ami", "ano", "aru", "eli", "emo", "iku", "ila", "iro", "ola", "oni", "oru", "uma", "uri"),
}
_ENDS: dict[Sound, tuple[str, ...]] = {
    "home": ("by", "den", "dock", "field", "ford", "ham", "ler", "ley", "low", "man", "mont", "ner", "son", "ton"),
    "abroad": ("chi", "do", "ka", "lei", "mi", "nga", "ra", "ri", "shu", "ta", "vo", "ya", "yo", "zu"),
}


def syllables() -> list[str]:
    """The parts that names are made of."""
    parts = [*_ONSETS.values(), *_MIDDLES.values(), *_ENDS.values()]
    return list(dict.fromkeys(part for group in parts for part in group if len(part) > 1))


def name_set(word: str) -> NameSet:
    """The set that a word belongs to."""
    return NAME_SETS[zlib.crc32(word.lower().encode()) % len(NAME_SETS)]


def words(wanted: NameSet, rng: random.Random) -> Iterator[str]:
    """Endless distinct words of the set; ValueError when all of them are used up."""
    sound: Sound = "abroad" if wanted == "cities" else "home"
    pool = [a + b + c for a in _ONSETS[sound] for b in _MIDDLES[sound] for c in _ENDS[sound]]
    pool = [word for word in pool if name_set(word) == wanted]
    rng.shuffle(pool)
    yield from pool
    raise ValueError(f"a city of the name set {wanted!r} has more than {len(pool)} shops; make it smaller.")


def kinds(wanted: NameSet) -> tuple[str, ...]:
    """The kinds of shops that go with the set."""
    return KINDS["abroad" if wanted == "cities" else "home"]

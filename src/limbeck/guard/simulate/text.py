"""Prompts: a grammar of topics, forms and slots, filled in for many rows at once.

A form is a row of slots, each a list of phrases. Which phrase stands in a slot follows from a key:
UPPER CASE slots from the content key (what is asked), lower case ones from the wording key (how).
So one template with many inputs, one question in many words and the same prompt twice are three
choices of keys, and nothing else is needed for a paraphrase.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from limbeck.guard.arrow import Array, pa
from limbeck.guard.simulate.keys import Floats, Ints, Keys, below, fraction, joined, key_of, mix

SLOT = re.compile(r"\{(\w+)\}")
NESTED = 48  # how many fillings of a phrase that itself has slots are kept


@dataclass(frozen=True, slots=True, eq=False)
class Grammar:
    """All topics; with F forms of at most K slots.

    `phrases` and their `lengths` in characters; `start`, `count` (F, K) say where in them a slot's
    list stands, `salt` (F, K) names the slot alike in every form, `content` (F, K) tells content
    from wording. Topic t has the forms `first[t]` up to `first[t] + forms[t]`.
    """

    phrases: Array
    lengths: Ints
    start: Ints
    count: Ints
    salt: Keys
    content: NDArray[np.bool_]
    topics: tuple[str, ...]
    first: Ints
    forms: Ints
    shape: tuple[str, ...]
    scale: Floats
    groups: dict[str, Ints]

    def codes(
        self, form: Ints, content: Keys, wording: Keys, fresh: Keys, strength: Floats
    ) -> Ints:
        """Which phrase stands in each slot, (n, slots in use).

        A slot of wording follows `wording` (n,), or with probability `strength` (n,) `fresh` (n,).
        """
        width = int(np.max((self.count > 1).sum(1)[form], initial=1))
        codes = np.empty((len(form), width), dtype=np.int64)
        loose = bool(strength.any())
        for slot in range(codes.shape[1]):
            salt = self.salt[form, slot]
            key = np.where(self.content[form, slot], content, wording)
            if loose:
                swapped = fraction(mix(fresh, salt ^ np.uint64(1))) < strength
                key = np.where(swapped & ~self.content[form, slot], fresh, key)
            drawn = fraction(mix(key, salt))
            skewed = drawn * (0.5 + 0.5 * drawn)  # people say some things more often
            codes[:, slot] = self.start[form, slot] + (skewed * self.count[form, slot]).astype(int)
        return codes

    def characters(self, codes: Ints) -> Ints:
        """The length of each row's text."""
        return self.lengths[codes].sum(1)

    def render(self, codes: Ints) -> Array:
        """Each row's text."""
        if not len(codes):
            return pa.array([], pa.string())
        used = [slot for slot in range(codes.shape[1]) if codes[:, slot].any()]
        parts = [self.phrases.take(pa.array(codes[:, slot])) for slot in used]
        return joined(*parts)


@lru_cache(maxsize=1)
def grammar() -> Grammar:
    """The grammar of the files beside this one."""
    shared, topics = _read()
    phrases = [""]
    forms: list[list[tuple[int, int, int, int]]] = []
    first: list[int] = []
    for name, lists, texts in ((t.name, shared | t.lists, t.forms) for t in topics):
        first.append(len(forms))
        for text in texts:
            forms.append(list(_slots(name, text, lists, phrases)))
    width = max(map(len, forms))
    table = np.zeros((4, len(forms), width), dtype=np.uint64)
    table[1] = 1
    for row, slots in enumerate(forms):
        for place, slot in enumerate(slots):
            table[:, row, place] = slot
    groups: dict[str, list[int]] = {}
    for number, topic in enumerate(topics):
        groups.setdefault(topic.group, []).append(number)
    return Grammar(
        phrases=pa.array(phrases, pa.string()),
        lengths=np.array([len(p) for p in phrases]),
        start=table[0].astype(np.int64),
        count=table[1].astype(np.int64),
        salt=table[2],
        content=table[3].astype(bool),
        topics=tuple(t.name for t in topics),
        first=np.array(first),
        forms=np.array([len(t.forms) for t in topics]),
        shape=tuple(t.shape for t in topics),
        scale=np.array([t.scale for t in topics]),
        groups={name: np.array(members) for name, members in groups.items()},
    )


@dataclass(frozen=True, slots=True)
class _Topic:
    name: str
    group: str
    shape: str
    scale: float
    lists: dict[str, list[str]]
    forms: list[str]


def frame(topic: str, manner: Keys) -> Ints:
    """The form of each manner's `opening` or `closing`; three in ten have none, -1."""
    lines = grammar()
    number = lines.topics.index(topic)
    form = lines.first[number] + below(mix(manner, 61), lines.forms[number])
    return np.where(fraction(mix(manner, key_of(topic))) < 0.7, form, -1)


def _read() -> tuple[dict[str, list[str]], list[_Topic]]:
    shared = {"NUM": [str(i) for i in range(3, 1000)], "SMALL": [str(i) for i in range(2, 41)]}
    topics: list[_Topic] = []
    folder = files("limbeck.guard.simulate") / "grammar"
    for name in ("words", "work", "people", "languages", "frame"):
        for line in (folder / f"{name}.txt").read_text(encoding="utf-8").splitlines():
            if line.startswith("topic "):
                topic, group, shape, scale = line.split()[1:]
                topics.append(_Topic(topic, group, shape, float(scale), {}, []))
            elif line.startswith(": "):
                topics[-1].forms.append(line[2:].replace("\\n", "\n"))
            elif " = " in line and not line.startswith("#"):
                slot, _, options = line.partition(" = ")
                lists = topics[-1].lists if topics else shared
                lists[slot] = [option.strip() for option in options.split("|")]
    return shared, topics


def _slots(
    topic: str, text: str, lists: dict[str, list[str]], phrases: list[str]
) -> Iterator[tuple[int, int, int, int]]:
    """Append each slot's phrases, with the fixed text before it; yield its row of the table."""
    pieces, seen = SLOT.split(text), Counter[str]()
    for place in range(0, len(pieces) - 1, 2):
        lead, slot = pieces[place], pieces[place + 1]
        tail = pieces[-1] if place == len(pieces) - 3 else ""
        seen[slot] += 1
        options = [lead + option + tail for option in _filled(lists[slot], lists)]
        yield len(phrases), len(options), key_of(topic, slot, seen[slot]), slot.isupper()
        phrases += options


def _filled(options: list[str], lists: dict[str, list[str]]) -> list[str]:
    """The options; where some have slots of their own, `NESTED` fillings of each."""
    if not any(SLOT.search(option) for option in options):
        return options
    made: list[str] = []
    for turn in range(NESTED):
        for option in options:
            while found := SLOT.search(option):
                words = lists[found[1]]
                key = np.array([key_of(option, found[1], turn)], dtype=np.uint64)
                word = words[int(below(key, len(words))[0])]
                option = option[: found.start()] + word + option[found.end() :]
            made.append(option)
    return made

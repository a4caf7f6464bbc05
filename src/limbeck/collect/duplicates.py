"""Which prompts say the same thing: a normal form, word shingles, and an exact Jaccard join."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from itertools import chain, pairwise

_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+|[^\w\s]")
_PUNCTUATION = frozenset(".,;:!?\"'`()[]{}…“”‘’«»¿¡、。「」")
_END = "\x03"


def normalise(text: str) -> str:
    """The form in which two texts are the same: NFKC, casefolded, white space collapsed."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())


def shingles(turns: Iterable[tuple[str, str]]) -> frozenset[str]:
    """The pairs of neighbouring words in (role, normalised text) turns, ends of turns included.

    Pairs keep the order of words, which single words lose, and still leave something to compare
    in a prompt of three words, where triples would not. A prompt of n words has at most n + 1;
    one word exchanged in the middle leaves (n - 1) / (n + 3) in common, so 0.9 is reached from
    37 words on: in a short prompt one word is another question. Punctuation is no word, other
    signs are (`3 < 5`, `C++`); scripts written without spaces are taken letter by letter.
    """
    spoken: list[str] = []
    for role, text in turns:
        spoken += [f"\x02{role}", *(words(text) or [text])]
    return frozenset(f"{one} {other}" for one, other in pairwise([*spoken, _END]))


def words(text: str) -> list[str]:
    """The words of a normalised text, and the signs that are no punctuation."""
    return [word for word in _WORD.findall(text) if word not in _PUNCTUATION]


def earlier_twins(
    sets: Sequence[AbstractSet[str]],
    threshold: float,
    comparable: Callable[[int, int], bool] = lambda one, other: True,
) -> list[int | None]:
    """For each set, the first earlier one still standing with Jaccard similarity >= `threshold`.

    A set with such a twin falls and stands for nobody after it. Only pairs for which
    `comparable(later, earlier)` holds are twins. Exact, by prefix filtering (Chaudhuri, Ganti and
    Kaushik, ICDE 2006): with shingles ordered rarest first, two sets that similar share one of
    the first n - ceil(threshold * n) + 1 of each.
    """
    counts = Counter(chain.from_iterable(sets))
    rank = {shingle: n for n, (shingle, _) in enumerate(reversed(counts.most_common()))}
    standing: defaultdict[int, list[int]] = defaultdict(list)
    twins: list[int | None] = []
    for one, members in enumerate(sets):
        size = len(members)
        rarest = sorted(rank[shingle] for shingle in members)
        prefix = rarest[: size - math.ceil(threshold * size - 1e-9) + 1]
        candidates = {other for shingle in prefix for other in standing[shingle]}
        twin = None
        for other in sorted(candidates):
            shared = len(members & sets[other])
            similarity = shared / (size + len(sets[other]) - shared)
            if similarity >= threshold and comparable(one, other):
                twin = other
                break
        if twin is None:
            for shingle in prefix:
                standing[shingle].append(one)
        twins.append(twin)
    return twins

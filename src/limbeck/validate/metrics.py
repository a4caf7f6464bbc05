"""How near one text is to another."""

from __future__ import annotations

import unicodedata


def rouge_l(candidate: str, reference: str) -> float:
    """ROUGE-L F1 (Lin 2004): the harmonic mean of LCS/|candidate| and LCS/|reference| in words.

    Words are those of `words`, not stemmed. A text without words is as good as empty: 0 against
    one with words, and between two of them 1 if they are the same text, else 0.
    """
    left, right = words(candidate), words(reference)
    if not left and not right:
        return float(candidate.strip() == reference.strip())
    return 2 * longest_common_subsequence(left, right) / (len(left) + len(right))


def words(text: str) -> list[str]:
    """Lower-cased words: runs of Unicode letters, digits and their marks, after NFKC.

    Everything else separates. Wide characters (Han, kana, Hangul) are a word each, as those
    scripts need not write spaces. On ASCII text this is the tokenisation of ROUGE 1.5.5.
    """
    return unicodedata.normalize("NFKC", text).lower().translate(_SPACED).split()


def longest_common_subsequence(left: list[str], right: list[str]) -> int:
    """Its length, bit-parallel over `left` (Hyyrö 2004): O(|right|) operations on |left| bits."""
    where: dict[str, int] = {}
    for position, word in enumerate(left):
        where[word] = where.get(word, 0) | 1 << position
    full = (1 << len(left)) - 1
    row = full  # a cleared bit at i: the LCS grows by one at left[i]
    for word in right:
        matched = row & where.get(word, 0)
        row = (row + matched | row - matched) & full
    return len(left) - row.bit_count()


class _Spaced(dict[int, str]):
    """A table for `str.translate`, filled in as characters are met."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        if unicodedata.category(character)[0] not in "LMN":
            spaced = " "
        elif unicodedata.east_asian_width(character) == "W":
            spaced = f" {character} "
        else:
            spaced = character
        self[code] = spaced
        return spaced


_SPACED = _Spaced()

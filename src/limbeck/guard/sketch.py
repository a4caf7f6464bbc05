"""A prompt → integers that stand for it: once, when it is read; nothing after sees its text.

Arrow in, Arrow out, numpy in between, or its compiled twin, no Python for each prompt; the same
function serves DuckDB and, through `mapInArrow`, Spark.
`docs/decisions/0017-guard-logs-and-sketches.md` says what was weighed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from limbeck.guard import passes
from limbeck.guard.arrow import Array, Batch, pa
from limbeck.guard.schema import SKETCH
from limbeck.guard.table import lexicon_table, lookup
from limbeck.guard.texts import buffers, folded
from limbeck.guard.words import I64, U8, split

WORTH = 2 << 20
"""Bytes of prompts in a block that are worth loading the compiled twin: compiling it takes 7 s the
first time, loading it later 0.8 s, and two megabytes take numpy 0.1 s."""


def sketch(prompts: Array) -> Batch:
    """The columns of `schema.SKETCH` for a column of prompts (string or binary, nulls welcome).

    `exact`: hash of all words and signs, without case, space and punctuation.
    `skeleton`: hash of the words that a template keeps when its slots are filled.
    `band_0` to `band_7`: MinHash over runs of three words, numbers masked, two hashes a band: two
    prompts with Jaccard similarity s share at least one with probability 1 − (1 − s²)⁸.
    `reasoning`, `rubric`, `trace`: 0 to 255, ten for each point of `lexicon`'s phrases.
    `capability`: place in `schema.CAPABILITIES`.
    `topic`: MinHash of the content words, long ones first: accounts of narrow focus share some.
    `chars`: characters of the whole prompt, though at most `words.LONGEST` bytes are read.
    """
    rows = len(prompts)
    if prompts.null_count == rows:
        nulls = [pa.nulls(rows, field.type) for field in SKETCH]
        return pa.RecordBatch.from_arrays(nulls, schema=SKETCH)
    texts, valid, chars = folded(prompts)
    columns = passes.empty(rows)
    offsets, data = buffers(texts)
    fill = _compiled() if offsets[-1] - offsets[0] >= WORTH else passes.fill
    fill(data, offsets, columns)
    of_words = None if columns.wordy.all() else ~columns.wordy
    null = None if valid.all() else ~valid
    arrays = [
        pa.array(columns.exact, mask=null),
        pa.array(columns.skeleton, mask=of_words),
        *(pa.array(band, mask=of_words) for band in columns.bands),
        *(pa.array(score, mask=null) for score in columns.scores),
        pa.array(columns.capability, mask=null),
        pa.array(columns.topic, mask=of_words),
        pa.array(chars, mask=null),
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=SKETCH)


@lru_cache(maxsize=1)
def _compiled() -> Callable[[U8, I64, passes.Columns], None]:
    """What fills columns fastest; numpy where numba is not installed, or cannot load."""
    try:
        from limbeck.guard.compiled import fill
    except (ImportError, OSError):
        return passes.fill
    return fill


def masked(prompts: Array) -> list[str]:
    """Each prompt as its skeleton sees it: the words kept, `…` where others stood."""
    texts, _, _ = folded(prompts)
    offsets, data = buffers(texts)
    words = split(data[offsets[0] : offsets[-1]], offsets - offsets[0])
    kept = passes.kept_words(words, lexicon_table().marks.take(lookup(words.plain())))
    told = [""] * len(texts)
    begins = set(words.first.tolist())
    before = -1
    for index, row in zip(kept.tolist(), words.spread(words.rows)[kept].tolist(), strict=True):
        gap = "" if index in begins or (told[row] and index == before + 1) else "… "
        text = bytes(words.text[words.start[index] : words.end[index]]).decode("utf-8", "replace")
        told[row] += f"{gap}{text} "
        before = index
    return [text.strip() + " …" if text else "" for text in told]

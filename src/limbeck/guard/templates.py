"""Samples of frequent templates, masked, for a report: nothing else of a prompt is kept as text."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from limbeck.guard.arrow import Array, Schema, Table, pa, pc, pq
from limbeck.guard.sketch import masked
from limbeck.guard.words import I64, Flags

ACCOUNTS: Final = 3
"""Accounts that must share a skeleton within a block before its text is kept."""
KNOWN, KEPT = 40_000, 10_000
"""How many are counted at most, and written."""
TEMPLATES: Final[Schema] = pa.schema(
    [
        pa.field("skeleton", pa.int64()),
        pa.field("text", pa.string()),
        pa.field("calls", pa.int64()),
    ]
)
"""`text` has the words that the skeleton keeps, and `…` for all others; `calls` counts from the
block on in which the skeleton was first shared."""


class Templates:
    """The masked text of each skeleton that several accounts share, and its calls."""

    def __init__(self, before: Path) -> None:
        old: Table = pq.read_table(before) if before.exists() else TEMPLATES.empty_table()
        self._texts: dict[int, str] = dict(
            zip(old["skeleton"].to_pylist(), old["text"].to_pylist(), strict=True)
        )
        self._calls: dict[int, int] = dict(
            zip(old["skeleton"].to_pylist(), old["calls"].to_pylist(), strict=True)
        )

    def add(self, skeletons: Array, accounts: Array, prompts: Array) -> None:
        """Count a block's skeletons, int64 (R,), null where there is none."""
        rows = np.flatnonzero(skeletons.is_valid().to_numpy(zero_copy_only=False))
        if not len(rows):
            return
        found = pc.dictionary_encode(skeletons.drop_null())
        names, place = found.dictionary.to_numpy(), found.indices.to_numpy().astype(np.int64)
        counts = np.bincount(place)
        first = np.empty(len(names), np.int64)
        first[place[::-1]] = rows[::-1]  # the first one is written last, and stays
        unknown = counts >= ACCOUNTS
        for one in np.flatnonzero(unknown).tolist():
            name = int(names[one])
            if name in self._calls:
                self._calls[name] += int(counts[one])
                unknown[one] = False
        fresh: list[tuple[int, int]] = []
        for one in np.flatnonzero(self._shared(place, unknown, accounts, rows)).tolist():
            fresh.append((int(names[one]), int(first[one])))
            self._calls[int(names[one])] = int(counts[one])
        if fresh:
            texts = masked(prompts.take(pa.array([row for _, row in fresh])))
            self._texts |= {name: text for (name, _), text in zip(fresh, texts, strict=True)}
        if len(self._calls) > KNOWN:
            self._prune(KNOWN // 2)

    @staticmethod
    def _shared(place: I64, asked: Flags, accounts: Array, rows: I64) -> Flags:
        """Which of the skeletons `asked` for so many accounts have."""
        often = asked[place]
        codes = pc.dictionary_encode(accounts.take(pa.array(rows[often])))
        indices = codes.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        pairs = np.unique(place[often] * max(len(codes.dictionary), 1) + indices)
        owners = pairs // max(len(codes.dictionary), 1)
        return np.bincount(owners, minlength=len(asked)) >= ACCOUNTS

    def _prune(self, most: int) -> None:
        kept = sorted(self._calls, key=lambda name: (-self._calls[name], name))[:most]
        self._calls = {name: self._calls[name] for name in kept}
        self._texts = {name: self._texts[name] for name in kept}

    def table(self) -> Table:
        """The most frequent of them, most frequent first."""
        self._prune(KEPT)
        columns = [list(self._calls), list(self._texts.values()), list(self._calls.values())]
        return pa.table(dict(zip(TEMPLATES.names, columns, strict=True)), schema=TEMPLATES)

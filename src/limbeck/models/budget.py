"""What answers cost: prices by route and model, and a purse that is never overdrawn."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

from pydantic_core import to_json

from limbeck.errors import InputError
from limbeck.records import Prompt, Usage
from limbeck.sections import BudgetSection

MILLION = 1_000_000
_DATED = re.compile(r"-(?:\d{4}-?\d\d-?\d\d|latest|preview)")
_MESSAGE_TOKENS = 16  # around each message, in any chat template that we know
_TABLES_TOKENS = 1024  # what services themselves say to a model about tools and schemas


@dataclass(frozen=True, slots=True)
class Price:
    """Dollars a million tokens, and where that was read; `long` applies to prompts beyond `above`.

    Tokens read from a cache cost `cached`; reasoning is billed as output; in a batch, all cost the
    share `batch` of it.
    """

    input: float
    output: float
    cached: float
    source: str
    above: int = 0
    long: tuple[float, float] = (0.0, 0.0)
    batch: float = 1.0

    def dollars(self, usage: Usage) -> float:
        """What this many tokens of one answer cost."""
        dear = self.above and usage.tokens_in > self.above
        read, write = self.long if dear else (self.input, self.output)
        cached = read if dear else self.cached
        fresh = usage.tokens_in - usage.cached + usage.lost_in
        written = usage.tokens_out + usage.lost_out
        whole = (fresh * read + usage.cached * cached + written * write) / MILLION
        return whole * self.batch if usage.batch else whole


@cache
def price_list() -> dict[str, dict[str, Any]]:
    """The prices that Limbeck ships, by provider, each with its source and the day it was read."""
    text = resources.files("limbeck.models").joinpath("prices.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def find_price(provider: str, model: str, section: BudgetSection) -> Price | None:
    """The recipe's price, else the list's for this model or a dated version of it; None if neither.

    A server at a URL has no price unless the recipe gives one.
    """
    shelf = price_list().get(provider, {})
    batch = shelf.get("batch", 1.0)
    if section.input is not None and section.output is not None:
        cached = section.input if section.cached is None else section.cached
        return Price(section.input, section.output, cached, "the recipe", batch=batch)
    models: dict[str, Any] = shelf.get("models", {})
    known = [m for m in models if m == model or _DATED.fullmatch(model.removeprefix(m))]
    if not known:
        return None
    entry = models[max(known, key=len)]
    return Price(
        entry["input"],
        entry["output"],
        entry.get("cached", entry["input"]),
        f"{shelf['source']}, read {shelf['read']}",
        entry.get("above", 0),
        tuple(entry.get("long", (0.0, 0.0))),
        batch,
    )


def bound(prompt: Prompt, cap: int) -> Usage:
    """The most that one question can take: no token is shorter than a byte."""
    text = sum(len(m.content.encode()) + _MESSAGE_TOKENS for m in prompt.messages)
    tables = [*(call for m in prompt.messages for call in m.tool_calls), *prompt.tools]
    if prompt.schema is not None:
        tables.append(prompt.schema)
    if tables:
        text += _TABLES_TOKENS + sum(map(len, map(to_json, tables)))
    return Usage(text + _MESSAGE_TOKENS, cap)


@dataclass(slots=True)
class Purse:
    """What may be spent, was spent, and is held back for questions in flight.

    A question goes out only if the most that it can cost still fits, so the caps are not passed
    even if every answer in flight is as long as it may be.
    """

    price: Price | None
    most_dollars: float | None = None
    most_tokens: int | None = None
    dollars: float = 0.0
    tokens: int = 0
    _held: list[float] = field(default_factory=lambda: [0.0, 0.0])

    @property
    def capped(self) -> bool:
        """Whether there is a cap at all."""
        return self.most_dollars is not None or self.most_tokens is not None

    def fits(self, most: Usage) -> bool:
        """Whether a question that takes at most so much may go out beside those in flight."""
        dollars, tokens = self._cost(most)
        return (
            self.most_dollars is None
            or self.dollars + self._held[0] + dollars <= self.most_dollars * (1 + 1e-12)
        ) and (self.most_tokens is None or self.tokens + self._held[1] + tokens <= self.most_tokens)

    def hold(self, most: Usage) -> None:
        """Hold back the most that a question can cost."""
        for i, value in enumerate(self._cost(most)):
            self._held[i] += value

    def settle(self, most: Usage, used: Usage | None) -> None:
        """Give back what was held, and spend what was `used`; None: nothing."""
        for i, value in enumerate(self._cost(most)):
            self._held[i] -= value
        if used is not None:
            self.spend(used)

    def spend(self, used: Usage) -> None:
        """Count tokens and dollars as spent."""
        dollars, tokens = self._cost(used)
        self.dollars += dollars
        self.tokens += int(tokens)

    def refuse_too_little(self, most: Usage) -> None:
        """Raise InputError where not even the first question fits into the caps."""
        dollars, tokens = self._cost(most)
        if self.most_dollars is not None and dollars > self.most_dollars:
            raise InputError(
                f"budget.dollars = {self.most_dollars:g} is less than one question may cost: "
                f"${dollars:.6f} for up to {most.tokens_in:,} tokens read and {most.tokens_out:,} "
                "written. Raise it, or lower teacher.max_tokens."
            )
        if self.most_tokens is not None and tokens > self.most_tokens:
            raise InputError(
                f"budget.tokens = {self.most_tokens:,} is less than one question may take: "
                f"{most.tokens_in:,} read and {most.tokens_out:,} written. Raise it, or lower "
                "teacher.max_tokens."
            )

    def told(self) -> str:
        """What was spent, and of how much."""
        said = f"{self.tokens:,} tokens"
        if self.most_tokens is not None:
            said += f" of {self.most_tokens:,}"
        if self.price is not None:
            cap = "" if self.most_dollars is None else f" of ${self.most_dollars:,.2f}"
            said = f"${self.dollars:,.4f}{cap}, {said}"
        return said

    def _cost(self, usage: Usage) -> tuple[float, float]:
        tokens = usage.tokens_in + usage.tokens_out + usage.lost_in + usage.lost_out
        return (self.price.dollars(usage) if self.price else 0.0), tokens


def purse(provider: str, model: str, section: BudgetSection) -> Purse:
    """The purse of a recipe's [budget]; InputError for dollars without a price."""
    price = find_price(provider, model, section)
    if section.dollars is not None and price is None:
        raise InputError(
            f"budget.dollars is set, but the price of {model} is not known: give budget.input and "
            "budget.output in dollars a million tokens, or cap budget.tokens instead."
        )
    return Purse(price, section.dollars, section.tokens)

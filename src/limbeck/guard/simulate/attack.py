"""What a campaign is made of: the knobs by which an attacker is weak or strong."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

from limbeck.errors import InputError


@dataclass(frozen=True, slots=True)
class Attack:
    """A campaign. The shares lie between 0 and 1; what is not said is its weakest.

    Attributes:
        name: What the truth calls it.
        accounts: Seats; with `life` each is taken by one account after another.
        per_day: Calls an account a day, cover included.
        cover: Share of the calls that are honest traffic, drawn from the honest generators.
        tasks: Length of the work list, dealt out in turns; a list that ends begins again.
        subject: What the tasks are about, a set of habits.SETS; `focus`: topics of it, at most.
        wordings: Templates in use; 0 is a wording of its own for every call.
        strength: Probability that a slot of a template's wording is changed all the same.
        context: Tokens of the campaign's system prompt; `history`: share of the tasks that carry a
            document or a conversation besides.
        stack: Share of the accounts whose work comes from the campaign's one client and settings;
            the others take those of their cover.
        networks: Hosting networks in use; `residential`: share of the accounts behind residential
            proxies instead; `sticky`: share of their sessions that keep one address.
        payment: Accounts a payment method.
        webmail: Share of the accounts with an address at a common provider; the others share one
            domain.
        programmes: Share that signed up through education, research or start-up programmes.
        signup: Days over which the accounts were made, before the campaign begins; `begins`: its
            first day.
        life: Days until an account is given up for a new one.
        sync: Share of the work that starts in waves, as a load balancer makes them; the rest is
            Poisson.
        daylight: Share of the accounts whose work keeps their cover's hours.
        wobble: Log-normal sigma of an account's work from day to day.
        pivot: Share of the accounts that move to a new model within a day of its release.
        customers: Unrelated customers behind each account, whose traffic is the cover.
        agencies: Honest resellers through which the accounts pay and connect, 0 for none.
        frames: Honest accounts that the campaign copies, to have them blamed.
    """

    name: str
    accounts: int = 300
    per_day: float = 26.0
    cover: float = 0.5
    tasks: int = 100_000
    focus: int = 5
    subject: Literal["capability", "reasoning", "develop", "rubric", "benchmark"] = "capability"
    wordings: int = 1
    strength: float = 0.0
    context: float = 150.0
    history: float = 0.2
    stack: float = 1.0
    networks: int = 24
    residential: float = 0.0
    sticky: float = 0.8
    payment: int = 8
    webmail: float = 1.0
    programmes: float = 0.3
    signup: float = 30.0
    begins: float = 0.0
    life: float = math.inf
    sync: float = 0.4
    daylight: float = 0.0
    wobble: float = 0.15
    pivot: float = 0.0
    customers: int = 0
    agencies: int = 0
    frames: int = 0

    def __post_init__(self) -> None:
        for name in SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} of the attack {self.name} must lie between 0 and 1")
        for name in AT_LEAST_ONE:
            if not getattr(self, name) >= 1:
                raise InputError(f"{name} of the attack {self.name} must be 1 or more")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not value >= 0:
                raise InputError(f"{field.name} of the attack {self.name} must not be negative")
        if self.cover == 1:
            raise InputError(f"cover of the attack {self.name} must be below 1, or nothing is left")
        if not 0 < self.per_day <= 100_000:
            raise InputError(f"per_day of the attack {self.name} must be between 0 and 100,000")


SHARES = (
    "cover", "strength", "history", "stack", "residential", "sticky", "webmail", "programmes",
    "sync", "daylight", "pivot",
)  # fmt: skip
AT_LEAST_ONE = ("accounts", "tasks", "focus", "networks", "payment", "life")

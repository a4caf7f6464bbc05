"""What is to be simulated, checked before anything is drawn."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from limbeck.errors import InputError
from limbeck.guard.simulate.attack import Attack

MOST_ACCOUNTS, MOST_DAYS = 20_000_000, 366


@dataclass(frozen=True, slots=True)
class Plan:
    """A simulation; the same plan gives the same calls on every machine.

    Attributes:
        accounts: Honest ones.
        days: Of traffic; a longer plan with the same `release` begins with the same days.
        seed: Of everything.
        attacks: The campaigns among them.
        without: Honest kinds that are withheld; the others make up the number.
        prompts: Whether the calls carry their text.
        start: The first day, UTC.
        release: The day, counted from 0, on which a new model comes out; default: the middle one.
        truth_calls: Whether to write which calls are hostile, call by call.
        rows_per_file: Rows at which a file of calls is closed; no row depends on it.
    """

    accounts: int = 10_000
    days: int = 7
    seed: int = 0
    attacks: tuple[Attack, ...] = ()
    without: tuple[str, ...] = ()
    prompts: bool = True
    start: date = date(2026, 3, 2)
    release: int | None = None
    truth_calls: bool = False
    rows_per_file: int = 500_000

    def __post_init__(self) -> None:
        if not 1 <= self.accounts <= MOST_ACCOUNTS:
            raise InputError(f"accounts must lie between 1 and {MOST_ACCOUNTS:,}")
        if not 1 <= self.days <= MOST_DAYS:
            raise InputError(f"days must lie between 1 and {MOST_DAYS}")
        if self.seed < 0:
            raise InputError("seed must not be negative")
        if self.release is not None and not 0 <= self.release < self.days:
            raise InputError(f"release must be a day counted from 0, below days ({self.days})")
        if self.rows_per_file < 1:
            raise InputError("rows per file must be 1 or more")
        names = [attack.name for attack in self.attacks]
        if len(set(names)) < len(names):
            raise InputError("two attacks have the same name; give each its own")

    @property
    def release_day(self) -> int:
        """The day of the release, counted from 0."""
        return self.days // 2 if self.release is None else self.release

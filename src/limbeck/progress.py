"""What a person sees while a stage works: on standard error, so that standard output stays data."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

console = Console(stderr=True, highlight=False, emoji=False)


def say(text: str) -> None:
    """Print one line for the user."""
    console.print(text, soft_wrap=True, markup=False)


def counted(number: int, what: str) -> str:
    """As "1 call" and "2,000 calls"."""
    return f"{number:,} {what}{'s' * (number != 1)}"


def duration(seconds: float) -> str:
    """Seconds as a person says them: `8 s`, `2 min 05 s`, `1 h 20 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Meter:
    """Counts work done in one stage; the bar reads it, and so does the stage's closing line."""

    def __init__(self, bar: Progress, task: int, done: int) -> None:
        self._bar, self._task = bar, task
        self._started, self._before = time.monotonic(), done
        self.done, self.tokens = done, 0

    def advance(self, rows: int = 0, tokens: int = 0, note: str = "") -> None:
        """Add finished rows (or steps) and processed tokens; `note` is the text at the end."""
        self.done += rows
        self.tokens += tokens
        fields = {"note": note} if note else {}
        rate = f"{self.tokens_per_s:,.0f} tokens/s" if self.tokens else ""
        self._bar.update(self._task, completed=self.done, rate=rate, **fields)  # pyright: ignore[reportArgumentType]

    @property
    def seconds(self) -> float:
        """Seconds since the stage began in this process."""
        return time.monotonic() - self._started

    @property
    def tokens_per_s(self) -> float:
        """Mean token rate of this process's share of the stage."""
        return self.tokens / max(self.seconds, 1e-9)

    @property
    def fresh(self) -> int:
        """Rows done by this process, without those found already there."""
        return self.done - self._before


class _TimeLeft(ProgressColumn):
    """Time left from the mean rate of this process, not counting rows that were already there."""

    def render(self, task: Task) -> Text:
        meter = task.fields.get("meter")
        if not isinstance(meter, Meter) or not meter.fresh or task.total is None:
            return Text("")
        left = (task.total - task.completed) * meter.seconds / meter.fresh
        return Text(f"{duration(left)} left", style="cyan")


@contextmanager
def stage_bar(name: str, total: int, unit: str, done: int = 0) -> Iterator[Meter]:
    """A progress bar for `total` units, of which `done` were there before."""
    bar = Progress(
        TextColumn("{task.description:>9}", style="bold"),
        BarColumn(bar_width=28),
        TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[unit]}"),
        TextColumn("{task.fields[rate]}", style="green"),
        _TimeLeft(),
        TextColumn("{task.fields[note]}", style="dim"),
        console=console,
        transient=True,
    )
    with bar:
        task = bar.add_task(name, total=total, completed=done, unit=unit, rate="", note="")
        meter = Meter(bar, task, done)
        bar.update(task, meter=meter)  # pyright: ignore[reportArgumentType]
        yield meter

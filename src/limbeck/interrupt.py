"""Ctrl-C, for what has a say in when it ends."""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def on_interrupt(note: Callable[[int, FrameType | None], None]) -> Generator[None]:
    """Call `note` at Ctrl-C, within the context and from the main thread.

    In another thread nothing changes: whoever runs us handles signals.
    """
    try:
        before = signal.signal(signal.SIGINT, note)
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)

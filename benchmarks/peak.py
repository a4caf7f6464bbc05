"""A process's memory in GB, by Linux's own count.

`ru_maxrss` is no use here: a new process starts with its parent's.
"""

from __future__ import annotations

from pathlib import Path


def forget_peak() -> None:
    """Let the peak begin anew, at what is held now."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_gb() -> float:
    """The most that was held at once."""
    return _of("VmHWM")


def held_gb() -> float:
    """What is held now."""
    return _of("VmRSS")


def _of(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 2**20
    raise SystemExit(f"/proc/self/status has no {field}")

"""What this machine has free, without importing anything heavy."""

from __future__ import annotations

import shutil
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_LIMITS = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)


def free_memory() -> int | None:
    """Bytes that a new process can have: of the machine or, if less, of its container.

    None where the system does not say (it is read from Linux's /proc and /sys).
    """
    try:
        rows = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(rows["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    for limit, used in _LIMITS:
        try:
            free = min(free, int(_read(limit)) - int(_read(used)))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return free


def free_disk(folder: Path) -> int:
    """Free bytes where `folder` is or will be."""
    while not folder.exists():
        folder = folder.absolute().parent
    return shutil.disk_usage(folder).free


def has_gpu() -> bool:
    """Whether models may run on a GPU, whose memory only torch can tell."""
    return any(Path("/dev", name).exists() for name in ("nvidia0", "nvidiactl", "kfd", "dxg"))


def _read(name: str) -> str:
    return (_CGROUP / name).read_text().strip()

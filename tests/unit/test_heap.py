from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Callable

import pytest

from limbeck.models.heap import keep_freed_memory

PAGES = 16_384  # of 4 KB, in 64 MB
MEASURE = f"""
import resource, torch
from limbeck.models.heap import keep_freed_memory

keep_freed_memory()

def faults():  # pages that the kernel had to find while 64 MB are taken, written and freed
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones({PAGES} * 1024)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

for _ in range(20):  # until the heap has room beside what else lies in it
    faults()
print(sum(faults() for _ in range(4)))
"""


def test_memory_that_was_freed_is_taken_again(needs: Callable[[object, str], None]) -> None:
    needs(hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), "glibc")
    # In a process of its own: what else has been in this one's heap decides too.
    done = subprocess.run(
        [sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < PAGES / 16


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        def mallopt(self, *_: int) -> None:
            raise AssertionError("it has no such options")

    monkeypatch.setattr(ctypes, "CDLL", lambda _: Other())
    keep_freed_memory.__wrapped__()

"""One process or many: rank 0 walks the stages, and hands out what all ranks do together.

`torchrun` starts the same command N times. Rank 0 holds the run folder and goes through the stages
as it would alone; the others wait for jobs. A job is a function that every rank calls with the same
arguments. Outside of a job there is one rank, so whatever is not told to share its work does not.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

from limbeck.errors import InputError, LimbeckError, ServiceError

Result = TypeVar("Result")
_AS_LONG_AS_IT_TAKES = timedelta(days=30)  # rank 0's own stages, which the others wait for
_ENDED = (
    "A process of this run ended, or torchrun was told to stop: the others stop too. "
    "Run the same command to go on."
)

_store: Any = None  # shared by all processes; None where there is one
_handing: Any = None  # the process group over which jobs are handed out
_at_work = False


def rank() -> int:
    """This process's number among those that do the job at hand; 0 outside of one."""
    return _number() if _at_work else 0


def world() -> int:
    """How many processes do the job at hand; 1 outside of one."""
    return int(os.environ["WORLD_SIZE"]) if _at_work else 1


@contextmanager
def joined() -> Iterator[bool]:
    """Join the processes that torchrun started, if it did; true in the one that walks the stages.

    The others work here on what that one hands out, until it is done, and then get false.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
        yield True
        return
    import torch.distributed as dist

    _start()
    if _number() == 0:
        try:
            yield True
        finally:
            if not _at_work:  # else the others are in the middle of it, and see our end
                with suppress(RuntimeError):
                    _handed(None)
    else:
        _follow()
        yield False
    dist.destroy_process_group()


def together(function: Callable[..., Result], *args: Any) -> Result:
    """Call `function(*args)` on all ranks at once; what it returns here, when all are done.

    Arguments are pickled for the other ranks. Raises ServiceError where one of them ends too early.
    """
    global _at_work
    if _store is None:
        return function(*args)
    with _loss_named():
        _handed((function, args))
        _at_work = True
        found = function(*args)
        _wait()
    _at_work = False
    return found


def total(values: Sequence[float]) -> list[float]:
    """The sum of each value over the ranks of this job, the same on all of them."""
    if world() == 1:
        return list(values)
    import torch
    import torch.distributed as dist

    sums = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(sums)
    return sums.tolist()


def from_first(value: Result | None) -> Result:
    """Rank 0's value, on all ranks of this job; what the others give is not looked at."""
    held = [value]
    if world() > 1:
        import torch.distributed as dist

        dist.broadcast_object_list(held, src=0, group=_handing)
    return held[0]  # pyright: ignore[reportReturnType]


def may_speak() -> bool:
    """Whether this process is the one that says why the run ends: the first that asks."""
    from limbeck.progress import console

    console.quiet = False
    if _store is None:
        return True
    _ending()
    with suppress(RuntimeError):  # torchrun itself is gone
        return _store.add("limbeck/spoken", 1) == 1
    return True


def _number() -> int:
    return int(os.environ["RANK"])


def _start() -> None:
    global _store, _handing
    import torch
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    from limbeck.progress import console

    signal.signal(signal.SIGTERM, _end)
    console.quiet = _number() > 0
    backend = "gloo"
    if torch.cuda.is_available():
        here, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if here >= there:
            raise InputError(f"This machine has {there} GPUs: torchrun --nproc-per-node {there}")
        torch.cuda.set_device(here)
        backend = "cpu:gloo,cuda:nccl"
    _store, number, count = next(rendezvous("env://"))
    dist.init_process_group(backend, store=_store, rank=number, world_size=count)
    _handing = dist.new_group(backend="gloo", timeout=_AS_LONG_AS_IT_TAKES)


def _follow() -> None:
    """Do what rank 0 hands out, job after job."""
    global _at_work
    with _loss_named():
        try:
            while told := _handed(None):
                function, args = told
                _at_work = True
                function(*args)
                _wait()
                _at_work = False
        except LimbeckError as error:
            error.args = (f"rank {_number()}: {error}",)
            raise


def _handed(told: tuple[Callable[..., object], tuple[Any, ...]] | None) -> Any:
    """Give what rank 0 tells to all; None says that there is no more to do."""
    import torch.distributed as dist

    held = [told]
    dist.broadcast_object_list(held, src=0, group=_handing)
    return held[0]


def _wait() -> None:
    import torch.distributed as dist

    dist.barrier(group=_handing)


@contextmanager
def _loss_named() -> Iterator[None]:
    """Say in one line that another process is gone: what we hear of it are broken connections."""
    import torch.distributed as dist

    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            _ending()
            raise ServiceError(_ENDED) from None
        raise


def _end(*_: object) -> None:
    _ending()
    raise ServiceError(_ENDED)


def _ending() -> None:
    """From here on torchrun's word to stop changes nothing: it would fall amid our closing line."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

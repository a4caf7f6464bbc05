"""What can go wrong for a user, one class an exit code; the message says what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


def first_line(error: BaseException) -> str:
    """The first line of what a library says went wrong, or the error's name where it says none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Say which extra holds a package that is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise InputError(
            f"This needs {error.name}; install it with: pip install 'limbeck[{name}]'"
        ) from None


class LimbeckError(Exception):
    """Shown as one line, without a traceback; the process ends with `exit_code`."""

    exit_code = 1


class InputError(LimbeckError):
    """The user's input is wrong: recipe, prompts, model, file or run folder."""

    exit_code = 2


class GateError(LimbeckError):
    """A gate or check says no: permission, verdict."""

    exit_code = 1


class ServiceError(LimbeckError):
    """A teacher or a service that we rest on failed: no memory, no disk, no answer."""

    exit_code = 3

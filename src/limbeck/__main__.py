"""The process: runs a command and turns what went wrong into one line and an exit code."""

from __future__ import annotations

import errno
import json
import os
import sys
import traceback

from limbeck import ranks
from limbeck.errors import GateError, LimbeckError

INTERRUPTED = 130
BUG = 70
"""EX_SOFTWARE: what nobody expected must not end as 1 does, which is a command's answer."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; the exit codes are 0, 1, 2, 3, 70 and 130 as `limbeck --help` tells."""
    arguments = sys.argv[1:] if arguments is None else arguments
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")  # our bars tell the same
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats itself bit for bit
    try:
        code = run(arguments)
    except Exception as error:
        traceback.print_exc()
        text = f"This is a bug in Limbeck: {type(error).__name__}: {_line(error)}"
        code = _said(text, BUG, "--json" in arguments)
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run the command line and return its exit code; what is a bug is raised."""
    as_json = "--json" in arguments
    try:
        from cyclopts import CycloptsError

        from limbeck.cli import app

        try:
            with ranks.joined() as first:
                if first:
                    app(
                        arguments,
                        exit_on_error=False,
                        print_error=False,
                        result_action="return_none",
                    )
        except CycloptsError as error:
            command = " ".join(("limbeck", *(error.command_chain or ())))
            return _said(f"{_line(error)} See: {command} --help", 2, as_json)
        sys.stdout.flush()
    except LimbeckError as error:
        text = str(error) if isinstance(error, GateError) else _line(error)
        return _said(text, error.exit_code, as_json)
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    except KeyboardInterrupt:
        return _said("Interrupted. Run the same command to go on.", INTERRUPTED, as_json)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        from limbeck.files import FULL, disk_full

        if error.errno in FULL:
            return _said(str(disk_full(error.filename)), 3, as_json)
        if error.filename is None:
            raise
        text = f"{error.filename}: {error.strerror}"
        return _said(text, 3 if error.errno == errno.EIO else 2, as_json)
    return 0


def _line(error: Exception) -> str:
    """What an error says, on one line: a library's reason may have several."""
    return " ".join(filter(None, map(str.strip, str(error).splitlines())))


def _said(text: str, code: int, as_json: bool) -> int:
    from limbeck.progress import say

    if not ranks.may_speak():
        return code
    say(f"{'limbeck':>9}  {text}")
    if as_json:
        print(json.dumps({"error": text, "exit_code": code}, ensure_ascii=False))  # noqa: T201
    return code


if __name__ == "__main__":
    main()

"""The process: runs a command and turns what went wrong into one line and an exit code."""

from __future__ import annotations

import json
import os
import sys

from limbeck.errors import LimbeckError

INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; the exit codes are 0, 1, 2, 3 and 130 as `limbeck --help` tells."""
    arguments = sys.argv[1:] if arguments is None else arguments
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    sys.exit(run(arguments))


def run(arguments: list[str]) -> int:
    """Run the command line and return its exit code."""
    from cyclopts import CycloptsError

    from limbeck.cli import app

    try:
        app(arguments, exit_on_error=False)
    except LimbeckError as error:
        return _said(str(error), error.exit_code, "--json" in arguments)
    except CycloptsError:
        return 2
    except KeyboardInterrupt:
        return _said("Interrupted. Run the same command to go on.", INTERRUPTED, False)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        from limbeck.files import FULL, disk_full

        if error.errno not in FULL:
            raise
        return _said(str(disk_full(error.filename)), 3, "--json" in arguments)
    return 0


def _said(text: str, code: int, as_json: bool) -> int:
    from limbeck.progress import say

    say(f"{'limbeck':>9}  {text}")
    if as_json:
        print(json.dumps({"error": text, "exit_code": code}))  # noqa: T201
    return code


if __name__ == "__main__":
    main()

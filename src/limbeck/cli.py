"""The commands: what a user types, and nothing of how it is done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from limbeck import __version__

app = App(
    name="limbeck",
    version=__version__,
    help="""Distil a large language model into a small one, and prove what it kept.

Start with: limbeck init recipe.toml, then limbeck distill recipe.toml

Every command goes on where an earlier one stopped.

Exit codes: 0 done, 1 the verdict or permission says no, 2 the input is wrong,
3 a model, disk or service failed, 130 interrupted.
""",
    help_format="plaintext",
    suppress_keyboard_interrupt=False,
)

Target = Annotated[Path, Parameter(help="A recipe (.toml), or a run folder.")]
Folder = Annotated[Path | None, Parameter(name="--run", help="The run folder; default: runs/NAME.")]
AsJson = Annotated[
    bool, Parameter(name="--json", negative="", help="Print one JSON document on standard output.")
]


@app.command
def init(
    path: Annotated[Path, Parameter(help="Where to write the recipe.")] = Path("recipe.toml"),
    *,
    json_: AsJson = False,
) -> None:
    """Write a commented recipe to start from.

    Example: limbeck init recipe.toml
    """
    from limbeck.errors import InputError
    from limbeck.files import write_text

    if path.exists():
        raise InputError(f"{path} is already there; name another file, or remove it")
    example = Path(__file__).with_name("recipe.example.toml").read_text(encoding="utf-8")
    write_text(path, example)
    _tell(json_, {"recipe": str(path)}, f"Wrote {path}. Edit it, then: limbeck distill {path}")


@app.command
def distill(recipe: Target, *, run: Folder = None, json_: AsJson = False) -> None:
    """Walk all the way: permission, answers, targets, student, verdict, export, report.

    Example: limbeck distill recipe.toml
    """
    _walk(recipe, run, "report", json_)


@app.command
def collect(recipe: Target, *, run: Folder = None, json_: AsJson = False) -> None:
    """Ask the teacher, and store its answers and their distributions.

    Example: limbeck collect recipe.toml
    """
    _walk(recipe, run, "targets", json_)


@app.command
def answers(
    recipe: Target,
    *,
    run: Folder = None,
    outcome: Annotated[
        str | None,
        Parameter(help="Only: kept, rejected, truncated, refused, failed, or unasked."),
    ] = None,
    export: Annotated[Path | None, Parameter(help="Write them to a .jsonl or .parquet.")] = None,
    format: Annotated[  # noqa: A002
        Literal["rows", "messages"],
        Parameter(help="rows, or the kept ones as the messages that other trainers read."),
    ] = "rows",
    json_: AsJson = False,
) -> None:
    """List the teacher's answers, a row a prompt, or export them.

    Example: limbeck answers runs/support-replies --outcome refused
    """
    from limbeck.collect.listing import chosen_rows, line
    from limbeck.collect.listing import export as write
    from limbeck.distill import Walk
    from limbeck.run import Run, resolve

    found, place = resolve(recipe, run)
    walk = Walk(Run(place, found))
    chosen = chosen_rows(walk.store_path, walk.some_prompts(), walk.asking, outcome, format)
    if export is not None:
        written = write(chosen, export)
        _tell(json_, {"file": str(export), "rows": written}, f"Wrote {written:,} rows to {export}")
    elif json_:
        _tell(True, {"rows": list(chosen)}, "")
    else:
        for row in chosen:
            print(line(row) if format == "rows" else json.dumps(row, ensure_ascii=False))  # noqa: T201


@app.command
def train(recipe: Target, *, run: Folder = None, json_: AsJson = False) -> None:
    """Train the student, and the control that it is compared with.

    Example: limbeck train runs/support-replies
    """
    _walk(recipe, run, "control", json_)


@app.command
def validate(recipe: Target, *, run: Folder = None, json_: AsJson = False) -> None:
    """Test the student against teacher and control; exit code 1 if the verdict is no.

    Example: limbeck validate runs/support-replies --json
    """
    _walk(recipe, run, "validate", json_)


@app.command
def export(recipe: Target, *, run: Folder = None, json_: AsJson = False) -> None:
    """Write the student as a model folder with its card.

    Example: limbeck export runs/support-replies
    """
    _walk(recipe, run, "export", json_)


@app.command
def report(recipe: Target, *, run: Folder = None, json_: AsJson = False) -> None:
    """Write report.html, one file that opens in any browser.

    Example: limbeck report runs/support-replies
    """
    _walk(recipe, run, "report", json_)


@app.command
def chat(
    run: Annotated[Path, Parameter(help="A run folder with a student.")],
    *,
    beside: Annotated[
        bool, Parameter(negative="", help="Show the teacher's answer too, and both speeds.")
    ] = False,
    prompt: Annotated[str | None, Parameter(help="Ask this once, and end.")] = None,
    max_tokens: Annotated[int, Parameter(help="Longest answer, in tokens.")] = 128,
    json_: AsJson = False,
) -> None:
    """Talk to the student.

    Example: limbeck chat runs/support-replies --beside
    """
    from limbeck.chat import converse

    converse(run, beside=beside, prompt=prompt, max_tokens=max_tokens, as_json=json_)


def _walk(target: Path, folder: Path | None, last: Any, as_json: bool) -> None:
    from limbeck.distill import STAGES, Walk
    from limbeck.errors import GateError
    from limbeck.progress import say
    from limbeck.run import open_run, resolve

    recipe, place = resolve(target, folder)
    with open_run(recipe, place) as run:
        walk = Walk(run)
        walk.until(last)
        validated = STAGES.index(last) >= STAGES.index("validate")
        verdict = walk.verdict() if validated else None
        told: dict[str, Any] = {"run": str(place), "stages": run.manifest["stages"]}
    if verdict is None:
        _tell(as_json, told, f"Everything up to {last} is in {place}")
        return
    from limbeck.validate.verdict import gate

    if not as_json:
        _show(verdict, place)
    try:
        gate(verdict)
    except GateError as error:
        if not as_json:
            raise
        say(f"{'limbeck':>9}  {error}")
        told |= {"error": str(error), "exit_code": error.exit_code}
        raise SystemExit(error.exit_code) from None
    finally:
        if as_json:
            _tell(True, told | verdict, "")


def _show(verdict: dict[str, Any], folder: Path) -> None:
    from rich.console import Console

    from limbeck.validate.verdict import from_json, table

    out = Console(highlight=False, emoji=False)
    out.print()
    out.print(table(from_json(verdict["rows"]), verdict["confidence"]))
    out.print()
    for what in ("student", "report.html"):
        if (folder / what).exists():
            out.print(f"{what.partition('.')[0]:>9}  {folder / what}", soft_wrap=True)


def _tell(as_json: bool, document: dict[str, Any], line: str) -> None:
    from limbeck.progress import say

    if as_json:
        print(json.dumps(document, ensure_ascii=False))  # noqa: T201
    else:
        say(line)

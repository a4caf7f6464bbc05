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
3 a model, disk or service failed, 70 a bug in Limbeck, 130 interrupted.
""",
    help_format="plaintext",
    suppress_keyboard_interrupt=False,
)

app.command(
    "limbeck.guard.commands:app",
    name="guard",
    help="""Find, in your own logs, the campaign that distils your model.

    Example: limbeck guard scan logs/ --out found
    """,
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
def distill(
    recipe: Target,
    *,
    run: Folder = None,
    dry_run: Annotated[
        bool, Parameter(negative="", help="Only say what each stage will take and need.")
    ] = False,
    json_: AsJson = False,
) -> None:
    """Walk all the way: permission, answers, targets, student, verdict, export, report.

    Example: limbeck distill recipe.toml
    """
    if dry_run:
        from limbeck.dryrun import rehearse
        from limbeck.run import resolve

        return rehearse(*resolve(recipe, run), json_)
    return _walk(recipe, run, "report", json_)


@app.command
def collect(
    recipe: Target,
    *,
    run: Folder = None,
    drop_source: Annotated[
        str | None, Parameter(help="Take a source's answers out of the run, and ask nothing.")
    ] = None,
    json_: AsJson = False,
) -> None:
    """Ask the teacher, and store its answers and their distributions.

    Example: limbeck collect recipe.toml
    """
    if drop_source is not None:
        _drop(recipe, run, drop_source, json_)
    else:
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
    from limbeck.ground import Ground
    from limbeck.run import Run, resolve

    found, place = resolve(recipe, run)
    chosen = Ground(Run(place, found)).listed(outcome, format)
    if export is not None:
        from limbeck.collect.listing import export as write

        written = write(chosen, export)
        _tell(json_, {"file": str(export), "rows": written}, f"Wrote {written:,} rows to {export}")
    elif json_:
        _tell(True, {"rows": list(chosen)}, "")
    else:
        from limbeck.collect.listing import line

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
def permit(
    teacher: Annotated[
        str,
        Parameter(help="PROVIDER:MODEL, folder, .gguf, pypi:PACKAGE, hub id, or a model family."),
    ],
    *,
    purpose: Annotated[
        Literal["research", "internal", "product"], Parameter(help="What the student is for.")
    ] = "product",
    competes: Annotated[
        bool | None,
        Parameter(negative="--no-competes", help="Whether it competes with the provider."),
    ] = None,
    distribution: Annotated[
        Literal["none", "weights", "service"] | None,
        Parameter(help="How it is given out."),
    ] = None,
    json_: AsJson = False,
) -> None:
    """Say whether a teacher may be learnt from, and why; exit code 1 unless it is allowed.

    Example: limbeck permit openai:gpt-5 --purpose product --no-competes
    """
    from dataclasses import asdict

    from limbeck.permit.decide import decide
    from limbeck.permit.gate import explain
    from limbeck.permit.routes import route_of

    found = decide([route_of(teacher)], purpose, competes=competes, distribution=distribution)
    text = json.dumps(asdict(found), ensure_ascii=False) if json_ else explain(found)
    print(text)  # noqa: T201
    if found.decision != "allow":
        raise SystemExit(1)


@app.command
def lineage(
    recipe: Target,
    *,
    run: Folder = None,
    drop_source: Annotated[
        str | None,
        Parameter(help="Tell what dropping this source would take with it; nothing is changed."),
    ] = None,
    json_: AsJson = False,
) -> None:
    """Tell which answers trained the student, from whom, under which terms, on which day.

    Example: limbeck lineage runs/support-replies
    """
    from dataclasses import asdict

    from limbeck import lineage
    from limbeck.run import resolve

    found, folder = resolve(recipe, run)
    if drop_source is None:
        told = lineage.trace(found, folder)
        _answer(json_, told.to_json(), *lineage.told(told))
        return
    plan = lineage.plan_drop(found, folder, drop_source)
    does = f"to do it: limbeck collect {folder} --drop-source {plan.source}"
    _answer(json_, asdict(plan), *lineage.told_drop(plan, folder), does)


@app.command
def attest(
    recipe: Target,
    *,
    run: Folder = None,
    key: Annotated[
        Path | None,
        Parameter(help="Private key (Ed25519, PEM); default: the one in LIMBECK_KEY itself."),
    ] = None,
    keygen: Annotated[
        bool, Parameter(negative="", help="Make the key first, in the file of --key.")
    ] = False,
    json_: AsJson = False,
) -> None:
    """Sign everything in a finished run's folder.

    Example: limbeck attest runs/support-replies --key ~/keys/limbeck.pem
    """
    from limbeck.errors import InputError, extra
    from limbeck.run import open_run, resolve

    found, folder = resolve(recipe, run)
    with extra("papers"):
        from limbeck.export import attest

        if keygen and key is None:
            raise InputError("--keygen needs --key FILE, to say where the key is to be kept")
        if keygen and key is not None:
            attest.refuse_inside(key, folder)
            attest.make_key(key)
        signer = attest.signer_of(key, folder)
        with open_run(found, folder) as opened:
            statement = attest.attest(opened, signer)
    path, who = folder / attest.ENVELOPE, signer.public_key.keyid
    count = len(statement["subject"])
    told = {"attestation": str(path), "key": who, "statement": statement}
    _tell(json_, told, f"{count} files of {folder} signed by {who}, in {path}")


@app.command
def verify(
    target: Annotated[Path, Parameter(help="A run folder, or its attestation.json.")],
    *,
    key: Annotated[
        Path | None,
        Parameter(help="Whose signature it must be (PEM); default: the key in LIMBECK_KEY."),
    ] = None,
    json_: AsJson = False,
) -> None:
    """Check a run's signature and every hash; exit code 1 names what is changed or missing.

    Example: limbeck verify runs/support-replies --key limbeck.pem.pub
    """
    from dataclasses import asdict

    from limbeck.errors import extra

    with extra("papers"):
        from limbeck.export import attest

        checked = attest.verify(target, attest.key_of(key))
    count = len(checked.statement["subject"])
    word = "verified" if checked.verified else "does not verify"
    _answer(
        json_,
        asdict(checked) | {"verified": checked.verified},
        *checked.problems,
        f"{checked.folder}: {word}; {count} files, signed by {checked.signed_by or 'someone else'}",
    )
    if not checked.verified:
        raise SystemExit(1)


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
    from limbeck.validate.verdict import gate, show

    if not as_json:
        show(verdict, place)
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


def _drop(target: Path, folder: Path | None, source: str, as_json: bool) -> None:
    from dataclasses import asdict

    from limbeck import lineage
    from limbeck.run import open_run, resolve

    recipe, place = resolve(target, folder)
    with open_run(recipe, place) as run:
        plan = lineage.plan_drop(recipe, place, source)
        lineage.drop(run, plan)
    _answer(as_json, asdict(plan), *lineage.told_drop(plan, place), f"now: limbeck distill {place}")


def _tell(as_json: bool, document: dict[str, Any], line: str) -> None:
    from limbeck.progress import say

    if as_json:
        print(json.dumps(document, ensure_ascii=False))  # noqa: T201
    else:
        say(line)


def _answer(as_json: bool, document: dict[str, Any], *lines: str) -> None:
    """What was asked for, on standard output."""
    for line in [json.dumps(document, ensure_ascii=False)] if as_json else lines:
        print(line)  # noqa: T201

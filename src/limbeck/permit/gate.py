"""The gate before the first answer, and what a permission says in words."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import tomli_w

from limbeck.errors import GateError
from limbeck.permit.decide import RECORDED, Route, by_model, decide, plain
from limbeck.permit.recorded import read_recorded
from limbeck.permit.register import PURPOSES
from limbeck.records import Decision, Permission, Reason
from limbeck.sections import PermitSection

LEADS: Final[dict[Decision, str]] = {
    "allow": "permitted",
    "conditional": "permitted only on conditions",
    "deny": "not permitted",
    "unknown": "not known to be permitted",
}
_WAYS: Final[dict[str, str]] = {
    "weights": "by its weights",
    "api": "by API",
    "consumer": "by an app for people",
    "resale": "through a reseller",
}
_DUTIES: Final[dict[str, str]] = {
    "name": "start the student's name with {}",
    "licence": "give the student out under {} and nothing else",
    "display": 'show "{}"',
    "notice": 'put "{}" into a NOTICE file',
    "policy": "pass on the use policy {}",
}
_END: Final = "Not legal advice."
WIDTH: Final = 88


def permission_for(routes: Sequence[Route], section: PermitSection) -> Permission:
    """What a recipe's [permit] comes to for rows that these models shaped.

    Raises:
        InputError: For a recorded permission that does not hold.
    """
    recorded = None
    if section.permission:
        recorded = read_recorded(Path(section.permission), section.permission_sha256)
    return decide(
        routes,
        section.purpose,
        competes=section.competes,
        distribution=section.distribution,
        recorded=recorded,
    )


def gate(permission: Permission) -> None:
    """Let an allowed permission through.

    Raises:
        GateError: For any other, saying why, which facts are missing and how to record a
            permission.
    """
    if permission.decision == "allow":
        return
    stopped = {
        name: chain
        for (_, name), (decision, chain) in by_model(permission.reasons).items()
        if decision != "allow"
    }
    names = list(stopped) or [permission.route]
    asked = "".join(f"- {question}\n" for question in permission.missing)
    raise GateError(
        f"The teacher {plain(' and '.join(names))} stops here, before its first answer is asked "
        "for: every answer would carry its terms into the student.\n"
        + "".join(map(_block, stopped.values()))
        + (f"Say in the recipe what it turns on:\n{asked}" if asked else "")
        + "Read the terms. If they, or their owner, allow what you plan, write permission.toml "
        "beside the recipe with these four lines:\n"
        f"  {_toml(teacher=names[0] if len(names) == 1 else names)}\n"
        '  allowed_by = "WHO ALLOWS IT, AND WHERE THAT STANDS"\n'
        "  until = YYYY-MM-DD\n"
        f"  {_toml(purpose=permission.purpose or ' | '.join(PURPOSES))}\n"
        "and name it in the recipe:\n"
        "  [permit]\n"
        '  permission = "permission.toml"\n'
        f"{_END}"
    )


def line(permission: Permission) -> str:
    """The one line that tells a user what was decided, on what ground and under which duties."""
    who = [
        f"{_as(chain)}{name} {_WAYS[kind]}, {', '.join(_titles(chain))}"
        for (kind, name), (_, chain) in by_model(permission.reasons).items()
    ]
    source = f" ({permission.source})" if permission.source else ""
    return plain(
        f"{LEADS[permission.decision]}: {' and '.join(who) or permission.route}{source}; "
        f"duties: {_list(permission.duties)}. {_END}"
    )


def explain(permission: Permission) -> str:
    """What was decided and why, in plain words: every text, its source and day, and the duties."""
    models = by_model(permission.reasons)
    names = " and ".join(plain(name) for _, name in models)
    rows = [f"{names}: {LEADS[permission.decision]} (purpose: {permission.purpose})"]
    for (kind, name), (decision, chain) in models.items():
        rows += ["", f"{chain[0].role} {plain(name)}, {_WAYS[kind]}: {decision}"]
        for reason in chain:
            rows += [_wrapped(row, "  ") for row in _told(reason)]
    if permission.missing:
        rows += ["", "What it turns on, and nobody has said:"]
        rows += [_wrapped(question, "- ") for question in permission.missing]
    rows += ["", _wrapped(f"Duties: {_list(permission.duties)}")]
    return "\n".join([*rows, _END])


def in_words(duty: str) -> str:
    """A duty in words; the register writes those that can be checked as `form: text`."""
    form, colon, text = duty.partition(": ")
    return _DUTIES[form].format(text) if colon and form in _DUTIES else duty


def _told(reason: Reason) -> list[str]:
    """A text's own words, where it stands and when it was read, a row each."""
    entry = f" [{reason.entry}]" if reason.entry else ""
    read = f", read {reason.date_read}" if reason.date_read else ""
    rows = {
        "": f"{reason.title}{entry} says {reason.decision}: {reason.clause}",
        "Stated in: ": reason.stated_in,
        "Source: ": reason.source and f"{reason.source}{read}",
        "Read as: ": reason.read_as,
        "SHA-256 of what was read: ": reason.sha256,
    }
    return [f"{what}{text}" for what, text in rows.items() if text]


def _wrapped(text: str, lead: str = "") -> str:
    return textwrap.fill(
        plain(text),
        WIDTH,
        initial_indent=lead,
        subsequent_indent=" " * len(lead) + "  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _block(chain: Sequence[Reason]) -> str:
    rows: list[str] = []
    for reason in chain:
        what = "licence: " if reason.kind == "weights" else "text:    "
        where = "; ".join(filter(None, (reason.stated_in, reason.source)))
        rows += [
            f"{what} {plain(reason.title)}{where and f' ({where})'}",
            f"decision: {reason.decision}",
            f"terms:    {plain(reason.clause)}",
            f"duties:   {_list(reason.duties)}",
        ]
    return "".join(f"  {row}\n" for row in rows)


def _as(chain: Sequence[Reason]) -> str:
    return "" if chain[0].role == "teacher" else f"{chain[0].role} "


def _titles(chain: Sequence[Reason]) -> list[str]:
    return list(dict.fromkeys(r.title for r in chain if r.entry != RECORDED))


def _list(duties: Sequence[str]) -> str:
    return "; ".join(map(in_words, duties)) or "none"


def _toml(**pair: str | list[str]) -> str:
    return " ".join(tomli_w.dumps(pair).split("\n")).strip()

"""What terms ask of a student that is given out: carried out where code can do it, else checked.

A duty is a line of text. These forms are carried out or checked here; every other line is carried
onto the card as it stands, for whoever publishes the student:

| form            | what is done                                              |
|-----------------|-----------------------------------------------------------|
| `name: X`       | the student's name must start with X                      |
| `licence: X`    | the student goes out under X and nothing else             |
| `display: X`    | the card shows X under its title                          |
| `notice: X`     | X stands in the student's NOTICE file                     |
| `policy: URL`   | card and NOTICE pass the use policy on                    |
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from limbeck.errors import GateError
from limbeck.recipe import Recipe
from limbeck.records import Permission

FORMS = ("name", "licence", "display", "notice", "policy")
FORM = re.compile(rf"({'|'.join(FORMS)}): *(\S.*)", re.DOTALL)
FREE = frozenset({
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "isc", "zlib", "bsl-1.0", "ncsa",
    "cc0-1.0", "unlicense", "wtfpl", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0",
    "postgresql", "cdla-permissive-1.0", "cdla-permissive-2.0",
})  # fmt: skip
"""Licences under which a changed copy may go out under another licence, notices kept."""


@dataclass(frozen=True, slots=True)
class Duties:
    """Duties by form, each in the order of the terms; `others` are left to people."""

    name: tuple[str, ...] = ()
    licence: tuple[str, ...] = ()
    display: tuple[str, ...] = ()
    notice: tuple[str, ...] = ()
    policy: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


def duties_of(terms: Sequence[Permission]) -> Duties:
    """All duties of these terms, sorted by form, each once."""
    found: dict[str, dict[str, None]] = {form: {} for form in (*FORMS, "others")}
    for duty in (duty for one in terms for duty in one.duties):
        form = FORM.fullmatch(duty.strip())
        found[form[1] if form else "others"][form[2].strip() if form else duty.strip()] = None
    return Duties(**{form: tuple(texts) for form, texts in found.items()})


def student_name(recipe: Recipe) -> str:
    """What the student is called where it is given out."""
    return recipe.export.name or recipe.name


def student_licence(recipe: Recipe, terms: Sequence[Permission], base: str | None) -> str | None:
    """The hub tag or SPDX id that the student goes out under, in lower case; None if unknown.

    The recipe's word, else what the terms demand, else the licence of the weights it starts from.
    """
    demanded = duties_of(terms).licence
    chosen = recipe.export.licence or (demanded[0] if demanded else base)
    return chosen.lower() if chosen else None


def check(recipe: Recipe, terms: Sequence[Permission], base: str | None) -> None:
    """Hold the student's name and licence to the terms of all that it comes from.

    Args:
        recipe: Says what the student is called and goes out under.
        terms: The permission for the teacher and, if the student starts from another model, what
            that one's licence asks.
        base: The licence of the weights that the student starts from.

    Raises:
        GateError: Naming the duty that is broken, whose terms ask for it, and what to write.
    """
    name, licence = student_name(recipe), student_licence(recipe, terms, base)
    for one in terms:
        asked = duties_of([one])
        for start in asked.name:
            if not name.startswith(start):
                raise GateError(
                    f"The student may not be called {name!r}: its name has to start with "
                    f"{start!r}. {_by(one)} Set export.name in the recipe, for example "
                    f'export.name = "{start}-{name}".'
                )
        for wanted in asked.licence:
            if licence != wanted.lower():
                raise GateError(
                    f"The student may not go out under {licence!r}: it has to keep {wanted!r}. "
                    f'{_by(one)} Set export.licence = "{wanted}" in the recipe, or take it out.'
                )
    kept = (base or "").lower()
    known = kept not in ("", "other", "unknown")
    if known and kept not in FREE and licence != kept and not duties_of(terms).licence:
        raise GateError(
            f"The student may not go out under {licence!r}: it starts from weights under "
            f"{base!r}, which changed copies keep. Take export.licence out of the recipe."
        )


def _by(terms: Permission) -> str:
    where = ", ".join(filter(None, (terms.source, f"read {terms.date_read}")))
    return f"So say the terms of {terms.route}: {terms.clause} ({where})."

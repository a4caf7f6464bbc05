"""Campaigns, rising in strength, a preset a file: each has an ATTACK."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from pkgutil import iter_modules

from limbeck.errors import InputError
from limbeck.guard.simulate.attack import Attack

OWN_SIZE = ("anthropic-june", "framing")  # asked for by name only


def attacks() -> dict[str, Attack]:
    """Every preset, by name."""
    names = [module.name for module in iter_modules(__path__)]
    found: list[Attack] = [import_module(f"{__name__}.{name}").ATTACK for name in names]
    return {attack.name: attack for attack in sorted(found, key=lambda attack: attack.name)}


def chosen(names: str, accounts: int, changes: Mapping[str, float | None]) -> tuple[Attack, ...]:
    """The presets named as `a,b`, or all those of ordinary size, or none.

    Args:
        names: A list, `all` or `none`.
        accounts: The size of each that is not named for its own size.
        changes: Knobs to set in all of them; None leaves a knob as it is.

    Raises:
        InputError: There is no such preset, or a knob is out of its range.
    """
    known = attacks()
    if names == "none":
        wanted: list[str] = []
    elif names == "all":
        wanted = [name for name in known if name not in OWN_SIZE]
    else:
        wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if name not in known:
            raise InputError(f"there is no attack {name!r}; there are: {', '.join(known)}")
    set_to = {knob: value for knob, value in changes.items() if value is not None}
    sizes = {name: {} if name in OWN_SIZE else {"accounts": accounts} for name in wanted}
    return tuple(replace(known[name], **(sizes[name] | set_to)) for name in wanted)

"""Who there is: every account of a plan, honest and hostile."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from limbeck.errors import InputError
from limbeck.guard.arrow import Array, Table, pa, pc
from limbeck.guard.simulate import honest, world
from limbeck.guard.simulate.campaign import enlist
from limbeck.guard.simulate.habits import Habits
from limbeck.guard.simulate.keys import Keys, joined, spelt, stream
from limbeck.guard.simulate.plan import Plan

FRAMED = "single-bot"  # the kind that is easiest to copy
ACCOUNTS = pa.schema(
    [
        ("account", pa.string()),
        ("created", pa.timestamp("us", "UTC")),
        ("payment", pa.string()),
        ("email_domain", pa.string()),
        ("channel", pa.string()),
        ("tier", pa.string()),
        ("organisation", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True, eq=False)
class Crowd:
    """Accounts of one kind. A campaign's accounts have two habits, their `cover` and their work."""

    kind: str
    campaign: str | None
    habits: Habits
    work: Habits | None = None


def population(plan: Plan) -> list[Crowd]:
    """Every crowd of the plan, the honest ones first."""
    known = [kind.NAME for kind in honest.kinds()]
    for name in plan.without:
        if name not in known:
            raise InputError(f"there is no honest kind {name!r}; there are: {', '.join(known)}")
    kept = [kind for kind in honest.kinds() if kind.NAME not in plan.without]
    if not kept:
        raise InputError("every honest kind is withheld; keep at least one")
    crowds: list[Crowd] = []
    shares = np.cumsum([0.0] + [kind.SHARE for kind in kept])
    edges = np.rint(shares / shares[-1] * plan.accounts).astype(int)
    for kind, low, high in zip(kept, edges, edges[1:], strict=False):
        rng = stream(plan.seed, "honest", kind.NAME)
        crowds.append(Crowd(kind.NAME, None, kind.accounts(rng, int(high - low), plan.days)))
    for attack in plan.attacks:
        framed = victims(crowds, attack.frames) if attack.frames else None
        cover, work = enlist(attack, plan.seed, plan.days, framed)
        crowds.append(Crowd("hostile", attack.name, cover, work))
    return crowds


def victims(crowds: list[Crowd], number: int) -> Habits:
    """The honest accounts that a framing attack copies."""
    for crowd in crowds:
        if crowd.kind == FRAMED and len(crowd.habits) >= number:
            busiest = np.argsort(crowd.habits.rate)[::-1]
            middle = len(busiest) // 4  # well used, but none of the giants
            return crowd.habits.rows(busiest[middle : middle + number])
    raise InputError(f"a framing attack needs {number} honest accounts of the kind {FRAMED}")


def accounts_table(habits: Habits, start: int) -> Table:
    """What a provider knows of these accounts; `start` in microseconds since 1970."""
    created = pa.array(start + (habits.created * 1e6).astype(np.int64))
    columns = {
        "account": spelt(habits.who, "acc-"),
        "created": created.cast(pa.timestamp("us", "UTC")),
        "payment": spelt(habits.payment, "pay-"),
        "email_domain": _domains(habits.domain),
        "channel": pa.array(world.CHANNELS).take(pa.array(habits.channel)),
        "tier": pa.array(world.TIERS).take(pa.array(habits.tier)),
        "organisation": spelt(habits.organisation, "org-"),
    }
    return pa.table(columns, schema=ACCOUNTS)


def _domains(domain: Keys) -> Array:
    provider = np.where(domain <= len(world.WEBMAIL), domain, 0).astype(np.int64)
    own = joined(spelt(domain, "d"), pa.array([".example"] * len(domain), pa.string()))
    mail = pa.array([None, *world.WEBMAIL]).take(pa.array(provider))
    return pc.call_function("if_else", [pa.array(provider > 0), mail, own])

"""`limbeck guard …`: what a provider types, and nothing of how it is done."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

app = App(
    name="guard",
    help="Find, in your own logs, the campaign that distils your model.",
    help_format="plaintext",
)


@app.command
def simulate(
    *,
    out: Annotated[Path, Parameter(help="A new folder.")],
    accounts: Annotated[int, Parameter(help="Honest accounts.")] = 10_000,
    days: Annotated[int, Parameter(help="Days of traffic.")] = 7,
    seed: Annotated[int, Parameter(help="The same seed gives the same calls.")] = 0,
    start: Annotated[str, Parameter(help="First day, as YYYY-MM-DD, UTC.")] = "2026-03-02",
    release: Annotated[
        int | None, Parameter(help="Day of a model's release, from 0; default: the middle one.")
    ] = None,
    attacks: Annotated[
        str, Parameter(help="Campaigns, as a,b; or all, or none. An unknown name lists them.")
    ] = "all",
    attack_accounts: Annotated[
        int | None, Parameter(help="Accounts a campaign; default: a hundredth of the honest ones.")
    ] = None,
    per_day: Annotated[float | None, Parameter(help="Calls a day of a hostile account.")] = None,
    cover: Annotated[
        float | None, Parameter(help="Share of honest traffic in hostile accounts, below 1.")
    ] = None,
    without: Annotated[str, Parameter(help="Honest kinds to withhold, as a,b.")] = "",
    prompts: Annotated[bool, Parameter(help="Write prompts, or metadata only.")] = True,
    truth_calls: Annotated[
        bool, Parameter(negative="", help="Also write which calls are hostile.")
    ] = False,
    json_: Annotated[
        bool,
        Parameter(name="--json", negative="", help="Print one JSON document on standard output."),
    ] = False,
) -> None:
    """Write simulated calls, honest and hostile, to learn your false alarms and misses by.

    Example: limbeck guard simulate --out sim --accounts 20000 --days 14
    """
    import json
    from dataclasses import asdict
    from datetime import date

    from limbeck.errors import InputError
    from limbeck.guard import simulate as room
    from limbeck.guard.simulate.hostile import chosen
    from limbeck.progress import say

    try:
        first = date.fromisoformat(start)
    except ValueError:
        raise InputError(f"--start {start} is no date; write it as 2026-03-02") from None
    changes = {"accounts": attack_accounts, "per_day": per_day, "cover": cover}
    plan = room.Plan(
        accounts=accounts,
        days=days,
        seed=seed,
        attacks=chosen(attacks, max(20, accounts // 100), changes),
        without=tuple(name.strip() for name in without.split(",") if name.strip()),
        prompts=prompts,
        start=first,
        release=release,
        truth_calls=truth_calls,
    )
    summary = room.simulate(plan, out)
    if json_:
        print(json.dumps({"out": str(out)} | asdict(summary), ensure_ascii=False))  # noqa: T201
        return
    say(
        f"Wrote {out}, simulated: {summary.honest_accounts:,} honest accounts with "
        f"{summary.honest_calls:,} calls, {summary.hostile_accounts:,} hostile ones with "
        f"{summary.hostile_calls:,} hostile calls and {summary.cover_calls:,} as cover"
    )

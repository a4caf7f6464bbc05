"""The walk over a state folder: sketched calls → uses → families → campaigns → accounts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from limbeck.guard import cohorts, features, link, marks
from limbeck.guard.arrow import column, pa
from limbeck.guard.engine import Engine
from limbeck.guard.families import Families, judged, test
from limbeck.guard.features import Layer
from limbeck.guard.members import Members, assign

QUIET = 8
"""The quietest hours of the day, over all accounts."""


@dataclass(frozen=True, slots=True, eq=False)
class Scan:
    """All of a scan's results: what was tested in each layer, and who belongs to what."""

    layers: list[Families]
    members: Members


def prepare(engine: Engine) -> list[Layer]:
    """Run the SQL that does not depend on what is found; gives the layers that the log allows."""
    engine.table("account_ids", features.accounts())
    engine.table("stacks", features.stacks(engine))
    seen = engine.fetch("SELECT count(skeleton) AS n FROM sketched")["n"][0].as_py()
    prompts = seen > 0
    if prompts:
        engine.table("shared_skeletons", features.shared_skeletons())
        engine.table("loose", features.loose())
        engine.table("shared_bands", features.shared_bands())
        engine.table("templates", features.templates())
        engine.table("banded", features.banded())
    engine.table("events", features.events(engine, prompts=prompts))
    engine.table("volumes", features.volumes(engine))
    counted = engine.fetch(features.hours()).to_pydict()
    calls = dict(zip(counted["hour"], counted["calls"], strict=True))
    quiet = sorted(range(24), key=lambda hour: (calls.get(hour, 0), hour))[:QUIET]
    layers: list[Layer] = ["template", "shape", "client"] if prompts else ["shape", "client"]
    for layer in layers:
        engine.table(f"uses_{layer}", features.uses(layer, quiet, prompts=prompts))
    return layers


def group(engine: Engine, accounts: int) -> None:
    """Put templates into families by who uses them together, beyond chance."""
    engine.table("degrees", link.degrees())
    hub = max(link.FEW, int(link.HUB * accounts))
    engine.table("votes", link.votes(), hub=hub, most=link.KEYS_AN_ACCOUNT)
    engine.table("pairs", link.pairs())
    pairs = engine.fetch("SELECT * FROM pairs ORDER BY one, other")  # what Leiden finds goes by it
    found = link.edges(pairs, engine.fetch("SELECT * FROM votes"))
    keys = column(engine.fetch("SELECT DISTINCT key FROM uses_template ORDER BY key"), "key")
    engine.keep("families", pa.table({"key": keys, "family": cohorts.families(keys, found)}))


def find(engine: Engine, rate: float = 0.05, say: Callable[[str], None] = lambda _: None) -> Scan:
    """Everything from sketched calls (readable as `sketched`) to campaigns and accounts.

    Args:
        engine: Where `sketched` can be read.
        rate: False discovery rate of the families that campaigns are looked for in, and the chance
            of naming any where there is none.
        say: Is told each step.
    """
    layers = prepare(engine)
    volume = engine.fetch("SELECT aid, calls FROM volumes ORDER BY aid")
    calls = column(volume, "calls")
    engine.table("known", marks.known(engine))
    if "template" in layers:
        say("link")
        group(engine, len(calls))
    say("test")
    tested = judged([test(engine, layer, len(calls)) for layer in layers], rate)
    say("score")
    return Scan(tested, assign(engine, tested, calls, rate))

"""What a scan found, written for people and gateways: accounts.parquet and campaigns.json."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from limbeck.errors import InputError
from limbeck.files import whole_file, write_text
from limbeck.guard import standing
from limbeck.guard.arrow import pa, pq
from limbeck.guard.engine import Engine
from limbeck.guard.even import LEAST_CV2
from limbeck.guard.facts import Campaign, Facts, gather
from limbeck.guard.families import Families, Floats
from limbeck.guard.features import ELICITS
from limbeck.guard.members import FLAG, MOST
from limbeck.guard.scan import Scan
from limbeck.guard.schema import CAPABILITIES
from limbeck.guard.state import REPEATED

VERSION = 1
OPENLY = 0.8
"""Members who share one organisation to this extent are one customer's seats, said openly."""
COUNTED = (
    "A campaign's calls are those of its members that lie within one of its groups or look much "
    "like its work (calls_alike). Cover that looks alike may be among "
    "them, and work that looks like everybody's is not."
)
"""What campaigns.json and the page say of `calls`."""
WHAT = {
    "template": "the same templates of prompts",
    "shape": "the same lengths through the same client set-up",
    "client": "the same client set-up",
}


@dataclass(frozen=True, slots=True)
class Price:
    """What a million tokens sell for, read and written, in the user's currency."""

    tokens_in: float = 3.0
    tokens_out: float = 15.0


def write(
    engine: Engine, scan: Scan, out: Path, price: Price, ingested: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Campaign], Facts]:
    """Write accounts.parquet and campaigns.json into `out`.

    Args:
        engine: With the tables of the scan, and `texts`.
        scan: What was found.
        out: The folder.
        price: What the tokens taken are worth.
        ingested: What ingest.json says, as far as it is there.

    Returns:
        What campaigns.json says, the facts of each campaign by its id, and those of the log.
    """
    facts = gather(engine, scan)
    told = [_campaign(scan, one, facts, price) for one in facts.campaigns]
    told.sort(key=lambda one: (-one["accounts"], one["number"]))
    told, ids, aside = _settled(told)
    named = np.array([ids.get(c, "") for c in scan.members.campaign.tolist()], object)
    flagged = named != ""
    table = pa.table(
        {
            "account": facts.names,
            "p_value": scan.members.p_value,
            "flagged": flagged,
            "campaign": pa.array([name or None for name in named.tolist()], pa.string()),
        }
    )
    with whole_file(out / "accounts.parquet") as part:
        pq.write_table(table, part)
    document: dict[str, Any] = {
        "version": VERSION,
        "accounts": len(facts.names),
        "calls": facts.calls,
        "first_call": _moment(facts.traffic[0]["hour"]),
        "last_call": _moment(facts.traffic[-1]["hour"]),
        "flagged": int(flagged.sum()),
        "account_false_positive_rate": FLAG,
        "prices": asdict(price),
        "warnings": warnings(ingested) + ([MORE] if scan.members.more else []),
        "calls_are": COUNTED,
        "layers": {one.layer: _tested(one) for one in scan.layers},
        "campaigns": told,
        "set_aside": aside,
    }
    write_text(out / "campaigns.json", json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    return document, {ids[one.number]: one for one in facts.campaigns if one.number in ids}, facts


def warnings(ingested: dict[str, Any]) -> list[str]:
    """What a scan of this state folder cannot see, and what of the logs was left out."""
    lines = [f"Not to be seen, {blind}" for blind in ingested.get("cannot_see", [])]
    if ingested.get("mode") == "metadata":
        lines.insert(0, "There is no prompt in the log: only metadata is judged")
    elif ingested.get("with_prompt", 0) < ingested.get("calls", 0):
        share = ingested["with_prompt"] / ingested["calls"]
        lines.append(f"Only {share:.0%} of the calls have a prompt; of others metadata is judged")
    logs: list[dict[str, Any]] = ingested.get("logs", [])
    refused: Counter[str] = Counter()
    for log in logs:
        if log.get("kept") or set(log.get("refused", {})) != {REPEATED}:  # else it was read before
            refused.update(log.get("refused", {}))
    if refused:
        why = "; ".join(f"{reason} ({count:,})" for reason, count in refused.most_common(3))
        lines.append(f"{refused.total():,} rows of the log were refused: {why}")
    for key, said in (("without zone", "times bear no zone, and are read as UTC"),
                      ("cut", "prompts are long, and were read in part")):  # fmt: skip
        if count := sum(log.get(key, 0) for log in logs):
            lines.append(f"{count:,} {said}")
    return lines


def members(out: Path, campaign: str) -> list[str]:
    """The accounts of a campaign that a finished scan named.

    Raises:
        InputError: `out` holds no scan, or it named no such campaign.
    """
    _scanned(out)
    document = json.loads((out / "campaigns.json").read_text(encoding="utf-8"))
    known: dict[str, list[str]] = {one["id"]: one["members"] for one in document["campaigns"]}
    if campaign not in known:
        named = ", ".join(known) or "none"
        raise InputError(f"The scan in {out} named no campaign {campaign}; it named {named}")
    return known[campaign]


def _scanned(out: Path) -> Path:
    path = out / "accounts.parquet"
    if not path.exists() or not (out / "campaigns.json").exists():
        raise InputError(f"{out} holds no scan; first: limbeck guard scan CALLS --out {out}")
    return path


def explain(out: Path, account: str) -> dict[str, Any]:
    """Why an account was flagged, or not, by a finished scan.

    Raises:
        InputError: `out` holds no scan, or the scan saw no such account.
    """
    path = _scanned(out)
    rows = pq.read_table(path, filters=[("account", "=", account)]).to_pylist()
    if not rows:
        raise InputError(f"The scan in {out} saw no account {account}")
    row: dict[str, Any] = rows[0]
    document = json.loads((out / "campaigns.json").read_text(encoding="utf-8"))
    of = [one for one in document["campaigns"] if one["id"] == row["campaign"]]
    why = [{k: v for k, v in one.items() if k != "members"} for one in of]
    return row | {"why": why[0] if why else None, "needed_p_value": FLAG}


def lines(told: dict[str, Any]) -> list[str]:
    """What `explain` found, for a person."""
    chance = f"an honest account looks so with probability {told['p_value']:.2g}"
    why = told["why"]
    if why is None:
        reason = (
            "linked to no campaign"
            if told["p_value"] > FLAG
            else "its group was set aside, or is too small"
        )
        return [f"{told['account']} is not flagged: {reason}; {chance}"]
    head = f"{told['account']} is flagged as one of {why['accounts']:,} accounts of {why['id']}: "
    shared = [
        f"  {one['shares']}, by {one['members']:,} of them; its even users divide it with a CV² of "
        f"{one['cv2_of_even_users']} (p = {one['p_value']:.1g})"
        for one in why["evidence"].values()
    ]
    shared += [
        f"  {one['what']}: {one['share_of_members']:.0%} of them, {one['share_of_all']:.1%} of all"
        for one in why["standing"]
    ]
    weighed = why["honest_explanations"]
    seats = [
        f"  {name}: {weighed[name]['share']:.0%} of them share the largest"
        for name in weighed
        if weighed[name].get("share") is not None
    ]
    return [head + chance, "They share", *shared, "Honest explanations that were weighed", *seats]


def _settled(
    found: list[dict[str, Any]],
) -> tuple[list[dict[str, Any]], dict[int, str], list[dict[str, Any]]]:
    """Campaigns with their ids, by size, and the ids; what an organisation says openly is aside."""
    ids: dict[int, str] = {}
    told: list[dict[str, Any]] = []
    aside: list[dict[str, Any]] = []
    for one in found:
        number = one.pop("number")
        if (one["honest_explanations"]["one organisation"]["share"] or 0) >= OPENLY:
            aside.append({key: one[key] for key in one if key not in ("members", "shared")})
        else:
            ids[number] = f"C{len(ids) + 1}"
            told.append({"id": ids[number]} | one)
    return told, ids, aside


def _tested(families: Families) -> dict[str, int]:
    return {"families": len(families.family), "named": int(families.named.sum())}


def _campaign(scan: Scan, facts: Campaign, log: Facts, price: Price) -> dict[str, Any]:
    families = scan.members.families[facts.number]
    read, written = facts.totals["tokens_in"], facts.totals["tokens_out"]
    value = (read * price.tokens_in + written * price.tokens_out) / 1e6
    evidence = _evidence(scan, facts, families)
    return {
        "number": facts.number,
        "accounts": len(facts.members),
        "calls": facts.totals["calls"],
        "calls_alike": facts.totals["alike"],
        "calls_with_cover": facts.calls_with_cover,
        "tokens_in": read,
        "tokens_out": written,
        "value": round(value, 2),
        "first_call": _moment(facts.totals["first"]),
        "last_call": _moment(facts.totals["last"]),
        "timeline": _timeline(facts, log),
        "capabilities": _capabilities(facts),
        "evidence": evidence,
        "linked_without": _without(scan, facts),
        "standing": _standing(facts, log),
        "confidence": {
            "score": _score(scan.members.p_values[facts.number]),
            "p_value": scan.members.p_values[facts.number],
            "account_false_positives_expected": round(
                float(scan.members.honest[facts.aids].sum()), 4
            ),
        },
        "honest_explanations": _honest(facts, scan, families),
        "shared": [asdict(one) for one in facts.shared],
        "members": facts.members,
    }


KNOWN = 5
"""Families whose median stands for honest use."""
SURE = 95
"""A campaign's score is at most this: one scan in twenty may name what is none."""


def _score(p_value: float) -> int:
    """From 0 to 95: how sure a campaign is."""
    return min(SURE, math.floor(100 * (1 - p_value)))


def _moment(hour: int) -> str:
    """An hour since 1970 as ISO 8601 says it."""
    return str(np.datetime64(hour, "h").astype("datetime64[s]")) + "Z"


def _timeline(facts: Campaign, log: Facts) -> list[dict[str, Any]]:
    every: Counter[int] = Counter()
    for row in log.traffic:
        every[row["hour"] // 24] += row["calls"]
    return [
        {
            "day": str(np.datetime64(row["day"], "D")),
            "calls": row["calls"],
            "accounts": row["accounts"],
            "tokens_out": row["tokens_out"],
            "all_calls": every[row["day"]],
        }
        for row in facts.days
    ]


def _capabilities(facts: Campaign) -> dict[str, Any]:
    """What its calls seek; shares are of those with a prompt, None where there is none."""
    total = sum(row["n"] for row in facts.ways if row["skill"] >= 0)
    names = ("unknown", *CAPABILITIES)
    sought: dict[str, int] = {names[row["skill"] + 1]: row["n"] for row in facts.ways}
    asks = {
        name: round(sum(row[name] for row in facts.ways) / total, 4) if total else None
        for name in ELICITS
    }
    ordered = {
        name: sought[name] for name in sorted(sought, key=lambda name: (-sought[name], name))
    }
    return {"calls": ordered, "share_that_elicits": asks}


def _uneven(families: Families) -> Floats:
    """The CV² of members' rates in each family of a layer."""
    return np.exp(families.even)


def _usual(families: Families) -> float | None:
    """The median CV² of the families of a layer that are not named, where it can be told of some.

    Of a few calls each it cannot: no more than Poisson's is seen.
    """
    told = _uneven(families)
    told = told[~families.named & (told > LEAST_CV2)]
    return round(float(np.median(told)), 2) if len(told) >= KNOWN else None


def _evidence(
    scan: Scan, facts: Campaign, families: Sequence[tuple[str, int]]
) -> dict[str, dict[str, Any]]:
    told: dict[str, dict[str, Any]] = {}
    for one in scan.layers:
        mine = np.flatnonzero(
            np.isin(one.family, [f for layer, f in families if layer == one.layer])
        )
        if not len(mine):
            continue
        best = mine[int(one.p[mine].argmin())]
        told[one.layer] = {
            "shares": WHAT.get(one.layer, one.layer),
            "families": len(mine),
            "p_value": float(one.p[best]),
            "cv2_of_even_users": round(float(_uneven(one)[best]), 4),
            "marks": {name: round(float(mark[best]), 4) for name, mark in one.rest.items()},
            "z": {
                "even": round(float(one.z_even[best]), 2),
                "rest": round(float(one.z_rest[best]), 2),
            },
            "members": facts.within.get(one.layer, 0),
            "firm": len(facts.firm.get(one.layer, ())),
            "flagged_by_it_alone": int(
                (scan.members.evidence[one.layer] <= FLAG)[facts.aids].sum()
            ),
        }
    return told


def _standing(facts: Campaign, log: Facts) -> list[dict[str, Any]]:
    """What members are oftener than others; it tilts the scale that their calls are weighed on."""
    return [
        {
            "what": standing.said(row["trait"], row["value"]),
            "share_of_members": round(row["members"] / len(facts.aids), 4),
            "share_of_all": round(row["users"] / len(log.names), 4),
        }
        for row in facts.standing
    ]


def _without(scan: Scan, facts: Campaign) -> dict[str, dict[str, Any]]:
    """Whether a campaign would still be named were a layer not there, and which of its members.

    It would if a family of another layer passed the test, as all have that are in
    `Members.families`; told beside it is the share of the members who are firm in such a family, or
    flagged by such families alone: none where only cells of the family showed them.
    """
    mine = {layer for layer, _ in scan.members.families[facts.number]}
    held = {
        layer: np.isin(facts.aids, facts.firm.get(layer, [])) | (alone[facts.aids] <= FLAG)
        for layer, alone in scan.members.evidence.items()
        if layer in mine
    }
    told: dict[str, dict[str, Any]] = {}
    for layer in held:
        others = [one for other, one in held.items() if other != layer]
        share = float(np.any(others, axis=0).mean()) if others else 0.0
        told[layer] = {"links": bool(others), "share": round(share, 4)}
    return told


def _honest(facts: Campaign, scan: Scan, families: Sequence[tuple[str, int]]) -> dict[str, Any]:
    """What else could bring such a cohort about, and what speaks against it."""
    uneven = max(
        float(_uneven(one)[one.family == f][0])
        for one in scan.layers
        for layer, f in families
        if layer == one.layer
    )
    known = {name: round(share, 4) for name, share in facts.largest.items()}
    share = {name: known.get(name) for name in LARGEST}  # None: the log does not tell
    return {
        "one organisation": {"share": share["organisation"]},
        "one payment": {"share": share["payment"]},
        "one network (a campus, an office)": {"share": share["network"]},
        "a tool or rubric that many use": {
            "cv2_of_even_users": round(uneven, 4),
            "cv2_of_honest_use": {one.layer: _usual(one) for one in scan.layers},
        },
    }


MORE = f"After {MOST} campaigns no more were looked for; scan again without their accounts"
LARGEST = ("organisation", "payment", "network")

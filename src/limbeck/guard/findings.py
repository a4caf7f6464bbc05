"""What a scan found, written for people and gateways: accounts.parquet and campaigns.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from limbeck.errors import InputError
from limbeck.files import whole_file, write_text
from limbeck.guard.arrow import pa, pq
from limbeck.guard.engine import Engine
from limbeck.guard.scan import FLAG, Families, Scan, column, keep
from limbeck.guard.schema import CAPABILITIES

VERSION = 1
OPENLY = 0.8
"""Members who share one organisation to this extent are one customer's seats, said openly."""
WHAT = {
    "template": "the same templates of prompts",
    "recipe": "the same templates through the same client set-up",
    "method": "the same way of asking through the same client set-up",
    "shape": "the same lengths through the same client set-up",
    "client": "the same client set-up",
}


@dataclass(frozen=True, slots=True)
class Price:
    """What a million tokens sell for, read and written, in the user's currency."""

    tokens_in: float = 3.0
    tokens_out: float = 15.0


def write(engine: Engine, scan: Scan, out: Path, price: Price) -> dict[str, Any]:
    """Write accounts.parquet and campaigns.json into `out`; gives what the latter says."""
    names = engine.fetch("SELECT account FROM account_ids ORDER BY aid")["account"]
    told = [_campaign(engine, scan, number, price) for number in sorted(set(scan.keys.values()))]
    told = [one for one in told if one["accounts"]]
    told.sort(key=lambda one: (-one["accounts"], one["number"]))
    ids, aside = _settled(told)
    named = np.array([ids.get(c, "") for c in scan.campaign.tolist()], object)
    flagged = named != ""
    table = pa.table(
        {
            "account": names,
            "p_value": scan.p_value,
            "flagged": flagged,
            "campaign": pa.array([name or None for name in named.tolist()], pa.string()),
        }
    )
    with whole_file(out / "accounts.parquet") as part:
        pq.write_table(table, part)
    document: dict[str, Any] = {
        "version": VERSION,
        "accounts": len(names),
        "calls": int(engine.fetch("SELECT sum(calls) AS n FROM volumes")["n"][0].as_py() or 0),
        "flagged": int(flagged.sum()),
        "account_false_positive_rate": FLAG,
        "layers": {one.layer: _tested(one) for one in scan.layers},
        "campaigns": [one for one in told if one["id"]],
        "set_aside": aside,
    }
    for one in document["campaigns"]:
        members = names.take(pa.array(np.flatnonzero(scan.campaign == one["number"])))
        one["members"] = members.to_pylist()
        del one["number"]
    write_text(out / "campaigns.json", json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    return document


def explain(out: Path, account: str) -> dict[str, Any]:
    """Why an account was flagged, or not, by a finished scan.

    Raises:
        InputError: `out` holds no scan, or the scan saw no such account.
    """
    path = out / "accounts.parquet"
    if not path.exists():
        raise InputError(f"{out} holds no scan; first: limbeck guard scan CALLS --out {out}")
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
        reason = "linked to no campaign" if told["p_value"] > FLAG else "in a group set aside"
        return [f"{told['account']} is not flagged: {reason}; {chance}"]
    head = f"{told['account']} is flagged as one of {why['accounts']:,} accounts of {why['id']}: "
    shared = [
        f"  {one['shares']}, by {one['members']:,} of them, who divide it with a CV² of "
        f"{one['cv2_of_members']} (p = {one['p_value']:.1g})"
        for one in why["evidence"].values()
    ]
    weighed = why["honest_explanations"]
    seats = [
        f"  {name}: {weighed[name]['share']:.0%} of them share the largest"
        for name in weighed
        if "share" in weighed[name]
    ]
    return [head + chance, "They share", *shared, "Honest explanations that were weighed", *seats]


def _settled(told: list[dict[str, Any]]) -> tuple[dict[int, str], list[dict[str, Any]]]:
    """Ids of the campaigns, by size; what an organisation says openly is set aside."""
    ids: dict[int, str] = {}
    aside: list[dict[str, Any]] = []
    for one in told:
        openly = one["honest_explanations"]["one organisation"]["share"]
        one["id"] = "" if openly >= OPENLY else f"C{len(ids) + 1}"
        if one["id"]:
            ids[one["number"]] = one["id"]
        else:
            aside.append({k: v for k, v in one.items() if k not in ("id", "number")})
    return ids, aside


def _tested(families: Families) -> dict[str, int]:
    return {"families": len(families.family), "named": int(families.named.sum())}


def _campaign(engine: Engine, scan: Scan, number: int, price: Price) -> dict[str, Any]:
    members = np.flatnonzero(scan.campaign == number)
    keep(engine, "members", pa.table({"aid": members.astype(np.int32)}))
    families = [key for key, campaign in scan.keys.items() if campaign == number]
    engine.table("taken", taken(families))
    total = engine.fetch(
        """SELECT count(*) AS calls, sum(tokens_in) AS tokens_in, sum(tokens_out) AS tokens_out
        FROM taken"""
    ).to_pylist()[0]
    read, written = (int(total[name] or 0) for name in ("tokens_in", "tokens_out"))
    value = (read * price.tokens_in + written * price.tokens_out) / 1e6
    return {
        "number": number,
        "accounts": len(members),
        "calls": total["calls"],
        "calls_with_cover": _calls(engine),
        "tokens_in": read,
        "tokens_out": written,
        "value": round(value, 2),
        "timeline": _timeline(engine),
        "capabilities": _capabilities(engine),
        "evidence": _evidence(scan, number, families),
        "linked_without": _without(scan, number, members),
        "confidence": {
            "account_false_positives_expected": round(float(scan.p_value[members].sum()), 4),
            "largest_family_p_value": max(_p(scan, *key) for key in families),
        },
        "honest_explanations": _honest(engine, scan, families),
    }


def taken(families: Sequence[tuple[str, int]]) -> str:
    """The calls that a campaign's members made within its families."""
    by: dict[str, list[int]] = {}
    for layer, family in families:
        by.setdefault(layer, []).append(family)
    columns = {"method": "method", "shape": "shape", "client": "stack"}
    parts = [
        f"SELECT call FROM events WHERE {columns[layer]} IN ({', '.join(map(str, keys))})"
        for layer, keys in by.items()
        if layer not in ("template", "recipe")
    ]
    if "recipe" in by:
        chosen = ", ".join(map(str, by["recipe"]))
        parts.append(f"SELECT call FROM templated WHERE template * 1048576 + stack IN ({chosen})")
    if "template" in by:
        chosen = ", ".join(map(str, by["template"]))
        parts.append(
            f"""SELECT t.call FROM templated t JOIN families f ON f.key = t.template
            WHERE f.family IN ({chosen})"""
        )
    return f"""SELECT e.call, e.aid, e.hour, e.method, e.tokens_in, e.tokens_out
        FROM events e JOIN members m ON m.aid = e.aid
        WHERE e.call IN ({" UNION ".join(parts)})"""


def _calls(engine: Engine) -> int:
    sql = "SELECT sum(v.calls) AS n FROM volumes v JOIN members m ON m.aid = v.aid"
    return int(engine.fetch(sql)["n"][0].as_py() or 0)


def _timeline(engine: Engine) -> list[dict[str, Any]]:
    day = engine.div("hour", "24")
    rows = engine.fetch(
        f"""SELECT {day} AS day, count(*) AS calls, count(DISTINCT aid) AS accounts
        FROM taken GROUP BY 1 ORDER BY 1"""
    ).to_pylist()
    return [row | {"day": str(np.datetime64(int(row["day"]), "D"))} for row in rows]


def _capabilities(engine: Engine) -> dict[str, Any]:
    rows = engine.fetch("SELECT method % 2048 AS way, count(*) AS n FROM taken GROUP BY 1")
    way, calls = column(rows, "way"), column(rows, "n")
    skill, bits, total = way % 256 - 1, way // 256, max(1, int(calls.sum()))
    names = ("unknown", *CAPABILITIES)
    sought: dict[str, int] = {
        names[s + 1]: int(calls[skill == s].sum()) for s in np.unique(skill).tolist()
    }
    asks = {
        name: round(int(calls[(bits >> i) & 1 == 1].sum()) / total, 4)
        for i, name in enumerate(("reasoning", "rubric", "trace"))
    }
    ordered = {name: sought[name] for name in sorted(sought, key=lambda name: -sought[name])}
    return {"calls": ordered, "share_that_elicits": asks}


def _p(scan: Scan, layer: str, family: int) -> float:
    families = next(one for one in scan.layers if one.layer == layer)
    return float(families.p[families.family == family][0])


def _evidence(
    scan: Scan, number: int, families: Sequence[tuple[str, int]]
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
            "shares": WHAT[one.layer],
            "families": len(mine),
            "p_value": float(one.p[best]),
            "cv2_of_members": round(float(np.exp(one.even[best])), 4),
            "marks": {name: round(float(mark[best]), 4) for name, mark in one.rest.items()},
            "z": {
                "even": round(float(one.z_even[best]), 2),
                "rest": round(float(one.z_rest[best]), 2),
            },
            "members": int((scan.evidence[one.layer] <= FLAG)[scan.campaign == number].sum()),
        }
    return told


def _without(scan: Scan, number: int, members: Any) -> dict[str, dict[str, Any]]:
    """The share of members that would still be linked, were a layer not there."""
    told: dict[str, dict[str, Any]] = {}
    for layer in scan.evidence:
        others = [p[members] for name, p in scan.evidence.items() if name != layer]
        share = float((np.min(others, axis=0) <= FLAG).mean()) if others else 0.0
        told[layer] = {"share": round(share, 4), "links": share >= 0.5}
    return told


def _honest(engine: Engine, scan: Scan, families: Sequence[tuple[str, int]]) -> dict[str, Any]:
    """What else could bring such a cohort about, and what speaks against it."""
    uneven = max(
        float(np.exp(one.even[one.family == f][0]))
        for one in scan.layers
        for layer, f in families
        if layer == one.layer
    )
    return {
        "one organisation": {"share": _largest(engine, "organisation")},
        "one payment": {"share": _largest(engine, "payment")},
        "one network (a campus, an office)": {"share": _network(engine)},
        "a tool or rubric that many use": {
            "cv2_of_members": round(uneven, 4),
            "cv2_of_honest_use": {
                one.layer: round(float(np.exp(np.median(one.even))), 2) for one in scan.layers
            },
        },
    }


def _largest(engine: Engine, name: str) -> float:
    rows = engine.fetch(
        f"""SELECT count(*) AS n FROM accounts a JOIN account_ids i ON i.account = a.account
        JOIN members m ON m.aid = i.aid WHERE a.{name} IS NOT NULL GROUP BY a.{name}
        ORDER BY 1 DESC LIMIT 1"""
    )
    size = int(engine.fetch("SELECT count(*) AS n FROM members")["n"][0].as_py())
    return round(rows["n"][0].as_py() / max(1, size), 4) if rows.num_rows else 0.0


def _network(engine: Engine) -> float:
    rows = engine.fetch(
        """SELECT c.network, count(DISTINCT m.aid) AS n FROM sketched c
        JOIN account_ids i ON i.account = c.account JOIN members m ON m.aid = i.aid
        WHERE c.network IS NOT NULL GROUP BY c.network ORDER BY n DESC LIMIT 1"""
    )
    size = int(engine.fetch("SELECT count(*) AS n FROM members")["n"][0].as_py())
    return round(rows["n"][0].as_py() / max(1, size), 4) if rows.num_rows else 0.0

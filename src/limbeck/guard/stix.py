"""Campaigns as a STIX 2.1 bundle: for tools that exchange what was seen of them.

Every id is a UUID of version 5 over what the object says, and every time comes from the log, so the
same findings give the same bundle, byte for byte. Names of accounts and networks are the log's own.
"""

from __future__ import annotations

import ipaddress
import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from limbeck.guard.facts import Campaign, Place

Object: TypeAlias = dict[str, Any]

NAMESPACE = uuid.UUID("b0b4a6f0-52f1-5d0c-9a51-6c1f2c7f6d11")
"""Under which our own objects' ids are made."""
OBSERVABLES = uuid.UUID("00abedb4-aa42-466c-9c01-fed23315a9b7")
"""That of observables, STIX 2.1, section 2.9."""
AMBER = "marking-definition--f88d31f6-486f-44da-b317-01333bde0b82"
"""TLP:AMBER, section 7.2.1.4: accounts are named, so the bundle is for those who need it."""
LEAST, OWN = 3, 0.9
"""A network is a campaign's own when so many members, and this share of its accounts, use it."""
MOST = 500
"""Indicators of one campaign: the networks of most members."""
DAYS = 30
"""How long after its last call a network is worth watching: addresses change hands."""


def own(places: Sequence[Place]) -> list[Place]:
    """The networks and systems that are specific to a campaign, those of most members first.

    A hub (a campus, a carrier, a hosting firm) has users of its own, and is none.
    """
    found = [one for one in places if one.members >= LEAST and one.members >= OWN * one.users]
    return sorted(found, key=lambda one: (-one.members, one.kind, one.name))[:MOST]


def bundle(document: Mapping[str, Any], campaigns: Mapping[str, Campaign]) -> str:
    """The campaigns of a scan as JSON; one identity alone where there is none."""
    created = _time(document["last_call"])
    reporter: Object = {
        "type": "identity",
        "spec_version": "2.1",
        "id": f"identity--{uuid.uuid5(NAMESPACE, 'limbeck guard')}",
        "created": _time(EPOCH),
        "modified": _time(EPOCH),
        "name": "Limbeck guard",
        "identity_class": "system",
    }
    objects: dict[str, Object] = {reporter["id"]: reporter}
    for one in document["campaigns"]:
        common = {
            "created_by_ref": reporter["id"],
            "created": _time(one["first_call"]),
            "modified": created,
            "object_marking_refs": [AMBER],
        }
        for made in _campaign(one, campaigns[one["id"]], common):
            objects.setdefault(made["id"], made)
    whole = json.dumps(list(objects), ensure_ascii=False)
    told = {
        "type": "bundle",
        "id": f"bundle--{uuid.uuid5(NAMESPACE, whole)}",
        "objects": list(objects.values()),
    }
    return json.dumps(told, indent=1, ensure_ascii=False) + "\n"


EPOCH = "2026-01-01T00:00:00Z"
"""When the identity came to be: the same in every bundle."""


def _campaign(one: Mapping[str, Any], facts: Campaign, common: Object) -> list[Object]:
    """The campaign, its accounts and networks as observed, and an indicator a network."""
    accounts = [_observable("user-account", "account_login", name) for name in one["members"]]
    asks = one["capabilities"]["share_that_elicits"]["reasoning"]
    asking = "" if asks is None else f"; {asks:.0%} of the calls ask for reasoning"
    sought = ", ".join(list(one["capabilities"]["calls"])[:4])
    campaign = _object(
        "campaign",
        common,
        [one["members"]],
        name=f"Model distillation by {one['accounts']:,} accounts ({one['id']})",
        description=f"{one['accounts']:,} accounts divide one work-list: {one['calls']:,} answers, "
        f"{one['tokens_out']:,} tokens written. Seeks {sought}{asking}. Found by statistics and "
        "not confirmed by a person.",
        objective="Train a model on the answers of another",
        first_seen=_time(one["first_call"]),
        last_seen=_time(one["last_call"]),
        confidence=one["confidence"]["score"],
    )
    kept = [(place, seen) for place in own(facts.places) if (seen := _place(place))]
    seen = accounts + [observable for _, observable in kept]
    observed = _object(
        "observed-data",
        common,
        [campaign["id"], "observed"],
        first_observed=_time(one["first_call"]),
        last_observed=_time(one["last_call"]),
        number_observed=min(one["calls"], 999_999_999),
        object_refs=[observable["id"] for observable in seen],
    )
    made = [campaign, *seen, observed, _tied(observed, "related-to", campaign, common)]
    if not kept:
        return made
    infrastructure = _object(
        "infrastructure",
        common,
        [campaign["id"], "networks"],
        name=f"Networks used by {one['id']} and hardly by others",
        infrastructure_types=["unknown"],
    )
    made += [infrastructure, _tied(campaign, "uses", infrastructure, common)]
    for place, observable in kept:
        indicator = _indicator(place, observable, campaign, common)
        made += [
            _tied(infrastructure, "consists-of", observable, common),
            indicator,
            _tied(indicator, "indicates", campaign, common),
            _tied(indicator, "based-on", observed, common),
        ]
    return made


def _place(place: Place) -> Object | None:
    """A network as an observable; None where its name is no address, as when it is hashed."""
    if place.kind == "asn":
        digits = place.name.upper().removeprefix("AS")
        if not (digits.isascii() and digits.isdigit() and int(digits) < 1 << 32):
            return None
        return _observable("autonomous-system", "number", int(digits))
    try:
        address = ipaddress.ip_network(place.name, strict=False)
    except ValueError:
        return None
    single = address.num_addresses == 1
    value = str(address.network_address) if single else str(address)
    return _observable(f"ipv{address.version}-addr", "value", value)


def _indicator(place: Place, observable: Object, campaign: Object, common: Object) -> Object:
    """What to look out for: calls from one network, for a month after the last."""
    if observable["type"] == "autonomous-system":
        pattern = f"[autonomous-system:number = {observable['number']}]"
    else:
        compared = "ISSUBSET" if "/" in observable["value"] else "="
        pattern = f"[{observable['type']}:value {compared} '{observable['value']}']"
    return _object(
        "indicator",
        common,
        [campaign["id"], pattern],
        name=f"Calls from {place.name}",
        description=f"{place.members:,} of the {place.users:,} accounts seen there are members.",
        indicator_types=["anomalous-activity"],
        pattern=pattern,
        pattern_type="stix",
        pattern_version="2.1",
        valid_from=_hour(place.first),
        valid_until=_hour(place.last + 24 * DAYS),
        confidence=campaign["confidence"] * place.members // place.users,
    )


def _object(kind: str, common: Object, of: Sequence[Any], **properties: Any) -> Object:
    """An object of our own, whose id is that of what it is about."""
    name = uuid.uuid5(NAMESPACE, json.dumps([kind, *of], ensure_ascii=False))
    return {
        "type": kind,
        "spec_version": "2.1",
        "id": f"{kind}--{name}",
        **common,
        **properties,
    }


def _tied(source: Object, how: str, target: Object, common: Object) -> Object:
    return _object(
        "relationship",
        common,
        [source["id"], how, target["id"]],
        relationship_type=how,
        source_ref=source["id"],
        target_ref=target["id"],
    )


def _observable(kind: str, key: str, value: str | int) -> Object:
    """An observable; its id is the one that every STIX tool makes of the same thing.

    STIX 2.1, section 2.9: version 5 over the properties that identify it, as canonical JSON.
    """
    identified = json.dumps({key: value}, ensure_ascii=False, separators=(",", ":"))
    name = uuid.uuid5(OBSERVABLES, identified)
    return {"type": kind, "spec_version": "2.1", "id": f"{kind}--{name}", key: value}


def _time(moment: str) -> str:
    """A second as STIX writes it, to the millisecond."""
    return moment.removesuffix("Z") + ".000Z"


def _hour(hour: int) -> str:
    return str(np.datetime64(hour, "h").astype("datetime64[ms]")) + "Z"

"""campaigns.stix.json, held to the official library of STIX and its grammar of patterns."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guard_found import EVIL, Found
from limbeck.guard import stix
from limbeck.guard.facts import Campaign, Place

stix2 = pytest.importorskip("stix2")
validator: Any = pytest.importorskip("stix2patterns.validator")


def objects(text: str, kind: str) -> list[Any]:
    bundle = stix2.parse(text, allow_custom=False)
    return [one for one in bundle.objects if one.type == kind]


@pytest.fixture(scope="module")
def text(scanned: Found) -> str:
    return (scanned.out / "campaigns.stix.json").read_text(encoding="utf-8")


def test_the_bundle_says_what_the_scan_found(text: str, scanned: Found) -> None:
    (one,) = scanned.told["campaigns"]
    (campaign,) = objects(text, "campaign")
    accounts = objects(text, "user-account")
    assert {account.account_login for account in accounts} == set(one["members"])
    assert EVIL in accounts[0].account_login
    assert campaign.confidence == one["confidence"]["score"]
    assert f"{campaign.first_seen:%Y-%m-%dT%H:%M:%SZ}" == one["first_call"]
    assert f"{campaign.last_seen:%Y-%m-%dT%H:%M:%SZ}" == one["last_call"]
    (observed,) = objects(text, "observed-data")
    assert {account.id for account in accounts} <= set(observed.object_refs)
    assert observed.number_observed == one["calls"]
    assert campaign.object_marking_refs == [stix2.TLP_AMBER.id]


def test_every_reference_is_in_the_bundle(text: str) -> None:
    told = json.loads(text)["objects"]
    ids = [one["id"] for one in told]
    assert len(ids) == len(set(ids))
    known = {*ids, stix2.TLP_AMBER.id}
    for one in told:
        for key, value in one.items():
            if key.endswith("_ref"):
                assert value in known
            if key.endswith("_refs"):
                assert set(value) <= known


def test_own_networks_are_indicated_and_hubs_are_not(text: str) -> None:
    patterns = {one.pattern for one in objects(text, "indicator")}
    own = {f"[ipv4-addr:value = '198.51.100.{n}']" for n in range(4)}
    assert patterns == own | {"[autonomous-system:number = 64500]"}
    assert all(validator.validate(pattern) for pattern in patterns)
    assert "203.0.113" not in text and "64496" not in text
    consists = [r for r in objects(text, "relationship") if r.relationship_type == "consists-of"]
    assert len(consists) == 5


def test_observables_have_the_ids_that_every_tool_gives_them(text: str) -> None:
    for one in json.loads(text)["objects"]:
        bare = {k: v for k, v in one.items() if k != "id"}
        if one["type"] in ("user-account", "ipv4-addr", "autonomous-system"):
            assert stix2.parse(bare, version="2.1").id == one["id"]


def campaign(places: list[Place], members: list[str]) -> Campaign:
    rows: list[Any] = []
    return Campaign(
        number=0, aids=np.zeros(1, int), members=members, totals={}, calls_with_cover=9, hours=rows,
        days=rows, ways=rows, within={}, firm={}, largest={}, standing=[], shared=[],
        links=[], lookalikes=set(), places=places, samples=rows,
    )  # fmt: skip


def bundle(places: list[Place], members: list[str]) -> str:
    one = {
        "id": "C1",
        "accounts": len(members),
        "calls": 9,
        "tokens_out": 9,
        "members": members,
        "first_call": "2026-03-01T00:00:00Z",
        "last_call": "2026-03-01T05:00:00Z",
        "capabilities": {"calls": {"code": 9}, "share_that_elicits": {"reasoning": 0.5}},
        "confidence": {"score": 90},
    }
    document = {"last_call": "2026-03-02T00:00:00Z", "campaigns": [one]}
    return stix.bundle(document, {"C1": campaign(places, members)})


@pytest.mark.parametrize(
    ("kind", "name", "pattern"),
    [
        ("network", "198.51.100.7", "[ipv4-addr:value = '198.51.100.7']"),
        ("network", "198.51.100.0/24", "[ipv4-addr:value ISSUBSET '198.51.100.0/24']"),
        ("network", "198.51.100.7/24", "[ipv4-addr:value ISSUBSET '198.51.100.0/24']"),
        ("network", "2001:db8::/32", "[ipv6-addr:value ISSUBSET '2001:db8::/32']"),
        ("asn", "as64500", "[autonomous-system:number = 64500]"),
        ("asn", "99999999999", None),
        ("network", "4f1c2a pseudonym", None),
        ("network", "1.2.3.4'] OR [ipv4-addr:value = '0.0.0.0", None),
        ("asn", "64500] OR [a:b = 1", None),
    ],
)
def test_patterns_of_networks(kind: Any, name: str, pattern: str | None) -> None:
    text = bundle([Place(kind, name, 9, 10, 490_000, 490_010)], ["a"])
    found = objects(text, "indicator")
    assert [one.pattern for one in found] == ([pattern] if pattern else [])
    for one in found:
        assert validator.validate(one.pattern)
        assert one.confidence == 81
        assert (one.valid_until - one.valid_from).total_seconds() == 3600 * (10 + 24 * 30)


@settings(max_examples=30)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1))
def test_any_name_gives_a_valid_bundle_with_the_librarys_own_ids(members: list[str]) -> None:
    text = bundle([], members)
    accounts = objects(text, "user-account")
    assert {one.account_login for one in accounts} == set(members)
    for one in accounts:
        again = stix2.v21.UserAccount(account_login=one.account_login)
        assert again.id == one.id
    assert text == bundle([], members)


def test_what_few_members_use_or_many_others_do_is_not_specific() -> None:
    hub: Callable[[int, int], Place] = lambda members, users: Place(  # noqa: E731
        "network", "10.0.0.1", members, users, 1, 2
    )
    kept = stix.own([hub(2, 2), hub(30, 40), hub(9, 10), hub(500, 500)])
    assert [one.members for one in kept] == [500, 9]

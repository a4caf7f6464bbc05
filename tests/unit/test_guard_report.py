"""report.html of a scan: a page of one file, whatever the log's names hold."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guard_found import EVIL, Found
from guard_world import Campaign as Hostile
from guard_world import world, write
from limbeck.__main__ import run
from limbeck.guard import drawing, findings, profile, report, scan
from limbeck.guard.facts import Campaign, Shared, _set_up  # pyright: ignore[reportPrivateUsage]
from limbeck.guard.features import STACK
from limbeck.guard.members import Members
from limbeck.guard.page import el, written
from limbeck.guard.schema import SKETCH

VOID = {"meta", "br", "img"}
CHROMIUM = Path("/usr/bin/chromium")


class Page(HTMLParser):
    """Tags with their attributes and the text of each, as a browser's parser would find them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))


@pytest.fixture(scope="module")
def page(scanned: Found) -> Page:
    return Page((scanned.out / "report.html").read_text(encoding="utf-8"))


def test_no_name_of_the_log_becomes_markup(page: Page, scanned: Found) -> None:
    assert {tag for tag, _ in page.tags} & {"script", "img", "link", "iframe"} == set()
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        assert not any("://" in (attributes.get(name) or "") for name in ("href", "src"))
    assert scanned.told["campaigns"][0]["members"][0] in page.texts  # an account
    assert f"explain … {EVIL}" in page.text  # a template
    assert f"no session: sessions {EVIL}" in page.text  # a warning
    assert f"signed up through {EVIL} programme" in page.text  # what members are oftener
    assert page.text.count(EVIL) > 150


def test_the_page_tells_what_campaigns_json_does(page: Page, scanned: Found) -> None:
    (one,) = scanned.told["campaigns"]
    assert scanned.code == 1 and set(one["members"]) <= scanned.hostile
    for number in (one["calls"], one["tokens_out"], one["accounts"], scanned.told["calls"]):
        assert f"{number:,}" in page.text
    expected = scanned.told["account_false_positive_rate"] * scanned.told["accounts"]
    assert f"{expected:,.2f} by mistake" in page.text
    assert "calibrated figure" in page.text and "A person signs" in page.text
    for layer in one["evidence"].values():
        assert layer["shares"] in page.text
        log = layer["marks"]["bursts"]
        assert f"of an even spread: {math.exp(log):.2g}" in page.text
    (joined,) = (row for row in one["standing"] if row["what"].startswith("signed up through"))
    assert joined["share_of_members"] == 1
    assert joined["share_of_all"] == pytest.approx(150 / scanned.told["accounts"], rel=0.1)


def test_a_value_is_told_with_its_prices(scanned: Found) -> None:
    told: dict[str, Any] = scanned.told | {"prices": {"tokens_in": 3, "tokens_out": 15.5}}
    head = "".join(report._header(told).itertext())  # pyright: ignore[reportPrivateUsage]
    assert f"{told['campaigns'][0]['value']:,.2f}, at 3.00 per million tokens read" in head
    assert "and 15.50 written." in head


def test_what_cannot_be_seen_is_carried_into_both(page: Page, scanned: Found) -> None:
    said = scanned.told["warnings"]
    assert any(
        line.startswith("5 rows of the log were refused: time is missing (4)") for line in said
    )
    assert any("sessions" in line for line in said)
    assert any(line.startswith("2 prompts are long") for line in said)
    assert all(line in page.texts for line in said)


def test_metadata_mode_is_said_and_counts_are_over_all_logs() -> None:
    blind = findings.warnings({"mode": "metadata", "cannot_see": ["no prompt: templates"]})
    assert blind[0].startswith("There is no prompt")
    assert findings.warnings({"version": 1, "logs": []}) == []
    part = findings.warnings({"mode": "full", "with_prompt": 25, "calls": 100})
    assert part == ["Only 25% of the calls have a prompt; of others metadata is judged"]


def test_without_prompts_or_accounts_nothing_is_claimed_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever the scan finds, here the truth is named by its client set-up."""
    table, truth = world(11, 300, [Hostile(60, cover=0.3, templates=1)])
    bare = ["network", "asn", *(field.name for field in SKETCH if field.name != "chars")]
    for name in bare:
        place = table.schema.get_field_index(name)
        nothing = pa.nulls(table.num_rows, table.schema.field(name).type)
        table = table.set_column(place, name, nothing)
    write(table, tmp_path / "state" / "sketched")
    ingested = {"version": 1, "mode": "metadata", "cannot_see": ["no accounts: payment"]}
    (tmp_path / "state" / "ingest.json").write_text(json.dumps(ingested))
    find = scan.find

    def known(engine: Any, **options: Any) -> scan.Scan:
        found = find(engine, **options)
        names = engine.fetch("SELECT account FROM account_ids ORDER BY aid")["account"].to_pylist()
        of = truth[[int(name[1:]) for name in names]]
        client = next(layer for layer in found.layers if layer.layer == "client")
        busiest = int(client.family[client.members.argmax()])
        p = np.where(of == 0, 1e-5, 1.0)
        nothing = pa.table({name: pa.array([], pa.int64()) for name in ("value", "weight")})
        nothing = nothing.append_column("trait", pa.array([], pa.string()))
        engine.keep("learnt", profile.learnt({0: (nothing, dict.fromkeys(profile.TRAITS, 0))}))
        of_client = {"layer": ["client"], "family": [busiest], "aid": [int((of == 0).argmax())]}
        engine.keep("firm", pa.table(of_client))
        members = Members(of, p, {0: [("client", busiest)]}, {"client": p}, {0: 0.01}, p)
        return replace(found, members=members)

    monkeypatch.setattr(scan, "find", known)
    out = tmp_path / "out"
    assert run(["guard", "scan", str(tmp_path / "state"), "--out", str(out)]) == 1
    told = json.loads((out / "campaigns.json").read_text())
    one = told["campaigns"][0]
    assert all(truth[int(name[1:])] == 0 for name in one["members"])
    assert set(one["capabilities"]["share_that_elicits"].values()) == {None}
    weighed = one["honest_explanations"]
    assert all(w["share"] is None for w in weighed.values() if "share" in w)
    page = Page((out / "report.html").read_text(encoding="utf-8"))
    assert "There is no prompt in the log: only metadata is judged" in page.texts
    assert "Not to be seen, no accounts: payment" in page.texts
    assert "not seen" in page.texts and "the log does not tell" in page.texts
    assert "reasoning" not in (out / "campaigns.stix.json").read_text()
    assert run(["guard", "explain", str(out), one["members"][0]]) == 0


def test_look_alikes_are_drawn_and_are_not_members(page: Page, scanned: Found) -> None:
    members = set(scanned.told["campaigns"][0]["members"])
    for side in ("hostile", "alike"):
        drawn = [a for tag, a in page.tags if tag == "circle" and a.get("class") == side]
        assert len(drawn) > 50
    shared = scanned.told["campaigns"][0]["shared"]
    own = [one for one in shared if one["name"].startswith("198.51.100.")]
    hub = [one for one in shared if one["name"] == "203.0.113.0/24"]
    assert own and all(one["users"] == one["members"] for one in own)
    assert hub and hub[0]["users"] > 2 * hub[0]["members"]
    assert all(one["members"] <= len(members) for one in shared)


def test_no_two_set_ups_look_the_same() -> None:
    values = (["sdk"], [-1, 0, 70], [-1, 64], [-1, 0, 1], [-1, 0, 1], ["", "m"], [0, 1])
    told = [dict(zip(STACK, one, strict=True)) for one in itertools.product(*values)]
    assert len({_set_up({**row}) for row in told}) == len(told)


def test_timeline_draws_every_call_where_it_was() -> None:
    every = [{"hour": h, "calls": 10, "tokens_out": 5} for h in range(480_000, 480_048)]
    own = [{"hour": 480_012, "calls": 3, "tokens_out": 9}]
    svg = drawing.timeline(own, every, drawing.WIDE)
    outline = svg.findall("path")[0].get("d") or ""
    heights = [float(v) for v in re.findall(r"V([\d.]+)H", outline)]
    floor = max(heights)
    assert len(heights) == 48
    assert [place for place, v in enumerate(heights) if v < floor] == [12]
    by_day = [{"hour": 480_000 + 24 * d, "calls": 1, "tokens_out": 1} for d in range(40)]
    days = drawing.timeline(by_day[:1], by_day, drawing.NARROW).findall("path")[0].get("d") or ""
    assert days.count("H") == 40


@settings(max_examples=30)
@given(st.text(), st.text())
def test_any_text_comes_back_as_it_was_or_marked(text: str, value: str) -> None:
    page = Page(written("t", el("p", text, "!", title=value)))
    kept = "".join(page.texts[page.texts.index("t") + 1 :]).strip("\n")
    clean = re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "�", text)
    assert kept == (clean + "!").strip("\n")
    assert len([tag for tag, _ in page.tags if tag == "p"]) == 1


def test_a_campaign_of_which_nothing_is_shared_is_drawn_all_the_same() -> None:
    rows = [{"hour": 1, "calls": 1, "tokens_out": 1}]
    shared = [Shared("payment", "p", 2, 2)]
    lone = Campaign(
        number=0, aids=np.array([0]), members=["a"], totals={}, calls_with_cover=1, hours=rows,
        days=[], ways=[], within={}, firm={}, largest={}, standing=[],
        shared=shared, links=[], lookalikes=set(),
        places=[], samples=[],
    )  # fmt: skip
    assert drawing.network(lone, drawing.NARROW).tag == "svg"
    assert drawing.timeline(rows, rows, drawing.WIDE).tag == "svg"


def test_a_browser_runs_nothing_and_asks_for_nothing(scanned: Found, needs: Any) -> None:
    needs(importlib.util.find_spec("playwright"), "playwright")
    needs(CHROMIUM.exists(), str(CHROMIUM))
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        for width in (1280, 390):
            page = browser.new_page(viewport={"width": width, "height": 900})
            asked: list[str] = []
            page.on("request", lambda request, asked=asked: asked.append(request.url))
            page.goto((scanned.out / "report.html").as_uri())
            assert page.title() == "Campaigns – Limbeck guard"
            assert len(asked) == 1
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert wide <= width
            assert page.locator("svg:visible").count() == 2
        browser.close()

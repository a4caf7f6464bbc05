import itertools
import tomllib
from dataclasses import fields, replace
from datetime import date
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.errors import GateError, InputError
from limbeck.permit.decide import Route, decide
from limbeck.permit.gate import gate, in_words, line
from limbeck.permit.recorded import read_recorded
from limbeck.permit.register import PURPOSES, parse_register, register
from limbeck.records import Permission

TEACHER = "SmolLM2-135M-Instruct.Q4_1"
READ_AT = "GGUF key general.license of X.gguf"
TODAY = date(2026, 11, 21)
LICENCES = [entry for entry in register().entry if entry.route == "weights"]


def ask(
    licence: str | None,
    purpose: Any = "product",
    recorded: Path | None = None,
    today: date | None = TODAY,
    teacher: str = TEACHER,
    found: str = READ_AT,
) -> Permission:
    word = read_recorded(recorded) if recorded else None
    route = Route("weights", "", teacher, licence, found)
    return decide([route], purpose, recorded=word, today=today)


def record(folder: Path, drop: str = "", **changed: str) -> Path:
    rows = {
        "teacher": f'"{TEACHER}"',
        "allowed_by": '"Ada Lovelace, letter of 3 May"',
        "until": "2027-06-30",
        "purpose": '"product"',
    } | changed
    path = folder / "permission.toml"
    path.write_text("".join(f"{k} = {v}\n" for k, v in rows.items() if k != drop))
    return path


# What the licences themselves say, by purpose: research, internal, product.
EXPECTED = {
    "apache-2.0": "allow allow allow",
    "mit": "allow allow allow",
    "bsd-2-clause": "allow allow allow",
    "bsd-3-clause": "allow allow allow",
    "cc0-1.0": "allow allow allow",
    "cc-by-4.0": "allow allow allow",
    "cc-by-nc-4.0": "allow deny deny",
    "cc-by-nc-nd-4.0": "conditional deny deny",
    "openrail": "conditional conditional conditional",
    "creativeml-openrail-m": "conditional conditional conditional",
    "llama2": "conditional conditional conditional",
    "llama3": "conditional conditional conditional",
    "llama3.1": "allow allow allow",
    "llama3.2": "allow allow allow",
    "llama3.3": "allow allow allow",
    "gemma": "conditional conditional conditional",
    "deepseek": "conditional conditional conditional",
    "qwen": "allow allow allow",
    "qwen-research": "allow deny deny",
    "mrl": "allow deny deny",
    "grok-2": "deny deny deny",
    "other": "unknown unknown unknown",
    "no-such-licence-1.0": "unknown unknown unknown",
}


@pytest.mark.parametrize(("licence", "decisions"), EXPECTED.items())
def test_each_licence_for_each_purpose(licence, decisions):
    assert [ask(licence, purpose).decision for purpose in PURPOSES] == decisions.split()


@pytest.mark.parametrize("purpose", PURPOSES)
@pytest.mark.parametrize("licence", [None, "", "  ", "license"])
def test_nothing_stated_is_unknown(licence, purpose):
    assert ask(licence, purpose).decision == "unknown"


@pytest.mark.parametrize(
    "spellings",
    [
        ["apache-2.0", "Apache-2.0", "Apache 2.0", "Apache License 2.0", "APACHE_2.0"],
        ["apache-2.0", "Apache License, Version 2.0", "The Apache License v2.0", "apache\u20112.0"],
        ["mit", "MIT", "MIT License", "The MIT Licence"],
        ["cc-by-nc-4.0", "CC BY-NC 4.0", "CC-BY-NC-4.0"],
        ["llama3.1", "Llama 3.1", "LLAMA 3.1 COMMUNITY LICENSE AGREEMENT"],
        ["tongyi-qianwen", "tongyi-qianwen-license-agreement", "Tongyi Qianwen LICENSE AGREEMENT"],
    ],
    ids=lambda spellings: spellings[-1],
)
def test_spellings_of_one_licence_are_one(spellings):
    told = {replace(ask(spelling), id="") for spelling in spellings}
    assert len(told) == 1
    assert told.pop().date_read


NEAR_MISSES = ["apache-1.1", "apache-20", "mit-0", "mit*", "MIT非商用", "not MIT", "bsd", "llama"]
NEAR_MISSES += ["MIT (non-commercial)", "cc-by-nc", "cc-by-4.00", "llama3.11"]
NEAR_MISSES += ["Apache-2.0 AND CC-BY-NC-4.0"]


@pytest.mark.parametrize("near", NEAR_MISSES)
def test_a_near_miss_is_not_taken_for_a_licence_we_have_read(near):
    assert ask(near).decision == "unknown"


@given(st.data())
def test_case_and_separators_never_matter(data):
    entry = data.draw(st.sampled_from(LICENCES))
    upper = data.draw(st.lists(st.booleans(), min_size=40, max_size=40))
    text = "".join(c.upper() if up else c for c, up in zip(entry.id, upper, strict=False))
    text = text.replace("-", data.draw(st.sampled_from("-_ ,")))
    assert register().licence(text) is entry


@given(st.text())
def test_any_text_in_the_weights_gives_one_printable_line(text):
    permission = ask(text, teacher=text, found=text)
    assert line(permission).isprintable()
    if permission.decision != "allow":
        with pytest.raises(GateError):
            gate(permission)


# The gate


@pytest.mark.parametrize(("licence", "purpose"), list(itertools.product(EXPECTED, PURPOSES)))
def test_the_gate_passes_allow_and_nothing_else(licence, purpose):
    permission = ask(licence, purpose)
    if permission.decision == "allow":
        gate(permission)
    else:
        with pytest.raises(GateError):
            gate(permission)


def test_a_permission_made_elsewhere_is_stopped_too():
    with pytest.raises(GateError, match="somewhere else"):
        gate(Permission("somewhere else", "deny", (), "", "", ""))


@pytest.mark.parametrize("teacher", [TEACHER, 'C:\\models\\a "b" under c', "名前", "a\x7fb\tc"])
@pytest.mark.parametrize("licence", ["gemma", "My Own License 7", None, "cc-by-nc-4.0"])
def test_following_the_instructions_opens_the_gate(tmp_path, licence, teacher):
    stopped = ask(licence, teacher=teacher)
    with pytest.raises(GateError) as said:
        gate(stopped)
    message = str(said.value)
    rows = [row.strip() for row in message.split("\n") if row.startswith("  ") and " = " in row]
    path = tmp_path / "permission.toml"

    unedited = "\n".join(rows[:4])
    path.write_text(unedited, encoding="utf-8")
    with pytest.raises(InputError, match="not valid TOML"):
        ask(licence, recorded=path, teacher=teacher)

    path.write_text(unedited.replace("YYYY-MM-DD", "2026-11-21"), encoding="utf-8")
    allowed = ask(licence, recorded=path, teacher=teacher)
    gate(allowed)
    assert tomllib.loads(rows[4])["permission"] == path.name
    assert allowed.duties == stopped.duties
    assert allowed.route == stopped.route


def test_the_instructions_name_licence_and_place(capsys):
    with pytest.raises(GateError) as said:
        gate(ask("Frobnicate Licence 9"))
    assert "Frobnicate" in str(said.value)
    assert READ_AT in str(said.value)
    assert not capsys.readouterr().out


# The line


@pytest.mark.parametrize("entry", LICENCES, ids=lambda entry: entry.id)
def test_the_line_tells_who_what_where_and_the_duties(entry):
    permission = ask(entry.id, "research")
    told = line(permission)
    assert "\n" not in told
    for part in (TEACHER, entry.name, READ_AT, *map(in_words, entry.duties), "Not legal advice"):
        assert part in told
    assert told.startswith("permitted: ") == (permission.decision == "allow")


def test_metadata_cannot_move_the_cursor():
    permission = ask("x\x1b[2J\ny", found="key\r\x07")
    assert line(permission).isprintable()
    assert permission.clause.isprintable()


def test_a_whole_licence_text_in_the_metadata_is_cut_and_still_told_apart():
    long, longer = ask("Terms. " * 1000), ask("Terms. " * 1001)
    assert len(line(long)) < 400
    assert long.id != longer.id


# A recorded permission


@pytest.mark.parametrize("licence", ["gemma", "grok-2", "other", "nobody-knows", None])
def test_a_record_allows_keeps_the_duties_and_is_named(tmp_path, licence):
    path = record(tmp_path)
    before, after = ask(licence), ask(licence, recorded=path)
    assert (before.decision != "allow", after.decision) == (True, "allow")
    assert after.duties == before.duties
    told = after.clause + after.source
    for part in (f"SHA-256 {sha256(path.read_bytes()).hexdigest()}", "Ada Lovelace", "2027-06-30"):
        assert part in told
    assert "Ada Lovelace" in line(after)


@pytest.mark.parametrize("day", ["2027-06-30", '"2027-06-30"'])
def test_a_record_holds_through_its_last_day(tmp_path, day):
    path = record(tmp_path, until=day)
    assert ask("gemma", recorded=path, today=date(2027, 6, 30)).decision == "allow"
    with pytest.raises(InputError, match="2027-06-30"):
        ask("gemma", recorded=path, today=date(2027, 7, 1))


def test_today_is_the_machines_own_day(tmp_path):
    with pytest.raises(InputError, match="1999-12-31"):
        ask("gemma", recorded=record(tmp_path, until="1999-12-31"), today=None)


@pytest.mark.parametrize("licence", ["gemma", "apache-2.0"])
@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"teacher": '"another"'}, "another"),
        ({"teacher": '"smollm2-135m-instruct.q4_1"'}, "smollm2"),
        ({"purpose": '"research"'}, "research"),
        ({"purpose": '"anything"'}, "purpose"),
        ({"allowed_by": '"  "'}, "allowed_by"),
        ({"allowed_by": "7"}, "allowed_by"),
        ({"until": '"soon"'}, "until"),
        ({"until": "1814400000"}, "until"),
        ({"until": "2027-06-30T00:00:00"}, "until"),
        ({"untill": "2027-06-30"}, "untill"),
        ({"licence": '"mit"'}, "licence"),
        ({"drop": "teacher"}, "teacher"),
        ({"drop": "allowed_by"}, "allowed_by"),
        ({"drop": "until"}, "until"),
        ({"drop": "purpose"}, "purpose"),
        ({"until": "2027-13-45"}, "not valid TOML"),
        ({"teacher": "no quotes"}, "not valid TOML"),
    ],
    ids=str,
)
def test_a_record_that_does_not_fit_is_refused(tmp_path, licence, changed, named):
    path = record(tmp_path, **changed)
    with pytest.raises(InputError, match=named) as said:
        ask(licence, recorded=path)
    assert str(path) in str(said.value)
    assert "\n" not in str(said.value)


def test_a_record_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"missing\.toml"):
        ask("gemma", recorded=tmp_path / "missing.toml")
    with pytest.raises(InputError, match="cannot be read"):
        ask("gemma", recorded=tmp_path)
    (tmp_path / "bytes.toml").write_bytes(b"teacher = '\xff'")
    with pytest.raises(InputError, match="not valid TOML"):
        ask("gemma", recorded=tmp_path / "bytes.toml")


def test_a_purpose_that_is_none_is_refused():
    with pytest.raises(InputError, match="research, internal, product"):
        ask("mit", "fun")


def test_nothing_is_decided_about_nobody():
    with pytest.raises(InputError, match="no model"):
        decide([], "product")


# Two texts, two facts


def test_tag_and_hub_id_both_speak():
    """R1's Llama student is tagged mit; what it was made from is under Llama's licence too."""
    both = ask("mit", teacher="deepseek-ai/DeepSeek-R1-Distill-Llama-8B")
    assert [reason.entry for reason in both.reasons] == ["mit", "llama3.1"]
    assert "name: Llama" in both.duties
    assert both.route.endswith(" under mit+llama3.1")
    assert len(ask("llama3.1", teacher="meta-llama/Llama-3.1-8B").reasons) == 1
    odd = ask("someone-s-own", teacher="Qwen/Qwen3-8B")
    assert odd.decision == "unknown", "a licence that is stated and not read is not read"


@pytest.mark.parametrize(
    ("facts", "decision", "missing"),
    [
        ({}, "conditional", 2),
        ({"competes": True}, "deny", 0),
        ({"competes": False}, "conditional", 1),
        ({"distribution": "none"}, "conditional", 1),
        ({"competes": False, "distribution": "none"}, "allow", 0),
        ({"competes": True, "distribution": "none"}, "deny", 0),
        ({"competes": False, "distribution": "service"}, "conditional", 0),
    ],
    ids=str,
)
def test_a_text_that_turns_on_two_facts(facts: Any, decision: str, missing: int):
    told = {
        "id": "x-1.0",
        "route": "weights",
        "name": "X",
        "decision": "conditional",
        "competes": {"yes": "deny", "no": "allow"},
        "rival": "X",
        "distribution": {"none": "allow", "weights": "conditional", "service": "conditional"},
        "duties": [],
        "clause": "Turns on two facts.",
        "source": "https://example.org/x",
        "date_read": "2026-11",
        "stale_after": 180,
    }
    texts = parse_register({"schema": 2, "entry": [told]})
    routes = [Route("weights", "", TEACHER, "x-1.0")]
    found = decide(routes, "product", today=TODAY, texts=texts, **facts)
    assert (found.decision, len(found.missing)) == (decision, missing)


# Ids


def test_ids_change_with_every_fact_and_only_then(tmp_path):
    def variants():
        yield ask("gemma")
        yield ask("gemma", teacher="another")
        yield ask("gemma", found="README.md")
        yield ask("mit")
        yield ask("gemma", "research")
        for change in (
            {},
            {"allowed_by": '"Bob"'},
            {"until": "2028-01-01"},
            {"note": '"a note"'},
            {"note": '"another note"'},
        ):
            yield ask("gemma", recorded=record(tmp_path, **change))

    first, again = ([p.id for p in variants()] for _ in range(2))
    assert first == again
    assert len(set(first)) == len(first)
    assert ask("gemma", today=date(2027, 1, 1)).id == first[0], "the day alone changes nothing"


def test_an_id_covers_what_the_register_says():
    entry = register().licence("mit")
    assert entry is not None
    told = entry.model_dump(exclude_unset=True)
    routes = [Route("weights", "", TEACHER, "mit", READ_AT)]
    before, after = (
        decide(routes, "product", today=TODAY, texts=parse_register({"schema": 2, "entry": [told]}))
        for told in (told, told | {"date_read": "2025-01"})
    )
    differing = {
        f.name for f in fields(before) if getattr(before, f.name) != getattr(after, f.name)
    }
    assert differing == {"date_read", "id", "reasons"}

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
from limbeck.permit.decide import PURPOSES, Licence, decide, gate, line, parse_register, register
from limbeck.records import Permission

TEACHER = "SmolLM2-135M-Instruct.Q4_1"
READ_AT = "GGUF key general.license of X.gguf"
TODAY = date(2026, 11, 21)


def ask(
    licence: str | None,
    purpose: Any = "product",
    recorded: Path | None = None,
    today: date = TODAY,
) -> Permission:
    return decide(TEACHER, Licence(licence, READ_AT), purpose, recorded, today)


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
    entry = data.draw(st.sampled_from(register().licence))
    upper = data.draw(st.lists(st.booleans(), min_size=40, max_size=40))
    text = "".join(c.upper() if up else c for c, up in zip(entry.id, upper, strict=False))
    text = text.replace("-", data.draw(st.sampled_from("-_ ,")))
    assert register().find(text) is entry


@given(st.text())
def test_any_text_in_the_weights_gives_one_printable_line(text):
    permission = decide(text, Licence(text, text), "product", today=TODAY)
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
    stopped = decide(teacher, Licence(licence, READ_AT), "product", today=TODAY)
    with pytest.raises(GateError) as said:
        gate(stopped)
    message = str(said.value)
    rows = [row.strip() for row in message.split("\n") if row.startswith("  ") and " = " in row]
    path = tmp_path / "permission.toml"

    unedited = "\n".join(rows[:4])
    path.write_text(unedited, encoding="utf-8")
    with pytest.raises(InputError, match="not valid TOML"):
        decide(teacher, Licence(licence, READ_AT), "product", path, TODAY)

    path.write_text(unedited.replace("YYYY-MM-DD", "2026-11-21"), encoding="utf-8")
    allowed = decide(teacher, Licence(licence, READ_AT), "product", path, TODAY)
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


@pytest.mark.parametrize("entry", register().licence, ids=lambda entry: entry.id)
def test_the_line_tells_who_what_where_and_the_duties(entry):
    permission = ask(entry.id, "research")
    told = line(permission)
    assert "\n" not in told
    for part in (TEACHER, entry.name, READ_AT, *entry.duties, "Not legal advice"):
        assert part in told
    assert told.startswith("permitted: ") == (permission.decision == "allow")


def test_metadata_cannot_move_the_cursor():
    permission = decide(TEACHER, Licence("x\x1b[2J\ny", "key\r\x07"), "product", today=TODAY)
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
        decide(TEACHER, Licence("gemma", ""), "product", record(tmp_path, until="1999-12-31"))


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


# Ids


def test_ids_change_with_every_fact_and_only_then(tmp_path):
    def variants():
        base = (TEACHER, Licence("gemma", READ_AT), "product")
        yield decide(*base, today=TODAY)
        yield decide("another", *base[1:], today=TODAY)
        yield decide(TEACHER, Licence("gemma", "README.md"), "product", today=TODAY)
        yield decide(TEACHER, Licence("mit", READ_AT), "product", today=TODAY)
        yield decide(TEACHER, base[1], "research", today=TODAY)
        for change in (
            {},
            {"allowed_by": '"Bob"'},
            {"until": "2028-01-01"},
            {"note": '"a note"'},
            {"note": '"another note"'},
        ):
            yield decide(*base, record(tmp_path, **change), TODAY)

    first, again = ([p.id for p in variants()] for _ in range(2))
    assert first == again
    assert len(set(first)) == len(first)
    later = decide(TEACHER, Licence("gemma", READ_AT), "product", today=date(2030, 1, 1))
    assert later.id == first[0]


def test_an_id_covers_what_the_register_says(monkeypatch):
    before = ask("mit")
    entry = register().find("mit")
    assert entry is not None
    table = {"licence": [entry.model_dump() | {"date_read": "2031-01"}]}
    monkeypatch.setattr("limbeck.permit.decide.register", lambda: parse_register(table))
    after = ask("mit")
    differing = {
        f.name for f in fields(before) if getattr(before, f.name) != getattr(after, f.name)
    }
    assert differing == {"date_read", "id"}


# The register


def entry_table(**changed: object) -> dict[str, object]:
    table = {
        "id": "x-1.0",
        "name": "X",
        "decision": "allow",
        "duties": [],
        "clause": "Free.",
        "source": "https://example.org/x",
        "date_read": "2026-11",
    } | changed
    return {k: v for k, v in table.items() if v is not None}


def test_a_whole_entry_is_accepted():
    found = parse_register({"licence": [entry_table()]}).find("X 1.0")
    assert found is not None
    assert found.purposes == PURPOSES


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"source": None}, "source' is missing"),
        ({"source": ""}, "source"),
        ({"source": "somebody said so"}, "source"),
        ({"source": "http://example.org"}, "source"),
        ({"date_read": None}, "date_read"),
        ({"date_read": "last week"}, "date_read"),
        ({"date_read": "2026-13"}, "date_read"),
        ({"decision": "perhaps"}, "decision"),
        ({"clause": " "}, "clause"),
        ({"duties": None}, "duties"),
        ({"purposes": []}, "purposes"),
        ({"purposes": ["fun"]}, "purposes"),
        ({"url": "https://example.org"}, "unknown key 'licence.0.url'"),
    ],
    ids=str,
)
def test_an_entry_that_is_not_whole_is_refused(changed, named):
    with pytest.raises(InputError, match=named):
        parse_register({"licence": [entry_table(**changed)]})


def test_one_spelling_means_one_licence():
    two = [entry_table(), entry_table(id="y", name="Y", also=["The X-1.0 License"])]
    with pytest.raises(InputError, match="stands for both"):
        parse_register({"licence": two})
    with pytest.raises(InputError, match="twice"):
        parse_register({"licence": [entry_table(), entry_table()]})


def test_non_commercial_licences_permit_no_commerce():
    for entry in register().licence:
        if "nc" in entry.id.split("-") or "research" in entry.id:
            assert entry.purposes == ("research",), entry.id

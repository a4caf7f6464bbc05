"""The register: its shape, what it refuses, and how names are found in it."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from limbeck.errors import InputError
from limbeck.permit.register import PURPOSES, Entry, Register, parse_register, register
from limbeck.records import Permission


def licence(**changed: object) -> dict[str, Any]:
    """A whole entry of a licence, with keys changed, or left out where they are None."""
    table = {
        "id": "x-1.0",
        "route": "weights",
        "name": "X",
        "decision": "allow",
        "duties": [],
        "clause": "Free.",
        "source": "https://example.org/x",
        "date_read": "2026-11-21",
        "stale_after": 180,
    } | changed
    return {key: value for key, value in table.items() if value is not None}


def api(**changed: object) -> dict[str, Any]:
    """A whole entry of a provider's terms."""
    told = {"id": "x-api", "route": "api", "provider": "x", "models": ["*"], "decision": "deny"}
    return licence(**(told | changed))


def family(**changed: object) -> dict[str, Any]:
    """Models under the licence of `licence()`."""
    source = {"source": "https://example.org/m", "date_read": "2026-11"}
    return {"models": ["owner/m-*"], "licence": "x-1.0"} | source | changed


def read(*entries: dict[str, Any], families: Any = (), schema: Any = 2) -> Register:
    return parse_register({"schema": schema, "entry": list(entries), "family": list(families)})


def test_whole_entries_are_accepted_and_found():
    found = read(licence(), api(), families=[family()])
    x = found.licence("X 1.0")
    assert x is not None and x.decision == dict.fromkeys(PURPOSES, "allow")
    assert x.stale_on == date(2027, 5, 20)
    assert found.terms("X", "anything") is not None
    assert found.provider("x") == ("api", "x")
    of = found.family_of("Owner/M-7b")
    assert of is not None and of.licence == "x-1.0"


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"source": None}, "'entry.0.source' is missing"),
        ({"source": ""}, "entry.0.source"),
        ({"source": "somebody said so"}, "source"),
        ({"source": "http://example.org"}, "source"),
        ({"date_read": None}, "date_read"),
        ({"date_read": "last week"}, "date_read"),
        ({"date_read": "2026-13"}, "date_read"),
        ({"date_read": "2026-11-31"}, "date_read"),
        ({"stale_after": None}, "stale_after"),
        ({"stale_after": 0}, "stale_after"),
        ({"sha256": "abc"}, "sha256"),
        ({"decision": "perhaps"}, "decision"),
        ({"decision": {"research": "allow"}}, "leaves out a purpose"),
        ({"decision": {"fun": "allow"}}, "decision.fun"),
        ({"clause": " "}, "clause"),
        ({"duties": None}, "duties"),
        ({"route": "telepathy"}, "route"),
        ({"url": "https://example.org"}, "unknown key 'entry.0.url'; known here: id, route"),
        ({"secondary": True}, "a secondary source alone allows nothing"),
        ({"provider": "x"}, "a family does that"),
        ({"models": ["a/b"]}, "a family does that"),
        ({"competes": {"yes": "deny", "no": "allow"}, "rival": "X"}, "it allows, and yet asks"),
        (
            {"decision": "deny", "competes": {"yes": "deny", "no": "allow"}, "rival": "X"},
            "it denies, and yet asks",
        ),
        ({"decision": "conditional", "competes": {"yes": "deny"}, "rival": "X"}, "both yes and no"),
        (
            {"decision": "conditional", "competes": {"yes": "deny", "no": "allow"}},
            "and a rival",
        ),
        (
            {"decision": "conditional", "distribution": {"none": "allow"}},
            "none, weights and service",
        ),
    ],
    ids=str,
)
def test_an_entry_that_is_not_whole_is_refused(changed: dict[str, Any], named: str):
    with pytest.raises(InputError, match=named) as said:
        read(licence(**changed))
    assert "\n" not in str(said.value)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"provider": None}, "a route names its provider"),
        ({"models": None}, "a route names its provider"),
        ({"models": ["gpt*-mini"]}, "models"),
    ],
    ids=str,
)
def test_terms_that_are_not_whole_are_refused(changed: dict[str, Any], named: str):
    with pytest.raises(InputError, match=named):
        read(api(**changed))


@pytest.mark.parametrize(
    ("entries", "families", "named"),
    [
        ([licence(), licence()], [], "an id stands twice"),
        ([licence(), licence(id="y", name="Y", also=["The X-1.0 License"])], [], "stands for both"),
        ([api(), api(id="again", decision="allow")], [], r"'x:\*' stands for both 'x-api'"),
        ([api(), api(id="again", provider="y", also=["X"])], [], "'X' stands for both"),
        ([api(), api(id="app", route="consumer")], [], "'x by api' and 'x by consumer'"),
        (
            [api(hosts=["h.org"]), api(id="y-api", provider="y", hosts=["h.org"])],
            [],
            "host 'h.org' stands for both 'x' and 'y'",
        ),
        ([licence()], [family(licence="z-1.0")], "no entry for 'z-1.0'"),
        (
            [licence(), licence(id="y", name="Y")],
            [family(), family(models=["OWNER/M-*"], licence="y")],
            "family 'OWNER/M-\\*' stands for both 'x-1.0' and 'y'",
        ),
        ([licence()], [family() | {"source": ""}], "family.0.source"),
        ([licence()], [family(liecnse="x")], "unknown key 'family.0.liecnse'; known here: models"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_contradictions_are_refused(entries: Any, families: Any, named: str):
    with pytest.raises(InputError, match=named):
        read(*entries, families=families)


@pytest.mark.parametrize("schema", [3, 99])
def test_a_newer_schema_is_refused_whatever_else_it_holds(schema: int):
    with pytest.raises(InputError, match=f"has schema {schema} .* reads schema 2: update Limbeck"):
        parse_register({"schema": schema, "texts": []}, "register.toml")


@pytest.mark.parametrize("schema", [None, 1, "2", True, 2.5])
def test_a_schema_that_is_none_is_refused(schema: Any):
    with pytest.raises(InputError, match="schema"):
        read(licence(), schema=schema)


def test_the_most_exact_name_wins():
    found = read(
        api(),
        api(id="mini", models=["gpt-5-mini*"], decision="allow"),
        api(id="one", models=["gpt-5-mini-2026"], decision="unknown"),
    )
    by_model = {m: found.terms("x", m) for m in ("gpt-5", "GPT-5-Mini-x", "gpt-5-mini-2026")}
    assert [entry and entry.id for entry in by_model.values()] == ["x-api", "mini", "one"]
    assert found.terms("nobody", "gpt-5") is None


@pytest.mark.parametrize(
    ("name", "licence_of"),
    [
        ("llama-3.1", "llama3.1"),
        ("Llama 3.1", "llama3.1"),
        ("someone/Llama-3.1-8B-Instruct", None),
        ("gpt-oss", "apache-2.0"),
        ("gpt-oss-20b", "apache-2.0"),
        ("gemma-3", "gemma"),
        ("gemma-4", "apache-2.0"),
        ("DeepSeek-R1", "mit"),
        ("deepseek-r1-distill-llama-8b", "llama3.1"),
        ("SmolLM2", "apache-2.0"),
        ("llama", None),
        ("gpt-5", None),
        ("DeepSeek-R1-Lite", None),
        ("", None),
    ],
)
def test_a_family_is_known_by_its_name(name: str, licence_of: str | None):
    found = register().family_named(name)
    assert (found and found.licence) == licence_of


# The register that ships

SHIPPED = register()


def test_it_covers_the_usual_teachers():
    asked = {"openai", "anthropic", "gemini", "xai", "deepseek", "moonshot", "minimax", "mistral"}
    assert asked | {"openrouter"} <= set(SHIPPED.providers)
    for model in (
        "meta-llama/Llama-3.1-8B", "google/gemma-3-4b-it", "google/gemma-4-31b-it",
        "Qwen/Qwen2.5-72B", "Qwen/Qwen2.5-0.5B", "openai/gpt-oss-20b", "xai-org/grok-2",
        "HuggingFaceTB/SmolLM2-135M", "deepseek-ai/DeepSeek-R1", "deepseek-ai/DeepSeek-V4-Pro",
        "moonshotai/Kimi-K3", "MiniMaxAI/MiniMax-M3", "mistralai/Mistral-Small-4",
    ):  # fmt: skip
        assert SHIPPED.family_of(model), model


@pytest.mark.parametrize("entry", SHIPPED.entry, ids=lambda entry: entry.id)
def test_every_text_is_dated_and_explained(entry: Entry):
    assert entry.date_read[:4] >= "2026"
    assert len(entry.clause.split()) > 5
    assert entry.read_as is None or entry.sha256, "what was read in its place is pinned"
    assert entry.sha256 is None or len(entry.date_read) == 10


def test_non_commercial_licences_permit_no_commerce():
    for entry in SHIPPED.entry:
        if "nc" in entry.id.split("-") or "research" in entry.id:
            assert entry.decision["internal"] == entry.decision["product"] == "deny", entry.id


def test_a_permission_reads_back_from_json():
    """Other rooms keep a Permission as JSON and make it one again, also an old one."""
    from pydantic import TypeAdapter

    from limbeck.permit.decide import Route, decide

    found = decide([Route("weights", "", "m", "gemma")], "product", today=date(2026, 11, 21))
    adapter = TypeAdapter(Permission)
    assert adapter.validate_json(adapter.dump_json(found)) == found
    old = {"route": "r", "decision": "allow", "duties": [], "clause": "", "source": "", "id": "i"}
    assert adapter.validate_python(old | {"date_read": ""}).reasons == ()

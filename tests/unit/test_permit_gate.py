"""From what a user writes to the gate: teachers' names, recipes, recorded files, the command."""

from __future__ import annotations

import json
import socket
from dataclasses import fields
from datetime import date, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from limbeck.__main__ import run
from limbeck.distill import Walk
from limbeck.errors import GateError, InputError
from limbeck.permit.decide import Route
from limbeck.permit.recorded import read_recorded
from limbeck.permit.routes import route_at, route_of
from limbeck.recipe import parse_recipe
from limbeck.records import Permission
from limbeck.run import Run


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a permission needs no network")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def weights(folder: Path, licence: str) -> Path:
    """A folder that passes for a model as long as nobody loads it."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"\0")
    (folder / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
    return folder


def record(folder: Path, **changed: object) -> Path:
    told = {
        "teacher": "teacher",
        "allowed_by": "Ada Lovelace",
        "until": str(date.today() + timedelta(days=9)),
        "purpose": "product",
    } | changed
    path = folder / "permission.toml"
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in told.items()))
    return path


# What a teacher is called


@pytest.mark.parametrize(
    ("teacher", "route"),
    [
        ("openai:gpt-5", Route("api", "openai", "gpt-5")),
        ("xai:grok-4", Route("api", "xai", "grok-4")),
        ("OpenAI: gpt-5", Route("api", "openai", "gpt-5")),
        ("google:gemini-3-pro", Route("api", "gemini", "gemini-3-pro")),
        ("chatgpt:gpt-5", Route("consumer", "chatgpt", "gpt-5")),
        ("openrouter:a/b:free", Route("resale", "openrouter", "a/b:free")),
        ("meta-llama/Llama-3.1-8B", Route("weights", "", "meta-llama/Llama-3.1-8B")),
        ("some/stranger", Route("weights", "", "some/stranger")),
    ],
)
def test_a_teacher_is_known_by_how_it_is_written(teacher: str, route: Route):
    assert route_of(teacher) == route


def test_weights_on_this_machine_are_read(tmp_path: Path):
    folder = weights(tmp_path / "mine", "cc-by-nc-4.0")
    route = Route("weights", "", "mine", "cc-by-nc-4.0", "licence in mine/README.md")
    assert route_of(str(folder)) == route
    told = b"general.license".join([(15).to_bytes(8, "little"), (8).to_bytes(4, "little")])
    gguf = tmp_path / "small.gguf"
    gguf.write_bytes(b"GGUF" + told + (3).to_bytes(8, "little") + b"mit")
    assert route_of(str(gguf)) == Route(
        "weights", "", "small", "mit", "general.license in small.gguf"
    )


def test_a_family_is_taken_by_its_name_and_says_so():
    route = route_of("gpt-oss")
    assert (route.licence, route.model) == ("apache-2.0", "gpt-oss")
    assert route.found.startswith("by its name; https://")


@pytest.mark.parametrize(
    ("teacher", "named"),
    [
        ("nobody:gpt-5", "PROVIDER:MODEL with one of alibaba, anthropic"),
        ("gpt-5", "no teacher that Limbeck knows"),
        ("", "no teacher that Limbeck knows"),
        ("https://api.openai.com/v1", "no teacher that Limbeck knows"),
        ("openai:", "names no model"),
        ("openai:  ", "names no model"),
        ("pypi:no-such-package-here", "is not installed"),
        ("missing.gguf", "No GGUF file"),
    ],
)
def test_an_unknown_teacher_is_answered_with_what_it_may_be(teacher: str, named: str):
    with pytest.raises(InputError, match=named):
        route_of(teacher)


@pytest.mark.parametrize(
    ("url", "kind", "provider"),
    [
        ("https://api.openai.com/v1", "api", "openai"),
        ("https://API.OpenAI.com./v1", "api", "openai"),
        ("https://api.openai.com:443/", "api", "openai"),
        ("https://openrouter.ai/api/v1", "resale", "openrouter"),
        ("https://gpu.example.com/v1", "api", "gpu.example.com"),
        ("https://api.openai.com.example.com/v1", "api", "api.openai.com.example.com"),
        ("http://127.0.0.1:8000/v1", "weights", ""),
        ("http://localhost:8000/v1", "weights", ""),
        ("http://[::1]:8000/v1", "weights", ""),
        ("http://10.1.2.3/v1", "weights", ""),
    ],
)
def test_a_url_brings_its_hosts_terms(url: str, kind: Any, provider: str):
    assert route_at(url, "m") == Route(kind, provider, "m")


@pytest.mark.parametrize("url", ["", "openai", "/v1", "http://[::1", "https://"])
def test_a_url_without_a_host_is_refused(url: str):
    with pytest.raises(InputError, match="no URL with a host"):
        route_at(url, "m")


# The recipe and the run


def walk(tmp_path: Path, licence: str, **permit: object) -> Walk:
    folder = tmp_path / "teacher"
    if not folder.exists():
        weights(folder, licence)
    recipe = parse_recipe(
        {
            "name": "sums",
            "teacher": {"model": str(folder)},
            "prompts": {"source": "prompts.jsonl"},
            "student": {"layers": 1},
            "train": {"steps": 1},
            "permit": permit,
        }
    )
    (tmp_path / "run").mkdir(exist_ok=True)
    return Walk(Run(tmp_path / "run", recipe))


def test_a_missing_fact_stops_the_run_and_saying_it_lets_it_go_on(tmp_path: Path):
    with pytest.raises(GateError, match=r'permit\.distribution = "none", "weights" or "service"'):
        walk(tmp_path, "gemma").permit()
    assert not list((tmp_path / "run").iterdir()), "nothing is written before the gate"
    walk(tmp_path, "gemma", distribution="none").permit()
    told = json.loads((tmp_path / "run" / "permission.json").read_text())
    assert (told["decision"], told["purpose"]) == ("allow", "product")
    assert [reason["entry"] for reason in told["reasons"]] == ["gemma"]
    assert "stay in the house" in told["clause"]


@pytest.mark.parametrize("licence", ["grok-2", "other", "llama2", "nobody-knows"])
def test_deny_and_unknown_stop_whatever_facts_are_said(tmp_path: Path, licence: str):
    with pytest.raises(GateError):
        walk(tmp_path, licence, competes=False, distribution="none").permit()
    assert not list((tmp_path / "run").iterdir())


def test_a_recorded_permission_passes_and_leaves_its_trace(tmp_path: Path):
    path = record(tmp_path)
    digest = sha256(path.read_bytes()).hexdigest()
    walk(tmp_path, "grok-2", permission=str(path), permission_sha256=digest.upper()).permit()
    told = json.loads((tmp_path / "run" / "permission.json").read_text())
    assert told["decision"] == "allow"
    assert [(r["entry"], r["decision"]) for r in told["reasons"]] == [
        ("grok-2", "deny"),
        ("recorded permission", "allow"),
    ]
    assert told["reasons"][1]["sha256"] == digest
    assert digest in told["clause"] and "Ada Lovelace" in told["source"]


@pytest.mark.parametrize(
    ("changed", "pinned", "named"),
    [
        ({"until": "2026-01-01"}, None, "ran out on 2026-01-01"),
        ({"teacher": "another"}, None, "permits the teacher 'another', and this is 'teacher'"),
        ({"teacher": ["teacher", "another"]}, None, "permits the teacher 'another'"),
        ({"teacher": []}, None, "'teacher'"),
        ({"purpose": "research"}, None, "permits the purpose 'research'"),
        ({}, "0" * 64, "permit.permission_sha256 expects 0000"),
    ],
    ids=str,
)
def test_a_record_that_does_not_hold_is_refused(
    tmp_path: Path, changed: dict[str, Any], pinned: str | None, named: str
):
    path = record(tmp_path, **changed)
    held = {"permission": str(path)} | ({"permission_sha256": pinned} if pinned else {})
    with pytest.raises(InputError, match=named) as said:
        walk(tmp_path, "apache-2.0", **held).permit()
    assert str(path) in str(said.value)
    assert not list((tmp_path / "run").iterdir())


def test_one_changed_byte_is_another_permission(tmp_path: Path):
    path = record(tmp_path)
    pinned = read_recorded(path).sha256
    assert read_recorded(path, pinned).word.allowed_by == "Ada Lovelace"
    path.write_text(path.read_text() + "\n")
    with pytest.raises(InputError, match="not the permission that was agreed on"):
        read_recorded(path, pinned)


@pytest.mark.parametrize(
    ("permit", "named"),
    [
        ({"permission_sha256": "0" * 64}, "permission_sha256 needs the permission"),
        ({"permission": "p.toml", "permission_sha256": "abc"}, "permit.permission_sha256"),
        ({"competes": "maybe"}, "permit.competes"),
        ({"distribution": "everywhere"}, "permit.distribution"),
        ({"compete": True}, "did you mean 'competes'"),
    ],
    ids=str,
)
def test_a_recipe_that_says_it_wrongly_is_answered(tmp_path: Path, permit: Any, named: str):
    with pytest.raises(InputError, match=named):
        walk(tmp_path, "mit", **permit)


# limbeck permit


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["deepseek:deepseek-chat"], 0),
        (["meta-llama/Llama-3.1-8B-Instruct"], 0),
        (["openai:gpt-5"], 1),
        (["openai:gpt-5", "--no-competes"], 0),
        (["openai:gpt-5", "--competes"], 1),
        (["google/gemma-3-4b-it", "--distribution", "none"], 0),
        (["Qwen/Qwen2.5-3B-Instruct", "--purpose", "research"], 0),
        (["Qwen/Qwen2.5-3B-Instruct", "--purpose", "internal"], 1),
        (["anthropic:claude-opus", "--purpose", "research", "--no-competes"], 1),
        (["some/stranger"], 1),
        (["nobody:gpt-5"], 2),
        (["openai:gpt-5", "--purpose", "fun"], 2),
    ],
    ids=str,
)
def test_the_command_s_exit_code_is_the_decision(
    arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]
):
    assert run(["permit", *arguments]) == code
    out = capsys.readouterr().out
    assert out.endswith("Not legal advice.\n") or (code == 2 and not out)
    assert run(["permit", *arguments, "--json"]) == code
    told = json.loads(capsys.readouterr().out)
    if code == 2:
        assert set(told) == {"error", "exit_code"}
        return
    assert set(told) == {field.name for field in fields(Permission)}
    assert (told["decision"] == "allow") == (code == 0)


def test_the_command_tells_source_day_duties_and_clause(capsys: pytest.CaptureFixture[str]):
    run(["permit", "meta-llama/Llama-3.1-8B-Instruct"])
    told = " ".join(capsys.readouterr().out.split())
    for part in (
        "permitted (purpose: product)",
        "Llama 3.1 Community License [llama3.1] says allow",
        "https://www.llama.com/llama3_1/license/, read 2026-11-21",
        "start the student's name with Llama",
        'show "Built with Llama"',
        "pass on the use policy https://llama.meta.com/llama3_1/use-policy",
        "SHA-256",
    ):
        assert part in told, part


def test_the_command_reads_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = weights(tmp_path / "mine", "cc-by-nc-4.0")
    assert run(["permit", str(folder), "--purpose", "research"]) == 0
    assert "licence in mine/README.md" in capsys.readouterr().out
    assert run(["permit", str(folder)]) == 1
    assert "not permitted" in capsys.readouterr().out

from __future__ import annotations

import base64
import json
import re
import shutil
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from in_toto_attestation.v1.statement import Statement

from limbeck.__main__ import run as limbeck
from limbeck.errors import GateError, InputError
from limbeck.export import attest
from limbeck.run import Run
from papers import MIT, Made

Problems = tuple[str, ...]


@pytest.fixture(scope="session")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "limbeck.pem"
    attest.make_key(path)
    return path


@pytest.fixture
def signed(made: Made, key: Path) -> Made:
    attest.attest(Run(made.folder, made.recipe), attest.signer_of(key, made.folder))
    return made


def found(made: Made, key: Path) -> Problems:
    checked = attest.verify(made.folder, attest.key_of(key))
    assert checked.verified is (not checked.problems)
    return checked.problems


def sql(made: Made, statement: str, *values: Any) -> None:
    with closing(sqlite3.connect(made.folder / "answers.sqlite")) as db, db:
        assert db.execute(statement, values).rowcount == 1


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_what_was_signed_verifies_for_the_public_key_and_from_anywhere(
    signed: Made, key: Path, tmp_path: Path
) -> None:
    assert found(signed, key) == found(signed, key.with_name("limbeck.pem.pub")) == ()
    shutil.copytree(signed.folder, tmp_path / "elsewhere")
    file = tmp_path / "elsewhere" / "attestation.json"
    checked = attest.verify(file, attest.key_of(key))
    assert checked.verified and checked.signed_by == attest.key_of(key).keyid
    said = checked.statement["predicate"]
    assert said["teacher"]["fingerprint"] == signed.teacher.fingerprint
    assert said["verdict"]["passed"] is True and said["student"] == "support-replies"


def test_the_statement_is_one_by_in_totos_own_library(signed: Made) -> None:
    from google.protobuf.json_format import ParseDict
    from in_toto_attestation.v1 import statement_pb2

    empty = vars(statement_pb2)["Statement"]()
    envelope = json.loads((signed.folder / "attestation.json").read_text())
    assert envelope["payloadType"] == "application/vnd.in-toto+json"
    told = json.loads(base64.b64decode(envelope["payload"]))
    Statement.copy_from_pb(ParseDict(told, empty)).validate()
    files = {
        p.relative_to(signed.folder).as_posix() for p in signed.folder.rglob("*") if p.is_file()
    }
    assert {subject["name"] for subject in told["subject"]} == files - {"attestation.json"}


def test_the_signature_is_an_ed25519_one_over_dsse(signed: Made, key: Path) -> None:
    """Checked by hand, from the standard's own words: PAE(type, body)."""
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    envelope = json.loads((signed.folder / "attestation.json").read_text())
    body, kind = base64.b64decode(envelope["payload"]), envelope["payloadType"].encode()
    pae = b" ".join([b"DSSEv1", str(len(kind)).encode(), kind, str(len(body)).encode(), body])
    public: Any = load_pem_public_key(key.with_name("limbeck.pem.pub").read_bytes())
    public.verify(base64.b64decode(envelope["signatures"][0]["sig"]), pae)


def test_the_store_may_be_laid_out_anew(signed: Made, key: Path) -> None:
    """A checkpoint, a vacuum and an open log move bytes about; no row changes."""
    path = signed.folder / "answers.sqlite"
    before = path.read_bytes()
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode = DELETE")
        db.execute("VACUUM")
        db.execute("CREATE TABLE other (x)")
        db.execute("DROP TABLE other")
    assert path.read_bytes() != before and found(signed, key) == ()
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA wal_autocheckpoint = 0")
        db.execute("CREATE TABLE other (x)")
        db.execute("DROP TABLE other")
        assert (signed.folder / "answers.sqlite-wal").stat().st_size > 0
        assert found(signed, key) == ()


TAMPERED: dict[str, tuple[Callable[[Made], Any], str]] = {
    "verdict": (
        lambda m: (m.folder / "verdict.json").write_text(json.dumps(m.verdict | {"passed": False})),
        r"changed: verdict\.json \(the verdict\)",
    ),
    "card": (
        lambda m: (m.folder / "student/README.md").write_text(
            (m.folder / "student/README.md").read_text().replace("teacher: tutor", "teacher: me")
        ),
        r"changed: student/README\.md \(the model card\)",
    ),
    "one byte of a target": (
        lambda m: flip(next((m.folder / "targets").glob("*.safetensors"))),
        r"changed: targets/[0-9a-f]{16}\.safetensors",
    ),
    "weights": (
        lambda m: flip(m.folder / "student/model.safetensors"),
        r"changed: student/model\.safetensors",
    ),
    "manifest": (lambda m: flip(m.folder / "manifest.json"), r"changed: manifest\.json \(.*"),
    "permission": (lambda m: flip(m.folder / "permission.json"), r"changed: permission\.json \(.*"),
    "a bill": (lambda m: flip(m.folder / "student/bom.cdx.json"), r"changed: .*bom\.cdx\.json"),
    "no notices": (
        lambda m: (m.folder / "student/NOTICE").unlink(),
        r"missing: student/NOTICE \(the student's notices\)",
    ),
    "no shard": (
        lambda m: next((m.folder / "targets").glob("*.safetensors")).unlink(),
        r"missing: targets/[0-9a-f]{16}\.safetensors",
    ),
    "no answers": (
        lambda m: (m.folder / "answers.sqlite").unlink(),
        r"missing: answers\.sqlite",
    ),
    "no database": (
        lambda m: (m.folder / "answers.sqlite").write_bytes(b"SQLite forgot 3\0" * 512),
        r"changed: answers\.sqlite \(.*damaged.*",
    ),
    "a new file": (
        lambda m: (m.folder / "student/pytorch_model.bin").write_bytes(b"x"),
        r"not signed: student/pytorch_model\.bin",
    ),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_what_was_tampered_with_is_found_and_named(signed: Made, key: Path, what: str) -> None:
    tamper, line = TAMPERED[what]
    tamper(signed)
    (problem,) = found(signed, key)
    assert re.fullmatch(line, problem), problem


@pytest.mark.parametrize(
    "change",
    ["text = text || ' '", "outcome = 'kept'", "asked_at = '2027-01-01'", "permission = 'mine'"],
)
def test_one_altered_answer_is_found_and_named(signed: Made, key: Path, change: str) -> None:
    id_ = next(a.id for a in signed.answers.values() if a.outcome == "truncated")
    sql(signed, f"UPDATE answers SET {change} WHERE id = ?", id_)
    assert found(signed, key) == (f"changed: answers.sqlite, answer {id_}",)


def test_an_answer_less_one_more_and_other_terms_are_named(signed: Made, key: Path) -> None:
    first, second = list(signed.answers)[:2]
    sql(signed, "DELETE FROM answers WHERE id = ?", first)
    sql(signed, "UPDATE answers SET id = 'ffff' WHERE id = ?", second)
    sql(signed, "UPDATE permissions SET document = '{}'")
    assert set(found(signed, key)) == {
        f"missing: answers.sqlite, answer {first}",
        f"missing: answers.sqlite, answer {second}",
        "not signed: answers.sqlite, answer ffff",
        f"changed: answers.sqlite, permission/{MIT.id}",
    }


def test_an_answer_with_its_line_in_the_ledger_altered_too(signed: Made, key: Path) -> None:
    sql(signed, "UPDATE answers SET text = 'x' WHERE id = ?", next(iter(signed.answers)))
    flip(signed.folder / "answers.sha256")
    problems = found(signed, key)
    assert "changed: answers.sha256" in problems
    assert any("nobody can say which rows" in problem for problem in problems)


def test_another_signature_and_another_signer_are_told(
    signed: Made, key: Path, tmp_path: Path
) -> None:
    stranger = tmp_path / "stranger.pem"
    attest.make_key(stranger)
    ours, theirs = attest.key_of(key), attest.key_of(stranger)
    (problem,) = found(signed, stranger)
    assert theirs.keyid in problem and ours.keyid in problem
    assert attest.verify(signed.folder, theirs).signed_by is None
    path = signed.folder / "attestation.json"
    envelope = json.loads(path.read_text())
    body = json.loads(base64.b64decode(envelope["payload"]))
    body["predicate"]["verdict"]["passed"] = False
    envelope["payload"] = base64.b64encode(json.dumps(body).encode()).decode()
    path.write_text(json.dumps(envelope))
    assert found(signed, key)[0].startswith("signature: ")
    envelope["signatures"] = []
    path.write_text(json.dumps(envelope))
    assert "nobody" in found(signed, key)[0]


@pytest.mark.parametrize("name", ["verdict.json", "student/README.md"])
def test_nobody_signs_what_was_touched_up_by_hand(made: Made, key: Path, name: str) -> None:
    path = made.folder / name
    path.write_text(path.read_text() + " ")
    with pytest.raises(GateError, match=re.escape(name)):
        attest.attest(Run(made.folder, made.recipe), attest.signer_of(key, made.folder))
    assert not (made.folder / attest.ENVELOPE).exists()


def test_an_unfinished_run_is_not_signed(made: Made, key: Path) -> None:
    Run(made.folder, made.recipe).forget("export")
    with pytest.raises(InputError, match="not finished"):
        attest.attest(Run(made.folder, made.recipe), attest.signer_of(key, made.folder))


def test_what_is_no_attestation_is_refused(signed: Made, key: Path, tmp_path: Path) -> None:
    path, public = signed.folder / "attestation.json", attest.key_of(key)
    envelope = json.loads(path.read_text())
    with pytest.raises(InputError, match="does not exist"):
        attest.verify(tmp_path / "nothing", public)
    with pytest.raises(InputError, match="no attestation"):
        attest.verify(signed.folder / "verdict.json", public)

    def rewritten(**changes: Any) -> None:
        body = json.loads(base64.b64decode(envelope["payload"])) | changes
        told = envelope | {"payload": base64.b64encode(json.dumps(body).encode()).decode()}
        path.write_text(json.dumps(told))

    for name in ("/etc/passwd", "../other/verdict.json"):
        rewritten(subject=[{"name": name, "digest": {"sha256": "0"}}])
        with pytest.raises(InputError, match="no file of a run"):
            attest.verify(path, public)
    rewritten(predicateType="https://github.com/limbeck/limbeck/distillation/v9")
    with pytest.raises(InputError, match="newer limbeck"):
        attest.verify(path, public)


# -- keys --------------------------------------------------------------------------------------


def test_a_key_is_its_owners_alone_and_never_written_over(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "limbeck.pem"
    public = attest.make_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "PUBLIC KEY" in public.read_text() and "PRIVATE" not in public.read_text()
    assert attest.key_of(path).keyid == attest.key_of(public).keyid
    path.unlink()
    with pytest.raises(InputError, match="not written over"):
        attest.make_key(path)
    assert not path.exists()


def test_keys_that_cannot_sign_are_refused_without_being_shown(
    made: Made, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        NoEncryption,
        PrivateFormat,
        load_pem_private_key,
    )

    ours: Any = load_pem_private_key(key.read_bytes(), None)
    form = (Encoding.PEM, PrivateFormat.PKCS8)
    wrong = {
        "curve": generate_private_key(SECP256R1()).private_bytes(*form, NoEncryption()),
        "locked": ours.private_bytes(*form, BestAvailableEncryption(b"secret")),
        "public": key.with_name("limbeck.pem.pub").read_bytes(),
        "text": b"sk-not-a-key-4f1c",
    }
    for name, data in wrong.items():
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(InputError) as caught:
            attest.signer_of(path, made.folder)
        assert str(path) in str(caught.value)
        assert data.decode().split("\n")[-2:][0] not in str(caught.value)
        monkeypatch.setenv(attest.KEY, data.decode())
        with pytest.raises(InputError, match=attest.KEY):
            attest.signer_of(None, made.folder)
    monkeypatch.setenv(attest.KEY, key.read_text())
    assert attest.signer_of(None, made.folder).public_key.keyid == attest.key_of(key).keyid
    monkeypatch.delenv(attest.KEY)
    with pytest.raises(InputError, match="--keygen"):
        attest.signer_of(None, made.folder)


def test_a_key_does_not_belong_in_a_run_folder(made: Made, key: Path) -> None:
    inside = made.folder / "student" / "key.pem"
    shutil.copy(key, inside)
    with pytest.raises(InputError, match="lies in the run folder"):
        attest.signer_of(inside, made.folder)


# -- as typed ----------------------------------------------------------------------------------


def test_the_commands_end_with_their_exit_codes(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(attest.KEY, raising=False)
    (made.folder / ".lock").touch()
    folder, key = str(made.folder), str(tmp_path / "k.pem")

    def typed(*words: str) -> tuple[int, Any]:
        code = limbeck([*words, "--json"])
        return code, json.loads(capsys.readouterr().out)

    assert typed("attest", folder)[0] == 2, "no key"
    assert typed("attest", folder, "--keygen")[0] == 2, "no place for the key"
    assert typed("attest", folder, "--keygen", "--key", f"{folder}/k.pem")[0] == 2
    assert not (made.folder / "k.pem").exists()
    assert typed("verify", folder, "--key", key)[0] == 2, "no key there"
    code, told = typed("attest", folder, "--keygen", "--key", key)
    assert code == 0 and told["statement"]["predicate"]["student"] == "support-replies"
    code, told = typed("verify", folder, "--key", f"{key}.pub")
    assert (code, told["verified"], told["problems"]) == (0, True, [])
    (made.folder / "verdict.json").unlink()
    code, told = typed("verify", folder, "--key", f"{key}.pub")
    assert (code, told["verified"]) == (1, False)
    assert told["problems"] == ["missing: verdict.json (the verdict)"]
    assert typed("attest", folder, "--key", key)[0] == 2, "not finished"
    code, told = typed("lineage", folder)
    assert code == 0 and len(told["rows"]) == len(made.answers)
    code, told = typed("lineage", folder, "--drop-source", "b.jsonl")
    assert code == 0 and told["shards"]
    assert typed("lineage", folder, "--drop-source", "c.jsonl")[0] == 2
    assert typed("collect", folder, "--drop-source", "b.jsonl") == (code, told)
    assert typed("collect", folder, "--drop-source", "b.jsonl")[0] == 2, "dropped before"
    assert limbeck(["lineage", folder]) == 0
    assert "under permission permission-mit" in capsys.readouterr().out

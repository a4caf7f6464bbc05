"""A run, signed: an in-toto statement over everything in its folder, in a DSSE envelope.

`attestation.json` is the envelope. Its statement names every file of the run with its SHA-256, but
the store of answers by `limbeckRowsV1`: the SHA-256 of `answers.sha256`, which lists the SHA-256 of
every row as `AnswerStore.digests` has it. SQLite moves bytes about without changing a row, and a
row that did change can be named.

Sources: github.com/in-toto/attestation, Statement v1; github.com/secure-systems-lab/dsse, DSSE v1.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.collect.store import AnswerStore
from limbeck.errors import GateError, InputError
from limbeck.files import sha256_file, write_text
from limbeck.run import Run

if TYPE_CHECKING:
    from securesystemslib.dsse import Envelope
    from securesystemslib.signer import CryptoSigner, SSlibKey  # pyright: ignore[reportPrivateImportUsage]

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://github.com/limbeck/limbeck/distillation/v1"
PAYLOAD = "application/vnd.in-toto+json"
ENVELOPE, LEDGER, STORE, ROWS = (
    "attestation.json", "answers.sha256", "answers.sqlite", "limbeckRowsV1",
)  # fmt: skip
UNSIGNED = frozenset({ENVELOPE, STORE, f"{STORE}-wal", f"{STORE}-shm"})
KEY = "LIMBECK_KEY"
ABOUT = {
    "manifest.json": "the manifest",
    "permission.json": "the permission",
    "student/NOTICE": "the student's notices",
    "student/README.md": "the model card",
    "verdict.json": "the verdict",
}


@dataclass(frozen=True, slots=True)
class Checked:
    """What `verify` found: it verifies where there are no problems."""

    folder: str
    signed_by: str | None
    statement: Mapping[str, Any]
    problems: tuple[str, ...]

    @property
    def verified(self) -> bool:
        """Whether the signature holds and nothing is changed, missing or new."""
        return not self.problems


def attest(run: Run, signer: CryptoSigner) -> dict[str, Any]:
    """Sign what lies in a finished run's folder; returns the statement.

    Raises InputError where the run is not finished or its answers lie elsewhere, and GateError
    where its card or verdict is not the one that Limbeck wrote.
    """
    from securesystemslib.dsse import Envelope

    _refuse_edited(run)
    if shared := run.recipe.teacher.answers:
        raise InputError(
            f"The answers of {run.folder} are kept in {shared}, with those of other runs "
            "(teacher.answers), and cannot be signed with it. Make the run again without that key."
        )
    with AnswerStore(run.folder / STORE, read_only=True) as store:
        ledger = _ledger(store.digests())
    write_text(run.folder / LEDGER, ledger)
    found: dict[str, dict[str, str]] = {
        name: {"sha256": sha256_file(run.folder / name)} for name in _files(run.folder)
    }
    found[STORE] = {ROWS: hashlib.sha256(ledger.encode()).hexdigest()}
    statement = {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": found[name]} for name in sorted(found)],
        "predicateType": PREDICATE,
        "predicate": _predicate(run),
    }
    envelope = Envelope(json.dumps(statement, sort_keys=True).encode(), PAYLOAD, {})
    envelope.sign(signer)
    write_text(run.folder / ENVELOPE, json.dumps(envelope.to_dict(), indent=1) + "\n")
    return statement


def verify(target: Path, key: SSlibKey) -> Checked:
    """Hold a run to its attestation: the envelope's signature first, then every hash.

    Args:
        target: A run folder, or its attestation file.
        key: Whose signature it has to be.

    Raises:
        InputError: Where there is no attestation, or it is none of ours.
    """
    path = target / ENVELOPE if target.is_dir() else target
    envelope, statement = _read(path)
    ours = _signed(envelope, key)
    problems = list(_held(path.parent, statement))
    if not ours:
        claimed = ", ".join(envelope.signatures) or "nobody"
        problems.insert(
            0, f"signature: {path.name} is not signed by {key.keyid} (claims: {claimed})"
        )
    return Checked(str(path.parent), key.keyid if ours else None, statement, tuple(problems))


def make_key(path: Path) -> Path:
    """Make an Ed25519 key: the private half in `path` (PEM, yours alone), the public in `path`.pub.

    Returns the public half's path. InputError where either is already there.
    """
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
    from securesystemslib.signer import CryptoSigner  # pyright: ignore[reportPrivateImportUsage]

    public = path.with_name(f"{path.name}.pub")
    for there in (path, public):
        if there.exists():
            raise InputError(f"{there} is already there; keys are not written over")
    signer = CryptoSigner.generate_ed25519()
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(signer.private_bytes)
    half: Any = _private(signer.private_bytes, str(path)).public_key()
    pem = half.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    write_text(public, pem.decode())
    return public


def signer_of(path: Path | None, run: Path) -> CryptoSigner:
    """Whoever signs: the private key in `path`, else in the environment variable LIMBECK_KEY.

    Raises InputError where there is none, it is no Ed25519 key, or it lies in the run folder, which
    is there to be passed on.
    """
    from securesystemslib.signer import CryptoSigner  # pyright: ignore[reportPrivateImportUsage]

    if path is not None:
        refuse_inside(path, run)
    return CryptoSigner(_private(*_pem(path)))


def refuse_inside(path: Path, run: Path) -> None:
    """Keep a key out of a run's folder: InputError where it lies there."""
    if path.resolve().is_relative_to(run.resolve()):
        raise InputError(f"{path} lies in the run folder, which is passed on: keep keys elsewhere")


def key_of(path: Path | None) -> SSlibKey:
    """Whose signature is asked for: the public or private key in `path`, else in LIMBECK_KEY."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
    from securesystemslib.signer import SSlibKey  # pyright: ignore[reportPrivateImportUsage]

    data, where = _pem(path)
    if b"PRIVATE KEY" in data:
        return SSlibKey.from_crypto(_private(data, where).public_key())
    try:
        key = load_pem_public_key(data)
    except ValueError:
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise InputError(f"{where} holds no Ed25519 key in PEM")
    return SSlibKey.from_crypto(key)


def _pem(path: Path | None) -> tuple[bytes, str]:
    """A key as PEM, and where it was found."""
    if path is None:
        if not (said := os.environ.get(KEY)):
            raise InputError(
                f"Which key? Give --key FILE, or the key itself in {KEY}; "
                "make one with: limbeck attest RUN --key FILE --keygen"
            )
        return said.encode(), KEY
    try:
        return path.read_bytes(), str(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read as a key: {error.strerror}") from None


def _private(data: bytes, where: str) -> Any:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(data, None)
    except (ValueError, TypeError):  # no PEM, or one under a password
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(f"{where} holds no private Ed25519 key in PEM without a password")
    return key


def _refuse_edited(run: Run) -> None:
    """Nobody signs a card or a verdict that was touched up by hand."""
    stages = run.manifest["stages"]
    for stage, key, name in (
        ("validate", "sha256", "verdict.json"),
        ("export", "card", "student/README.md"),
    ):
        facts, path = stages.get(stage, {}).get("facts", {}), run.folder / name
        if key not in facts or not path.exists():
            raise InputError(
                f"{run.folder} is not finished: run limbeck distill {run.folder} first"
            )
        if sha256_file(path) != facts[key]:
            raise GateError(
                f"{path} is not as limbeck wrote it. Nothing was signed: remove it and run "
                f"limbeck distill {run.folder}."
            )


def _predicate(run: Run) -> dict[str, Any]:
    verdict = json.loads((run.folder / "verdict.json").read_text(encoding="utf-8"))
    collected = run.manifest["stages"]["collect"]["facts"]
    return {
        "attested": datetime.now(UTC).isoformat(timespec="seconds"),
        "limbeck": run.manifest["limbeck"],
        "student": run.recipe.export.name or run.recipe.name,
        "teacher": {"name": collected["teacher"], "fingerprint": collected["fingerprint"]},
        "permission": verdict["permission"],
        "recipe": run.recipe.id,
        "verdict": {"passed": verdict["passed"], "confidence": verdict["confidence"]},
    }


def _read(path: Path) -> tuple[Envelope, dict[str, Any]]:
    from securesystemslib.dsse import Envelope

    if not path.exists():
        raise InputError(f"{path} does not exist: sign a run with limbeck attest RUN")
    try:
        envelope = Envelope.from_dict(json.loads(path.read_text(encoding="utf-8")))
        statement = json.loads(envelope.payload)
        kinds = (envelope.payload_type, statement["_type"], statement["predicateType"])
        for subject in statement["subject"]:
            name = Path(subject["name"])
            if name.is_absolute() or ".." in name.parts or not subject["digest"]:
                raise ValueError(f"{subject['name']!r} is no file of a run")
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{path} is no attestation of a run ({reason})") from None
    if kinds != (PAYLOAD, STATEMENT, PREDICATE):
        raise InputError(f"{path} is another kind of statement, or of a newer limbeck: {kinds}")
    return envelope, statement


def _signed(envelope: Envelope, key: SSlibKey) -> bool:
    from securesystemslib.exceptions import VerificationError

    try:
        return bool(envelope.verify([key], 1))
    except VerificationError:
        return False


def _held(folder: Path, statement: Mapping[str, Any]) -> Iterator[str]:
    """What is not as it was signed, one line each."""
    signed = {subject["name"]: subject["digest"] for subject in statement["subject"]}
    for name, digest in signed.items():
        about = f" ({ABOUT[name]})" if name in ABOUT else ""
        if not (folder / name).is_file():
            yield f"missing: {name}{about}"
        elif ROWS in digest:
            yield from _held_rows(folder, name, digest[ROWS])
        elif sha256_file(folder / name) != digest.get("sha256"):
            yield f"changed: {name}{about}"
    yield from (f"not signed: {name}" for name in _files(folder) if name not in signed)


def _held_rows(folder: Path, name: str, signed: str) -> Iterator[str]:
    """Which rows of the store are not as they were signed, as far as the ledger still tells."""
    try:
        with AnswerStore(folder / name, read_only=True) as store:
            now = store.digests()
    except InputError as error:
        yield f"changed: {name} ({error})"
        return
    if hashlib.sha256(_ledger(now).encode()).hexdigest() == signed:
        return
    ledger = folder / LEDGER
    if not ledger.is_file() or sha256_file(ledger) != signed:
        yield f"changed: {name}; without the signed {LEDGER} nobody can say which rows"
        return
    lines = ledger.read_text(encoding="utf-8").splitlines()
    before = {id_: digest for digest, _, id_ in (line.partition("  ") for line in lines)}
    for id_ in sorted(before.keys() | now.keys()):
        if before.get(id_) != now.get(id_):
            word = "not signed" if id_ not in before else "changed" if id_ in now else "missing"
            what = id_ if id_.startswith("permission/") else f"answer {id_}"
            yield f"{word}: {name}, {what}"


def _ledger(digests: Mapping[str, str]) -> str:
    return "".join(f"{digest}  {id_}\n" for id_, digest in digests.items())


def _files(folder: Path) -> list[str]:
    """The files of a run, as POSIX paths below it; hidden ones and the store are not among them."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    names = (p.as_posix() for p in found if not any(part.startswith(".") for part in p.parts))
    return sorted(name for name in names if name not in UNSIGNED)

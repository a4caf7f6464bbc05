from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import cast
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from limbeck.collect.prompts import PromptSet, read_prompts
from limbeck.errors import InputError, LimbeckError, ServiceError
from limbeck.recipe import PromptsSection

constants = pytest.importorskip("huggingface_hub.constants")
CONVERTED = "refs/convert/parquet"


class Hub(ThreadingHTTPServer):
    """The few answers of the hub that reading a data set needs."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, dict[str, dict[str, bytes]]] = {}  # repo, revision, file: content
        self.status: dict[str, int] = {}  # answered for a repo instead
        self.downloads: list[str] = []


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        hub = cast(Hub, self.server)
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        api = parts[0] == "api"
        repo, rest = "/".join(parts[1 + api : 3 + api]), parts[3 + api :]
        revisions = hub.repos.get(repo)
        if repo in hub.status or revisions is None:
            return self.answer(hub.status.get(repo, 404), b"no", "RepoNotFound")
        shas = {f"{n:040x}": name for n, name in enumerate(revisions, 1)}
        by_name = {name: sha for sha, name in shas.items()}
        if api and rest[:1] in ([], ["revision"]):
            name = rest[1] if rest else "main"
            name = shas.get(name, name)
            if name not in by_name:
                return self.answer(404, b"no", "RevisionNotFound")
            return self.answer(200, json.dumps({"id": repo, "sha": by_name[name]}).encode())
        files = revisions[shas[rest[1]]]
        if api and rest[0] == "tree":
            tree = [{"type": "file", "path": p, "size": 1, "oid": "0"} for p in files]
            return self.answer(200, json.dumps(tree).encode())
        name = "/".join(rest[2:])
        if self.command == "GET":
            hub.downloads.append(name)
        return self.answer(200, files[name], sha=rest[1])

    do_HEAD = do_GET  # noqa: N815

    def answer(self, status: int, body: bytes, code: str = "", sha: str = "") -> None:
        self.send_response(status)
        headers = {"Content-Length": str(len(body)), "X-Error-Code": code, "X-Repo-Commit": sha}
        for key, value in (headers | {"ETag": f'"{hash(body):x}"' if sha else ""}).items():
            if value:
                self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as server:
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", url)
        template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def parquet(*prompts: str) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"prompt": list(prompts), "answer": ["x"] * len(prompts)}), sink)
    return sink.getvalue().to_pybytes()


def prompts_of(name: str, count: int = 30) -> list[str]:
    return [f"{name} asks question number {n}" for n in range(count)]


def read(source: str, **keys: object) -> PromptSet:
    return read_prompts(PromptsSection.model_validate({"source": source, "held_out": 0.3, **keys}))


def test_shards_of_the_train_split_are_read_in_order(hub):
    hub.repos["some/set"] = {
        "main": {
            "README.md": b"# data",
            "data/train-00001-of-00002.parquet": parquet(*prompts_of("second")),
            "data/train-00000-of-00002.parquet": parquet(*prompts_of("first")),
            "data/test-00000-of-00001.parquet": parquet(*prompts_of("test")),
        }
    }
    texts = [prompt.messages[0].content for prompt in read("hub:some/set").prompts]
    assert texts == prompts_of("first") + prompts_of("second")
    test = read("hub:some/set:test").prompts
    assert [prompt.messages[0].content for prompt in test] == prompts_of("test")
    assert test[4].source == "hub:some/set/data/test-00000-of-00001.parquet:5"


def test_only_the_files_that_the_limit_needs_are_downloaded(hub):
    first, second = "train-00000-of-00002.parquet", "train-00001-of-00002.parquet"
    hub.repos["some/set"] = {
        "main": {first: parquet(*prompts_of("first")), second: parquet(*prompts_of("second"))}
    }
    assert read("hub:some/set", limit=25).read == 25
    assert hub.downloads == [first]


def test_the_hubs_own_conversion_is_used_where_main_has_no_parquet(hub):
    hub.repos["some/csv"] = {
        "main": {"data.csv": b"prompt\nhello\n"},
        CONVERTED: {"default/train/0000.parquet": parquet(*prompts_of("converted"))},
    }
    assert read("hub:some/csv").read == 30
    hub.repos["some/text"] = {"main": {"data.txt": b"hello\n"}}
    with pytest.raises(InputError, match="hub:some/text has no Parquet files"):
        read("hub:some/text")


def test_a_pinned_revision_is_the_only_one_read(hub):
    hub.repos["some/set"] = {
        "main": {"train.parquet": parquet(*prompts_of("newest"))},
        "v1.0": {"train.parquet": parquet(*prompts_of("pinned"))},
    }
    for source in ("hub:some/set@v1.0", f"hub:some/set@{2:040x}:train"):
        texts = [prompt.messages[0].content for prompt in read(source).prompts]
        assert texts == prompts_of("pinned"), source
    with pytest.raises(InputError, match="some/set has no revision 'v2'"):
        read("hub:some/set@v2")


def test_held_out_may_be_another_split(hub):
    hub.repos["some/set"] = {
        "main": {
            "train.parquet": parquet(*prompts_of("train")),
            "test.parquet": parquet(*prompts_of("test", 7)),
        }
    }
    prompts = read("hub:some/set", held_out="hub:some/set:test")
    assert (len(prompts.train), len(prompts.held_out)) == (30, 7)


def test_a_split_that_is_not_there_or_not_alone_is_named(hub):
    files = {f"{a}/{b}-00000-of-00001.parquet": parquet("hi") for a in "xy" for b in ("train", "t")}
    hub.repos["some/set"] = {"main": files}
    with pytest.raises(InputError, match=r"'train' is one of several among x/train, y/train; .*x/"):
        read("hub:some/set")
    with pytest.raises(InputError, match="no split 'dev' among x/t, x/train, y/t, y/train"):
        read("hub:some/set:dev")
    hub.repos["some/set"]["main"]["x/train-00000-of-00001.parquet"] = parquet(*prompts_of("x"))
    assert read("hub:some/set:x/train").read == 30


@pytest.mark.parametrize(
    ("status", "error", "says"),
    [
        (404, InputError, "the hub answers 404.*check the name"),
        (401, InputError, "private or gated"),
        (503, ServiceError, "the hub answers 503"),
    ],
)
def test_what_the_hub_answers_is_told_in_one_line(hub, status, error, says):
    hub.status["some/set"] = status
    with pytest.raises(error, match=says) as caught:
        read("hub:some/set")
    assert "hub:some/set" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_hub_that_does_not_answer(hub, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        with pytest.raises(ServiceError, match="hub:some/set: the hub cannot be read"):
            read("hub:some/set")


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match="pip install huggingface_hub"):
        read("hub:some/set")


@pytest.mark.parametrize("source", ["hub:", "hub:name", "hub:a/b/c", "hub:a/b:", "hub:a--b/c..d"])
def test_a_source_that_names_no_data_set(source):
    with pytest.raises(LimbeckError) as caught:
        read(source)
    assert caught.value.exit_code == 2
    assert source in str(caught.value)

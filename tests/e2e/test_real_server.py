"""A model server that others wrote, `transformers serve`, as the teacher."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import IO
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from walking import Walk


@pytest.fixture
def server(tiny: Path, tmp_path: Path, needs: Callable[[object, str], None]) -> Iterator[str]:
    """Its address; it speaks for the tiny teacher."""
    there = [importlib.util.find_spec(name) for name in ("fastapi", "uvicorn", "openai")]
    command = Path(sys.executable).with_name("transformers")
    needs(
        command.exists() and all(there), "transformers serve: pip install 'transformers[serving]'"
    )
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    flags = ["serve", str(tiny), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    own = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with (tmp_path / "server").open("w") as log:
        process = subprocess.Popen(
            [command, *flags], env={**os.environ, **own}, stdout=log, stderr=log
        )
        try:
            _wait(f"http://127.0.0.1:{port}/health", process, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            process.wait()


def _wait(url: str, process: subprocess.Popen[bytes], log: IO[str]) -> None:
    while True:
        try:
            with urlopen(url):
                return
        except URLError:
            assert process.poll() is None, Path(log.name).read_text()
            time.sleep(0.2)


def test_its_answers_are_the_weights_own(server: str, tiny: Path, sums: Path, tmp_path: Path):
    until = date.today() + timedelta(days=30)
    (tmp_path / "permission.toml").write_text(
        f'teacher = "{tiny}"\nallowed_by = "us"\nuntil = {until}\npurpose = "product"\n'
    )
    permit = {"permission": str(tmp_path / "permission.toml")}
    served = answers(tmp_path / "served", tiny, sums, {"url": server}, permit=permit)
    local = answers(tmp_path / "local", tiny, sums, {})
    assert len(served) == len(local) > 40
    assert served == local


def answers(
    folder: Path, tiny: Path, sums: Path, teacher: dict[str, str], **sections: dict[str, str]
) -> dict[str, tuple[str, str]]:
    """Each prompt's text and outcome, greedily decoded."""
    walk = Walk(folder)
    walk.folder.mkdir()
    greedy = {"model": str(tiny), "max_tokens": 16, "temperature": 0.0, **teacher}
    walk.write(teacher=greedy, prompts={"source": str(sums)}, **sections)
    done = walk.limbeck("collect", "recipe.toml")
    assert done.returncode == 0, done.stderr
    walk.limbeck("answers", "runs/sums", "--export", "out.jsonl")
    rows = [json.loads(row) for row in (walk.folder / "out.jsonl").read_text().splitlines()]
    return {row["prompt"]: (row["text"], row["outcome"]) for row in rows}

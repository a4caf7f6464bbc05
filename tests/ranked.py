"""What runs on every rank of the tests' jobs: `torchrun … ranked.py SCENARIO FOLDER`.

It goes through limbeck's own process entry, so that errors end as they do for a user.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from limbeck import __main__ as entry
from limbeck import cli, ranks
from limbeck.collect import targets
from limbeck.errors import ServiceError
from limbeck.models.local import LocalModel
from limbeck.models.protocol import Asked
from limbeck.models.weights import find
from limbeck.progress import say
from limbeck.records import Targets
from limbeck.train.learner import Learner, Lesson
from limbeck.train.loop import train

SHARD_TOKENS = 20


class Noting(LocalModel):
    """A model that notes in the folder `notes` which rank scored an answer."""

    def __init__(self, folder: Path, notes: Path) -> None:
        super().__init__(find(str(folder)), precision="float32")
        self._notes = notes
        self._again = partial(Noting, folder, notes)

    def score(self, asked: Sequence[Asked], *rest: Any, **keys: Any) -> Iterator[Targets]:
        for _, answer in asked:
            (self._notes / f"{answer.id}.{ranks.rank()}").touch()
        return super().score(asked, *rest, **keys)


def learn(lesson: Lesson, folder: Path, name: str) -> None:
    train(lesson, folder / name, folder / f"{name}.jsonl", torch.float32)


def strike(lesson: Lesson, folder: Path, how: str) -> None:
    """Train until rank 1, and only it, is struck when two steps are learnt."""
    inner = Learner.learn

    def struck(self: Learner, *rest: Any) -> dict[str, Any]:
        row = inner(self, *rest)
        if ranks.rank() == 1 and row["step"] == 2:
            if how == "interrupted":
                signal.raise_signal(signal.SIGINT)
            elif how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            else:
                raise ServiceError("its disk is gone")
        return row

    Learner.learn = struck  # pyright: ignore
    learn(lesson, folder, how)


def work(scenario: str, folder: Path) -> None:
    """What a command would do."""
    assert (ranks.rank(), ranks.world()) == (0, 1), "outside of a job it is alone"
    plain = torch.nn.Module.compile  # inductor takes minutes where much else runs
    torch.nn.Module.compile = lambda *a, **k: plain(*a, **k, backend="aot_eager")  # pyright: ignore
    lessons = pickle.loads((folder / "lessons.pickle").read_bytes())
    if scenario != "all":
        ranks.together(strike, lessons["whole"], folder, scenario)
        return
    for name, lesson in lessons.items():
        ranks.together(learn, lesson, folder, name)
    made, teacher, asked = pickle.loads((folder / "targets.pickle").read_bytes())
    targets.SHARD_TOKENS = SHARD_TOKENS
    made.write(teacher, asked)
    say("walked to the end")


if __name__ == "__main__":
    scenario, place = sys.argv[1:]
    cli.app = lambda *_, **__: work(scenario, Path(place))  # pyright: ignore
    sys.exit(entry.run([]))

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from limbeck.collect.ask import Asking, ask, missing, stored
from limbeck.collect.store import VERSION, AnswerStore, outcomes
from limbeck.errors import InputError
from limbeck.models.protocol import QUIET, Model, OnTokens
from limbeck.records import OUTCOMES, Answer, Message, Prompt, Sampling, Usage

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
ANSWERS = st.builds(
    Answer,
    id=TEXT,
    prompt_id=TEXT,
    model=TEXT,
    route=TEXT,
    sampling=st.builds(
        Sampling,
        max_tokens=st.integers(1, 10**6),
        temperature=st.floats(0, 10),
        top_p=st.floats(0.01, 1),
        seed=st.integers(0, 2**63 - 1),
    ),
    text=TEXT,
    reasoning=TEXT,
    tool_calls=st.lists(st.dictionaries(TEXT, TEXT | st.integers() | st.none())).map(tuple),
    token_ids=st.lists(st.integers(0, 2**31 - 1)).map(tuple),
    finish_reason=TEXT,
    usage=st.builds(
        Usage,
        *(st.integers(0, 10**9), st.integers(0, 10**9), st.floats(0, 1e9, width=64)),
        *(st.integers(0, 10**9),) * 4,
    ),
    outcome=st.sampled_from(OUTCOMES),
    why=TEXT,
)


def prompts(n: int) -> list[Prompt]:
    made: list[Prompt] = []
    for i in range(n):
        messages = (Message("user", f"question {i}"),)
        made.append(Prompt(Prompt.identify(messages), messages, f"p:{i}", "train"))
    return made


def answer(prompt_id: str, text: str = "It is four.") -> Answer:
    sampling = Sampling()
    return Answer(
        id=Answer.identify(prompt_id, "model", "local", sampling),
        prompt_id=prompt_id,
        model="model",
        route="local",
        sampling=sampling,
        text=text,
        reasoning="",
        tool_calls=(),
        token_ids=(1, 2, 3),
        finish_reason="stop",
        usage=Usage(4, 3, 0.5),
        outcome="kept",
    )


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(answers=st.lists(ANSWERS, max_size=4, unique_by=lambda a: a.id))
def test_every_field_comes_back(tmp_path: Path, answers: list[Answer]) -> None:
    path = tmp_path / "answers.sqlite"
    with AnswerStore(path) as store:
        store.add(answers)
    with AnswerStore(path) as store:
        assert store.get([a.id for a in answers]) == answers
    path.unlink()


def test_answers_come_in_the_order_asked_for(tmp_path: Path) -> None:
    answers = [answer(str(i)) for i in range(1203)]
    with AnswerStore(tmp_path / "a.sqlite") as store:
        store.add(reversed(answers))
        wanted = [answers[i].id for i in (1200, 3, 3, 700, 0)]
        assert [a.id for a in store.get(["none", *wanted, "none"])] == wanted
        assert store.get([a.id for a in answers]) == answers
        assert store.have(["none", *wanted]) == set(wanted)


def test_a_known_id_is_replaced(tmp_path: Path) -> None:
    with AnswerStore(tmp_path / "a.sqlite") as store:
        store.add([answer("p")])
        store.add([answer("p", "Four.")])
        assert [a.text for a in store.get([answer("p").id])] == ["Four."]


def test_a_batch_is_added_whole_or_not(tmp_path: Path) -> None:
    good, bad = answer("p"), replace(answer("q"), outcome=cast(Any, object()))
    with AnswerStore(tmp_path / "a.sqlite") as store:
        with pytest.raises((sqlite3.Error, InputError)):
            store.add([good, bad])
        assert store.have([good.id]) == set()


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from limbeck.collect.store import AnswerStore
from test_store import answer
with AnswerStore(Path(sys.argv[1])) as store:
    for batch in range(10**6):
        store.add(answer(f"{batch}.{i}", "x" * 5000) for i in range(8))
        print(batch, flush=True)
"""


def test_a_killed_process_loses_no_batch_that_was_added(tmp_path: Path) -> None:
    for turn, batches in enumerate((1, 4, 9)):
        path = tmp_path / f"{turn}.sqlite"
        here = str(Path(__file__).parent)
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), here], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        seen = [int(next(writer.stdout)) for _ in range(batches)]
        os.kill(writer.pid, signal.SIGKILL)
        seen += [int(line) for line in writer.stdout if line.endswith("\n")]
        assert writer.wait() == -signal.SIGKILL
        with AnswerStore(path) as store:
            ids = {b: [answer(f"{b}.{i}").id for i in range(8)] for b in range(len(seen) + 1)}
            assert all(len(store.get(ids[batch])) == 8 for batch in seen)
            assert len(store.get(ids[len(seen)])) in (0, 8), "a batch in flight is there or not"


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    with AnswerStore(path) as store:
        store.add([answer("p")])
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {VERSION + 1}")
    with pytest.raises(InputError, match=r"written by a newer limbeck .*Upgrade limbeck"):
        AnswerStore(path)


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "not a database":
        content[:16] = b"SQLite forgot 3\0"
    elif how == "cut":
        del content[len(content) // 2 :]
    else:
        content[4096:] = b"\xa5" * (len(content) - 4096)
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["not a database", "cut", "overwritten"])
def test_a_damaged_store_is_named(tmp_path: Path, how: str) -> None:
    path = tmp_path / "a.sqlite"
    answers = [answer(str(i), "x" * 3000) for i in range(50)]
    with AnswerStore(path) as store:
        store.add(answers)
    damage(path, how)
    with (
        pytest.raises(InputError, match=r"is damaged .*recover") as caught,
        AnswerStore(path) as store,
    ):
        store.get([a.id for a in answers])
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_store_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "no" / "folder.sqlite"):
        with pytest.raises(InputError, match="cannot be used as an answer store"):
            AnswerStore(path)


def test_outcomes_are_counted_and_all_named() -> None:
    answers = [answer("p"), replace(answer("q"), outcome="refused"), answer("r")]
    counted = outcomes(answers)
    assert counted == {"kept": 2, "rejected": 0, "truncated": 0, "refused": 1, "failed": 0}
    assert sum(counted.values()) == len(answers)


class Fake:
    """Answers in batches of two and breaks down after some."""

    name, route, fingerprint = "fake", "local", "model"

    def __init__(self, batches: int = 10**9) -> None:
        self.batches = batches
        self.asked: list[str] = []

    def generate(
        self, prompts: Iterable[Prompt], sampling: Sampling, on_tokens: OnTokens = QUIET
    ) -> Iterator[list[Answer]]:
        prompts = list(prompts)
        self.asked = [p.id for p in prompts]
        for number, start in enumerate(range(0, len(prompts), 2)):
            if number == self.batches:
                raise KeyboardInterrupt
            texts = {p.id: "" if p.source == "p:3" else "It is four." for p in prompts}
            yield [answer(p.id, texts[p.id]) for p in prompts[start : start + 2][::-1]]


def test_asking_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    some = prompts(9)
    with AnswerStore(tmp_path / "a.sqlite") as store:
        with pytest.raises(KeyboardInterrupt):
            ask(cast(Model, Fake(2)), some, Sampling(), store, "collect")
        left = list(missing(some, Asking("model", "local", Sampling()), store))
        assert left == some[4:]
        second = Fake()
        answers = ask(cast(Model, second), some, Sampling(), store, "collect")
        assert second.asked == [p.id for p in left]
        assert [a.prompt_id for a in answers] == [p.id for p in some]
        assert [a.outcome for a in answers] == ["kept"] * 3 + ["failed"] + ["kept"] * 5
        third = Fake()
        assert ask(cast(Model, third), some, Sampling(), store, "collect") == answers
        assert third.asked == []


def test_another_model_route_or_sampling_is_another_answer(tmp_path: Path) -> None:
    some = prompts(2)
    with AnswerStore(tmp_path / "a.sqlite") as store:
        ask(cast(Model, Fake()), some, Sampling(), store, "collect")
        assert list(missing(some, Asking("model", "local", Sampling()), store)) == []
        others = [
            ("other", "local", Sampling()),
            ("model", "served", Sampling()),
            ("model", "local", Sampling(seed=1)),
            ("model", "local", Sampling(temperature=0.5)),
        ]
        for model, route, sampling in others:
            asking = Asking(model, route, sampling)
            assert list(missing(some, asking, store)) == some
            assert stored(some, asking, store) == []


def test_what_a_failure_cost_is_asked_again_and_all_is_counted(tmp_path: Path) -> None:
    spoilt = replace(answer("q"), text="", outcome="failed", finish_reason="error")
    lost = replace(answer("r"), usage=Usage(1, 2, 0.5, lost_in=10, lost_out=20))
    with AnswerStore(tmp_path / "a.sqlite") as store:
        store.add([answer("p"), spoilt, lost, replace(answer("s"), model="other")])
        ids = [answer(name).id for name in "pqr"]
        assert store.have(ids) == {ids[0], ids[2]}
        assert store.spent("model", "local") == Usage(9, 8, 1.5, 0, 0, 10, 20)
        assert store.spent("nobody", "local") == Usage(0, 0)

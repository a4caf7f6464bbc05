from __future__ import annotations

import json
import re
import sqlite3
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from limbeck import lineage
from limbeck.collect.prompts import load_prompts
from limbeck.collect.store import VERSION, AnswerStore, Origin
from limbeck.errors import InputError
from limbeck.recipe import parse_recipe
from limbeck.records import Usage
from limbeck.run import Run
from papers import MIT, ROWS, Made, renamed

BEFORE_PERMISSIONS = """
CREATE TABLE answers (
    id TEXT PRIMARY KEY, prompt_id TEXT NOT NULL, model TEXT NOT NULL, route TEXT NOT NULL,
    sampling TEXT NOT NULL, text TEXT NOT NULL, reasoning TEXT NOT NULL, tool_calls TEXT NOT NULL,
    token_ids BLOB NOT NULL, finish_reason TEXT NOT NULL, tokens_in INTEGER NOT NULL,
    tokens_out INTEGER NOT NULL, seconds REAL NOT NULL, outcome TEXT NOT NULL, why TEXT NOT NULL
) WITHOUT ROWID;
PRAGMA user_version = 1;
"""
BEFORE_SERVICES = """
ALTER TABLE answers ADD COLUMN asked_at TEXT NOT NULL DEFAULT '';
ALTER TABLE answers ADD COLUMN permission TEXT NOT NULL DEFAULT '';
CREATE TABLE permissions (id TEXT PRIMARY KEY, document TEXT NOT NULL) WITHOUT ROWID;
PRAGMA user_version = 2;
"""
SERVED = Usage(11, 7, 0.5, 3, 2, 11, 64)


def an_answer(made: Made) -> Any:
    return next(iter(made.answers.values()))


@pytest.mark.parametrize("format_", [1, 2])
def test_an_older_store_is_brought_up_to_date(tmp_path: Path, made: Made, format_: int) -> None:
    path, old = tmp_path / "answers.sqlite", an_answer(made)
    columns = {1: 15, 2: 17}[format_]
    with sqlite3.connect(made.folder / "answers.sqlite") as db:
        row = db.execute("SELECT * FROM answers WHERE id = ?", (old.id,)).fetchone()
    asked = Origin(row[15], row[16]) if format_ > 1 else Origin("", "")
    with sqlite3.connect(path) as db:
        db.executescript(BEFORE_PERMISSIONS)
        if format_ > 1:
            db.executescript(BEFORE_SERVICES)
        db.execute(f"INSERT INTO answers VALUES ({','.join('?' * columns)})", row[:columns])
    with pytest.raises(InputError, match="older limbeck"):
        AnswerStore(path, read_only=True)
    for _ in range(2):  # the second time it is what it was made
        with AnswerStore(path, MIT) as store:
            assert store.get([old.id]) == [old]
            assert store.origins([old.id]) == {old.id: asked}
            store.add([replace(old, id="new", usage=SERVED)])
            assert store.get(["new"])[0].usage == SERVED
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (VERSION,)


def test_a_newer_store_is_refused_by_readers_too(made: Made) -> None:
    with sqlite3.connect(made.folder / "answers.sqlite") as db:
        db.execute(f"PRAGMA user_version = {VERSION + 1}")
    for read_only in (False, True):
        with pytest.raises(InputError, match="newer limbeck"):
            AnswerStore(made.folder / "answers.sqlite", read_only=read_only)


def test_each_answer_keeps_the_permission_it_was_asked_under(made: Made) -> None:
    ids, later = list(made.answers), renamed(MIT, date_read="2026-12")
    with AnswerStore(made.folder / "answers.sqlite", later) as store:
        store.add([made.answers[ids[0]]])
        origins = store.origins(ids)
        assert store.permissions().keys() == {MIT.id, later.id}
        assert store.permissions()[later.id]["date_read"] == "2026-12"
    assert Counter(o.permission for o in origins.values()) == {MIT.id: len(ids) - 1, later.id: 1}
    assert origins[ids[0]].asked_at > origins[ids[1]].asked_at == "2026-11-01T10:00:00+00:00"


def test_a_reader_leaves_the_store_as_it_is(made: Made) -> None:
    before = {p.name: p.read_bytes() for p in made.folder.iterdir() if p.is_file()}
    for path in made.folder.iterdir():
        path.chmod(0o555 if path.is_dir() else 0o444)
    lineage.trace(made.recipe, made.folder)
    assert {p.name: p.read_bytes() for p in made.folder.iterdir() if p.is_file()} == before


def test_digests_cover_every_column_and_not_the_bytes_of_the_file(made: Made) -> None:
    path, some = made.folder / "answers.sqlite", an_answer(made)

    def digests(clock: bool = True) -> dict[str, str]:
        with AnswerStore(path, read_only=True) as store:
            return store.digests(clock=clock)

    def run(statement: str) -> None:
        with sqlite3.connect(path) as db:
            db.execute(statement)

    before, unclocked = digests(), digests(clock=False)
    assert list(before)[:-1] == sorted(made.answers) and list(before)[-1] == f"permission/{MIT.id}"
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA journal_mode = DELETE")
        db.execute("VACUUM")
    assert digests() == before
    with sqlite3.connect(path) as db:
        columns = [row[1] for row in db.execute("PRAGMA table_info(answers)")][1:]
    clocked = {"seconds", "asked_at", "cached", "lost_in", "lost_out"}
    assert clocked | {"text", "token_ids", "outcome", "permission"} <= set(columns)
    for column in columns:
        run(f"UPDATE answers SET {column} = {column} || 'x' WHERE id = '{some.id}'")
        now = digests()
        assert {i for i in before if before[i] != now[i]} == {some.id}, column
        assert (digests(clock=False) == unclocked) is (column in clocked), column
        before, unclocked = now, digests(clock=False)


def test_lineage_tells_the_way_of_every_prompt(finished_made: Made) -> None:
    made = finished_made
    found = lineage.trace(made.recipe, made.folder)
    prompts = {p.id: p for p in load_prompts(made.folder / "prompts.jsonl")}
    learnt = json.loads((made.folder / "checkpoints/student/answers.json").read_text())
    assert [row.prompt for row in found.rows] == list(prompts)
    for row in found.rows:
        answer, prompt = made.answers[row.answer], prompts[row.prompt]
        assert (row.source, row.split) == (prompt.source, prompt.split)
        assert (row.outcome, row.why) == (answer.outcome, answer.why)
        assert row.times == learnt.get(row.answer, 0)
        assert row.permission == MIT.id
        assert row.asked_at[:10] == ("2026-11-01" if "a.jsonl" in row.source else "2026-11-02")
        assert (row.shard is not None) == (answer.outcome == "kept")
        if row.shard:
            shard = (made.folder / "targets" / row.shard).read_bytes()
            assert row.answer.encode() in shard
    assert {row.answer for row in found.rows if row.times} == set(learnt)
    assert found.permissions[MIT.id]["clause"] == MIT.clause
    assert found.teacher["fingerprint"] == made.teacher.fingerprint


def test_groups_add_up_and_name_file_day_and_permission(finished_made: Made) -> None:
    found = lineage.trace(finished_made.recipe, finished_made.folder)
    groups = found.groups()
    assert [(Path(g["source"]).name, g["day"], g["permission"]) for g in groups] == [
        ("a.jsonl", "2026-11-01", MIT.id),
        ("b.jsonl", "2026-11-02", MIT.id),
    ]
    assert [sum(g[fate] for fate in lineage.FATES) for g in groups] == [ROWS, ROWS // 2]
    assert sum(g["trained"] for g in groups) == sum(row.times > 0 for row in found.rows) > 0
    assert groups[1]["not_reached"] == 3
    told = "\n".join(lineage.told(found))
    for text in ("tutor", "2026-11-02", MIT.id, MIT.route, MIT.clause, MIT.source, "2026-11"):
        assert text in told
    assert json.loads(json.dumps(found.to_json()))["groups"] == groups


def test_without_answers_or_training_record_lineage_says_what_to_do(made: Made) -> None:
    record = made.folder / "checkpoints" / "student" / "answers.json"
    record.write_text("{")
    with pytest.raises(InputError, match=r"answers\.json.*limbeck train"):
        lineage.trace(made.recipe, made.folder)
    Run(made.folder, made.recipe).forget("train")
    assert not any(row.times for row in lineage.trace(made.recipe, made.folder).rows)
    Run(made.folder, made.recipe).forget("collect")
    with pytest.raises(InputError, match="limbeck collect"):
        lineage.trace(made.recipe, made.folder)


def test_a_missing_shard_is_named(made: Made) -> None:
    shard = next((made.folder / "targets").glob("*.safetensors"))
    shard.unlink()
    with pytest.raises(InputError, match=shard.name):
        lineage.trace(made.recipe, made.folder)


@pytest.mark.parametrize("taken", [1, 3, 11])
def test_what_was_learnt_is_what_the_steps_held(tmp_path: Path, taken: int) -> None:
    """Against the trainer's own order: every example of the steps taken, as often as it came."""
    from limbeck.train.batch import steps

    lengths = [5, 9, 3, 14, 6, 6, 2]
    examples = [
        SimpleNamespace(answer_id=f"a{i}", token_ids=np.zeros(n)) for i, n in enumerate(lengths)
    ]
    section = parse_recipe(
        {
            "name": "x",
            "teacher": {"model": "x"},
            "prompts": {"source": "x"},
            "student": {"layers": 1},
            "train": {"steps": taken, "batch_tokens": 16, "micro_tokens": 8},
        }
    ).train
    lesson = SimpleNamespace(examples=examples, section=section, seed=3)
    lineage.note_learnt(tmp_path / "answers.json", cast(Any, lesson), taken)
    wanted: Counter[str] = Counter()
    for _, step in zip(range(taken), steps(lengths, 16, 8, 3), strict=False):
        wanted.update(f"a{i}" for micro in step for i in micro)
    assert json.loads((tmp_path / "answers.json").read_text()) == wanted


def drop(made: Made, source: str) -> lineage.Drop:
    run = Run(made.folder, made.recipe)
    plan = lineage.plan_drop(made.recipe, made.folder, source)
    lineage.drop(run, plan)
    return plan


def stored(made: Made) -> dict[str, Any]:
    with AnswerStore(made.folder / "answers.sqlite", read_only=True) as store:
        return {a.id: a for a in store.get(list(made.answers))}


def test_a_plan_lists_what_goes_and_changes_nothing(made: Made) -> None:
    before = {p: p.read_bytes() for p in made.folder.rglob("*") if p.is_file()}
    rows = lineage.trace(made.recipe, made.folder).rows
    plan = lineage.plan_drop(made.recipe, made.folder, "b.jsonl")
    gone = [row for row in rows if "b.jsonl" in row.source]
    assert set(plan.answers) == {row.answer for row in gone}
    assert sum(plan.outcomes.values()) == len(gone) == ROWS // 2
    assert plan.trained == sum(row.times > 0 for row in gone)
    assert set(plan.shards) == {row.shard for row in gone} - {None}
    assert plan.stages == (
        "targets", "student", "train", "control", "validate", "export",
    )  # fmt: skip
    told = "\n".join(lineage.told_drop(plan, made.folder))
    for text in ("b.jsonl", "checkpoints/student", "checkpoints/control", *plan.shards):
        assert text in told
    assert {p: p.read_bytes() for p in made.folder.rglob("*") if p.is_file()} == before


def test_a_dropped_source_is_rejected_and_all_that_rests_on_it_is_due(made: Made) -> None:
    half_trained = made.folder / "checkpoints" / "student" / "step-0000007"
    half_trained.mkdir()
    before = stored(made)
    plan = drop(made, "b.jsonl")
    after = stored(made)
    assert after.keys() == before.keys(), "nothing is silently lost"
    for id_, answer in after.items():
        if id_ in plan.answers:
            assert answer.outcome == "rejected" and answer.why == f"source dropped: {plan.source}"
        else:
            assert answer == before[id_]
        assert answer.text == before[id_].text
    assert not half_trained.exists()
    stages = Run(made.folder, made.recipe).manifest["stages"]
    assert not set(plan.stages) & set(stages)
    assert lineage.dropped(made.folder) == [plan.source]
    groups = lineage.trace(made.recipe, made.folder).groups()
    assert [g["left_out"] for g in groups] == [ROWS // 6, ROWS // 2]


@pytest.mark.parametrize("how", ["file", "name", "row", "permission"])
def test_a_source_is_a_file_a_row_or_a_permission(made: Made, how: str) -> None:
    rows = lineage.trace(made.recipe, made.folder).rows
    later = renamed(MIT)
    with AnswerStore(made.folder / "answers.sqlite", later) as store:
        store.add([made.answers[row.answer] for row in rows[:2]])
    file = lineage.file_of(rows[0].source)
    source, count = {
        "file": (file, ROWS),
        "name": ("a.jsonl", ROWS),
        "row": (rows[4].source, 1),
        "permission": (later.id, 2),
    }[how]
    assert len(lineage.plan_drop(made.recipe, made.folder, source).answers) == count


def test_an_interrupted_drop_is_finished_by_the_next_collect(made: Made) -> None:
    """Only the record was written: the answers are rejected when they are next taken up."""
    plan = lineage.plan_drop(made.recipe, made.folder, "b.jsonl")
    record = [{"source": plan.source, "day": "2026-11-20"}]
    (made.folder / lineage.DROPPED).write_text(json.dumps(record))
    prompts = load_prompts(made.folder / "prompts.jsonl")
    with AnswerStore(made.folder / "answers.sqlite", MIT) as store:
        answers = lineage.enforce(made.folder, prompts, list(made.answers.values()), store)
    rejected = {a.id for a in answers if a.why.startswith("source dropped")}
    assert rejected == set(plan.answers)
    assert {a.id for a in stored(made).values() if a.outcome == "rejected"} == rejected


def test_what_cannot_be_dropped_changes_nothing(made: Made) -> None:
    with pytest.raises(InputError, match=r"no source of .*a\.jsonl.*b\.jsonl"):
        drop(made, "c.jsonl")
    with pytest.raises(InputError, match="no answer to a train prompt is left"):
        drop(made, MIT.id)
    assert not (made.folder / lineage.DROPPED).exists()
    drop(made, "b.jsonl")
    with pytest.raises(InputError, match="dropped before"):
        drop(made, "b.jsonl")
    (made.folder / lineage.DROPPED).write_text("[1]")
    with pytest.raises(InputError, match=re.escape(lineage.DROPPED)):
        lineage.dropped(made.folder)


def test_two_files_of_one_name_have_to_be_told_apart(made: Made) -> None:
    path = made.folder / "prompts.jsonl"
    path.write_text(path.read_text().replace("/b.jsonl:", "/elsewhere/a.jsonl:"))
    with pytest.raises(InputError, match="say which"):
        lineage.plan_drop(made.recipe, made.folder, "a.jsonl")

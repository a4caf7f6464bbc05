"""Lineage, papers and signature of a real walk, as a user types them."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from contextlib import closing
from typing import Any

import pytest

from limbeck.export.bom import check
from limbeck.export.spdx import check as check_spdx
from tiny import sums as known_sums
from walking import Done, Walk, complaint

Finished = tuple[Walk, Done]


def told(walk: Walk, *words: object, code: int = 0) -> dict[str, Any]:
    done = walk.limbeck(*words, "--json")
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def test_the_student_carries_its_papers(finished: Finished) -> None:
    student = finished[0].run / "student"
    check((student / "bom.cdx.json").read_text())
    check_spdx((student / "bom.spdx3.json").read_text())
    assert "tiny" in (student / "NOTICE").read_text()


def test_lineage_counts_the_tokens_that_training_read(finished: Finished) -> None:
    """The answers learnt, as often as they were, are as many as the steps can have held."""
    walk, _ = finished
    found = told(walk, "lineage", walk.run)
    assert len(found["rows"]) == len(known_sums())
    assert Counter(row["split"] for row in found["rows"] if row["times"]).keys() == {"train"}
    with closing(sqlite3.connect(walk.run / "answers.sqlite")) as db:
        out = dict(db.execute("SELECT id, tokens_out FROM answers"))
    learnt = sum(row["times"] * out[row["answer"]] for row in found["rows"])
    assert learnt == walk.manifest()["stages"]["train"]["facts"]["target_tokens"]
    (permission,) = found["permissions"].values()
    assert permission == json.loads((walk.run / "permission.json").read_text())
    assert all(row["asked_at"] for row in found["rows"])


def test_a_signed_walk_verifies_until_one_answer_is_altered(copied: Walk) -> None:
    run, key = copied.run, copied.folder / "key.pem"
    told(copied, "attest", run, "--keygen", "--key", key)
    assert told(copied, "verify", run, "--key", f"{key}.pub")["verified"]
    second = copied.limbeck("distill", run)
    assert second.returncode in (0, 1), second.stderr
    assert told(copied, "verify", run, "--key", key)["verified"], "a second walk changes nothing"
    with closing(sqlite3.connect(run / "answers.sqlite")) as db, db:
        (id_,) = db.execute("SELECT min(id) FROM answers").fetchone()
        db.execute("UPDATE answers SET text = 'It is none.' WHERE id = ?", (id_,))
    found = told(copied, "verify", run, "--key", key, code=1)
    assert found["problems"] == [f"changed: answers.sqlite, answer {id_}"]


def test_another_name_and_licence_need_no_other_training(copied: Walk) -> None:
    stages = copied.manifest()["stages"]
    copied.change(export={"licence": "gpl-3.0", "name": "adder"})
    assert copied.limbeck("export", copied.run).returncode in (0, 1)
    card = (copied.run / "student" / "README.md").read_text()
    assert "license: gpl-3.0" in card and "# adder" in card and "tiny (mit;" in card
    after = copied.manifest()["stages"]
    assert {stage for stage in stages if stages[stage] != after[stage]} == {"export"}


@pytest.mark.slow
def test_what_was_dropped_is_no_longer_learnt(copied: Walk) -> None:
    run = copied.run
    before = told(copied, "lineage", run)
    rows = [row for row in before["rows"] if row["times"]][:2]
    old = (run / "student" / "model.safetensors").read_bytes()
    for row in rows:
        plan = told(copied, "collect", run, "--drop-source", row["source"])
        assert plan["answers"] == [row["answer"]]
    assert "no source" in complaint(copied.limbeck("lineage", run, "--drop-source", "x"), 2)

    done = copied.limbeck("distill", run, "--json")

    assert done.returncode in (0, 1), done.stderr
    facts = copied.manifest()["stages"]["collect"]["facts"]
    assert (facts["asked_now"], facts["rejected"]) == (0, 2)
    assert (run / "student" / "model.safetensors").read_bytes() != old
    after = {row["answer"]: row for row in told(copied, "lineage", run)["rows"]}
    for row in rows:
        gone = after[row["answer"]]
        assert (gone["outcome"], gone["times"], gone["shard"]) == ("rejected", 0, None)
        for shard in (run / "targets").glob("*.safetensors"):
            assert row["answer"].encode() not in shard.read_bytes()
    assert json.loads(done.stdout)["outcomes"]["rejected"] == 2

from __future__ import annotations

import csv
import json
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from limbeck.collect.duplicates import normalise, shingles
from limbeck.collect.prompts import PromptSet, load_prompts, read_prompts, write_prompts
from limbeck.errors import InputError
from limbeck.recipe import PromptsSection
from limbeck.records import Message, Prompt

SEVERAL = [f"Tell me something about the number {n}, please" for n in range(40)]


def section(source: Path | str, **keys: Any) -> PromptsSection:
    return PromptsSection.model_validate({"source": str(source), **keys})


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def texts(prompts: tuple[Prompt, ...]) -> list[str]:
    return [prompt.messages[-1].content for prompt in prompts]


def read(folder: Path, asked: list[str], **keys: Any) -> PromptSet:
    path = jsonl(folder / "prompts.jsonl", [{"prompt": text} for text in asked])
    return read_prompts(section(path, **keys))


# --- the formats ---------------------------------------------------------------------------------


def write_as(suffix: str, path: Path, asked: list[str]) -> None:
    match suffix:
        case ".jsonl":
            jsonl(path, [{"id": n, "prompt": text} for n, text in enumerate(asked)])
        case ".csv":
            with path.open("w", encoding="utf-8-sig", newline="") as file:
                csv.writer(file).writerows([("prompt", "id"), *((text, 0) for text in asked)])
        case ".parquet":
            pq.write_table(pa.table({"id": list(range(len(asked))), "prompt": asked}), path)
        case _:
            path.write_text("\n\n".join(asked) + "\n", encoding="utf-8")


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet", ".txt", ".JSONL"])
def test_every_format_gives_the_same_prompts(tmp_path, suffix):
    asked = [*SEVERAL, 'Commas, "quotes" and ünïcödé', "Line\u2028separator"]
    path = tmp_path / f"prompts{suffix}"
    write_as(suffix.lower(), path, asked)
    found = read_prompts(section(path))
    assert texts(found.prompts) == asked
    assert {p.id for p in found.prompts} == {p.id for p in read(tmp_path, asked).prompts}
    row = {".csv": 4, ".txt": 5}.get(suffix, 3)
    assert found.prompts[2].source == f"{path}:{row}"
    assert found.prompts[2].id == Prompt.identify((Message("user", asked[2]),))


def test_a_csv_cell_may_span_lines(tmp_path):
    path = tmp_path / "prompts.csv"
    path.write_text('question,n\n"one\ntwo",1\nthree,2\n' + "".join(f"{t!r},3\n" for t in "abcdef"))
    with pytest.raises(InputError, match=r"prompts.csv:2: no field 'prompt'.*'question', 'n'"):
        read_prompts(section(path))
    found = read_prompts(section(path, field="question", held_out=0.5))
    assert [(p.messages[0].content, p.source) for p in found.prompts[:2]] == [
        ("one\ntwo", f"{path}:2"),
        ("three", f"{path}:4"),
    ]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_messages_lose_the_answer_and_get_the_system_message(tmp_path, suffix):
    def turns(*pairs: tuple[str, str]) -> list[dict[str, str]]:
        return [{"role": role, "content": text} for role, text in pairs]

    rows = [
        turns(("user", "one"), ("assistant", "1"), ("user", "two"), ("assistant", "2")),
        turns(("system", "own"), ("user", "three")),
        *(turns(("user", text)) for text in SEVERAL),
    ]
    path = tmp_path / f"prompts{suffix}"
    if suffix == ".jsonl":
        jsonl(path, [{"chat": row} for row in rows])
    else:
        pq.write_table(pa.table({"chat": rows}), path)
    first, second, *_ = read_prompts(section(path, field="chat", system="Be kind.")).prompts
    assert first.messages == (
        Message("system", "Be kind."),
        Message("user", "one"),
        Message("assistant", "1"),
        Message("user", "two"),
    )
    assert second.messages == (Message("system", "own"), Message("user", "three"))
    assert first.id == Prompt.identify(first.messages)


def test_tags_come_from_tags_or_task(tmp_path):
    extras = [{"tags": ["a", "b"], "task": "c"}, {"task": "d"}, {"tags": None, "task": None}, {}]
    rows = [{"prompt": t} | extras[n % 4] for n, t in enumerate(SEVERAL)]
    found = read_prompts(section(jsonl(tmp_path / "p.jsonl", rows)))
    assert [p.tags for p in found.prompts[:4]] == [("a", "b"), ("d",), (), ()]


def test_limit_counts_rows_and_stops_before_the_next(tmp_path):
    path = jsonl(tmp_path / "p.jsonl", [{"prompt": text} for text in SEVERAL])
    with path.open("a") as file:
        file.write("this is not JSON\n")
    assert read_prompts(section(path, limit=40)).read == 40
    with pytest.raises(InputError, match=r"p.jsonl:41: not valid JSON"):
        read_prompts(section(path, limit=41))


# --- what is wrong -------------------------------------------------------------------------------


def test_what_is_not_there(tmp_path):
    for source, says in (
        (tmp_path / "none.jsonl", "does not exist"),
        (tmp_path / "prompts.xlsx", r"'?\.xlsx'?.*known are .jsonl, .csv, .parquet, .txt"),
        (tmp_path / "prompts", "without a suffix"),
    ):
        with pytest.raises(InputError, match=says):
            read_prompts(section(source))
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        read_prompts(section(tmp_path / "folder.csv"))


GOOD = b'{"prompt": "fine"}\n'
HELLO = '{"role": "user", "content": "hello"}'


@pytest.mark.parametrize(
    ("name", "content", "row", "says"),
    [
        ("p.jsonl", b"", None, "holds no prompts"),
        ("p.txt", b"\n  \n", None, "holds no prompts"),
        ("p.csv", b"prompt\n", None, "holds no prompts"),
        ("p.jsonl", GOOD + b"\n{oops}\n", 3, "not valid JSON"),
        ("p.jsonl", b"[" * 100_000, 1, "nested too deeply"),
        ("p.jsonl", GOOD + b'"text"\n', 2, "a row must be a JSON object, this is text"),
        ("p.jsonl", GOOD + b'{"question": 1, "answer": 2}', 2, "'question', 'answer'. Set prompts"),
        ("p.jsonl", GOOD + b"{}", 2, "its fields are none"),
        ("p.jsonl", b'{"prompt": 7}', 1, "'prompt' must be text .*this is a number"),
        ("p.jsonl", b'{"prompt": null}', 1, "this is null"),
        ("p.jsonl", b'{"prompt": true}', 1, "this is a truth value"),
        ("p.jsonl", b'{"prompt": {"text": "a"}}', 1, "this is an object"),
        ("p.jsonl", b'{"prompt": ["a"]}', 1, "message 1 must have 'role' and 'content'.*text"),
        ("p.jsonl", b'{"messages": [{"from": "user", "value": "a"}]}', 1, "has 'from', 'value'"),
        ("p.jsonl", b'{"messages": []}', 1, "no user message"),
        ("p.jsonl", b'{"messages": [{"role": "assistant", "content": "a"}]}', 1, "no user message"),
        ("p.jsonl", b'{"messages": [{"role": "bot", "content": "a"}]}', 1, "role 'bot'; known"),
        ("p.jsonl", b'{"messages": [{"role": "user", "content": 3}]}', 1, "message 1 must be text"),
        ("p.jsonl", GOOD + b'{"prompt": " \\n"}', 2, "'prompt' is empty"),
        ("p.jsonl", b'{"prompt": "\\ud83d"}', 1, "surrogate"),
        ("p.jsonl", b'{"prompt": "a", "tags": 3}', 1, "'tags' must be a list of texts"),
        ("p.jsonl", b'{"prompt": "a", "task": ["b"]}', 1, "'task' must be text"),
        ("p.jsonl", GOOD + b'{"prompt": "caf\xe9"}', 2, "not valid UTF-8 at byte 16"),
        ("p.txt", b"one\ntwo\n\xff", 3, "not valid UTF-8"),
        ("p.csv", b"prompt\nfine\ncaf\xe9\n", 3, "not valid UTF-8"),
        ("p.csv", b"prompt,n\nfine,1\nno, quotes,2\n", 3, "3 cells under a header of 2"),
        ("p.csv", b'prompt,n\n"fine"x,1\n', 2, "not valid CSV"),
        ("p.csv", b'prompt,n\nfine,1\n"open,2\nand,3\n', 3, "not valid CSV"),
        ("p.csv", b"prompt,prompt\na,b\n", 1, "stands twice"),
        ("p.csv", b"prompt,n\n,1\n", 2, "'prompt' is empty"),
        ("p.parquet", b"not parquet", None, "cannot be read as Parquet"),
    ],
)
def test_a_wrong_row_is_named_in_one_line(tmp_path, name, content, row, says):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=says) as caught:
        read_prompts(section(path))
    message = str(caught.value)
    assert message.startswith(f"{path}:{row}:" if row else str(path))
    assert "\n" not in message


def test_a_wrong_row_of_a_parquet_file_is_named(tmp_path):
    path = tmp_path / "p.parquet"
    good = ["fine"] * 1500
    cases: list[tuple[dict[str, Any], str]] = [
        ({"text": good}, "p.parquet:1: no field 'prompt' or 'messages'; its fields are 'text'"),
        ({"prompt": [*good, None]}, "p.parquet:1501: 'prompt' must be text .* null"),
        ({"prompt": [7]}, "p.parquet:1: 'prompt' must be text .* number"),
    ]
    for columns, says in cases:
        pq.write_table(pa.table(columns), path)
        with pytest.raises(InputError, match=says):
            read_prompts(section(path))
    data = pa.array([*([b"fine"] * 1500), b"caf\xe9", b"x"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), len(data), data.buffers())
    pq.write_table(pa.table({"prompt": text}), path)
    with pytest.raises(InputError, match=r"p.parquet:1501: not valid UTF-8"):
        read_prompts(section(path))


# --- duplicates and splits -----------------------------------------------------------------------

WORDS = st.sampled_from(["tea", "Tea", "oat", "rye", "fig", "PLUM", "plum", "nut", "egg"])
ASKED = st.lists(st.lists(WORDS, min_size=1, max_size=12).map(" ".join), min_size=1, max_size=40)
FOLDER = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def share_of(one: Prompt, other: Prompt) -> float:
    left, right = (
        shingles((m.role, normalise(m.content)) for m in prompt.messages if m.role != "system")
        for prompt in (one, other)
    )
    return len(left & right) / len(left | right)


@FOLDER
@given(ASKED, st.sampled_from([0.3, 0.5, 0.8, 0.9, 1.0]))
def test_what_stays_is_new_and_the_counts_add_up(tmp_path, asked, threshold):
    anchors = ["a cat sat on the mat", "what are clouds made of", "who sings so late at night"] * 2
    anchors += [f"{n} " * 3 + f"{n}a {n}b {n}c" for n in range(20)]
    found = read(tmp_path, anchors + asked, near_duplicates=threshold, held_out=0.4)
    assert found.read == len(anchors + asked)
    assert found.read == len(found.prompts) + found.exact_duplicates + found.near_duplicates
    forms = [normalise(text) for text in anchors + asked]
    assert found.exact_duplicates == len(forms) - len(set(forms))
    assert sorted(found.train + found.held_out, key=found.prompts.index) == list(found.prompts)
    if threshold < 1:
        pairs = product(found.prompts, found.prompts)
        assert all(one is other or share_of(one, other) < threshold for one, other in pairs)
    else:
        assert found.near_duplicates == 0


@FOLDER
@given(ASKED, ASKED, st.randoms(use_true_random=False))
def test_a_prompt_never_moves_between_splits(tmp_path, before, more, random):
    def splits(asked: list[str], **keys: Any) -> dict[str, str]:
        found = read(tmp_path, SEVERAL + asked, held_out=0.4, near_duplicates=1.0, **keys)
        return {normalise(p.messages[-1].content): p.split for p in found.prompts}

    early, late = splits(before), splits(random.sample(before + more, len(before + more)))
    assert early.items() <= late.items()
    assert splits(before, system="Be brief.") == early


def test_the_share_is_kept_and_grows_by_adding(tmp_path):
    asked = [f"question {n}" for n in range(4000)]
    kept = {
        share: {p.id for p in read(tmp_path, asked, held_out=share).held_out}
        for share in (0.05, 0.1, 0.5)
    }
    assert kept[0.05] < kept[0.1] < kept[0.5]
    for share, ids in kept.items():
        deviation = (4000 * share * (1 - share)) ** 0.5
        assert abs(len(ids) - 4000 * share) < 5 * deviation


def test_across_the_splits_the_train_prompt_goes(tmp_path):
    long = " ".join(f"word{n}" for n in range(60))
    pairs = [(f"{long} {n} left", f"{long} {n} right") for n in range(20)]
    alone = [read(tmp_path, [*SEVERAL, *pair], near_duplicates=1.0, held_out=0.5) for pair in pairs]
    split_pairs = 0
    for pair, apart in zip(pairs, alone, strict=True):
        first, second = apart.prompts[-2:]
        joined = read(tmp_path, [*SEVERAL, *pair], held_out=0.5)
        assert joined.near_duplicates == 1
        stays = texts(joined.prompts)[-1]
        if first.split != second.split:
            split_pairs += 1
            assert stays == pair[0 if first.split == "held_out" else 1]
        else:
            assert stays == pair[0]
    assert 0 < split_pairs < len(pairs)


def test_one_question_under_several_system_messages(tmp_path):
    def row(system: str, text: str) -> dict[str, Any]:
        turns = [("system", system), ("user", text)]
        return {"messages": [{"role": role, "content": content} for role, content in turns]}

    rows = [row(system, text) for text in SEVERAL for system in ("Be a pirate.", "Be a poet.")]
    again = row("be a  PIRATE.", SEVERAL[0].upper())
    found = read_prompts(section(jsonl(tmp_path / "p.jsonl", [*rows, again])))
    assert (len(found.prompts), found.exact_duplicates, found.near_duplicates) == (80, 1, 0)
    for one, other in zip(found.prompts[::2], found.prompts[1::2], strict=True):
        assert one.split == other.split


@pytest.mark.parametrize(
    ("changed", "threshold", "overlaps"),
    [
        (SEVERAL[3].upper() + " ", 1.0, True),
        (SEVERAL[3] + "?!", 1.0, False),
        (SEVERAL[3] + "?!", 0.9, True),
        ("Something else", 0.9, False),
    ],
)
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_held_out_prompts_of_a_file(tmp_path, changed, threshold, overlaps, system):
    turns = [{"role": "system", "content": system}] if system else []
    turns.append({"role": "user", "content": changed})
    apart = jsonl(tmp_path / "test.jsonl", [{"prompt": "Not asked yet"}, {"messages": turns}])
    keys = {"held_out": str(apart), "near_duplicates": threshold}
    if not overlaps:
        found = read(tmp_path, SEVERAL, **keys)
        assert (texts(found.train), texts(found.held_out)) == (SEVERAL, ["Not asked yet", changed])
        assert found.read == 42
        return
    with pytest.raises(InputError, match=r"^2 prompts of") as caught:
        read(tmp_path, [*SEVERAL, "NOT ASKED YET"], **keys)
    assert f"first {tmp_path}/prompts.jsonl:4 and {apart}:2." in str(caught.value)


def test_each_split_needs_a_prompt(tmp_path):
    with pytest.raises(InputError, match=r"held_out = 0.001 keeps none of 40 .*raise"):
        read(tmp_path, SEVERAL, held_out=0.001)
    with pytest.raises(InputError, match=r"held_out = 0.999 leaves none of 40 .*lower"):
        read(tmp_path, SEVERAL, held_out=0.999)


# --- what is written -----------------------------------------------------------------------------


def test_prompts_are_loaded_as_they_were_written(tmp_path):
    found = read(tmp_path, [*SEVERAL, "ünï\u2028cödé\n\ttab"], system="Be kind.")
    path = tmp_path / "run" / "prompts.jsonl"
    write_prompts(path, found.prompts)
    assert load_prompts(path) == found.prompts
    assert len(path.read_bytes().split(b"\n")) == 42


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    found = read(tmp_path, SEVERAL)
    path = tmp_path / "out.jsonl"
    write_prompts(path, found.prompts)

    def broken():
        yield found.prompts[0]
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_prompts(path, broken())
    assert load_prompts(path) == found.prompts
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.jsonl", "prompts.jsonl"]


def test_a_changed_record_is_named(tmp_path):
    path = tmp_path / "out.jsonl"
    write_prompts(path, read(tmp_path, SEVERAL).prompts)
    lines = path.read_text().splitlines()
    for wrong, says in (
        (lines[1].replace("number 1", "number 2"), "out.jsonl:2: the record was changed"),
        (lines[1].replace('"source"', '"sauce"'), "out.jsonl:2: not a prompt record"),
        ("{}", "out.jsonl:2: not a prompt record"),
        (lines[1][:20], "out.jsonl:2: not valid JSON"),
    ):
        path.write_text("\n".join([lines[0], wrong, *lines[2:]]))
        with pytest.raises(InputError, match=says):
            load_prompts(path)
    with pytest.raises(InputError, match="does not exist"):
        load_prompts(tmp_path / "none.jsonl")

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from test_verify import DATA

from limbeck.collect.contamination import EvalSet, Words, benchmark, held_out, overlap
from limbeck.collect.duplicates import normalise, words
from limbeck.collect.rows import read_jsonl
from limbeck.errors import InputError
from limbeck.records import Message, Prompt, Split

WORDS = [f"{a}{b}" for a in "bdfghklmnprstvz" for b in ("ando", "ilex", "orum", "ebay", "usty")]
LENGTH = 13


def text(random_: random.Random, n: int) -> str:
    return " ".join(random_.choices(WORDS, k=n))


def prompt(content: str, split: Split = "train", row: int = 1) -> Prompt:
    messages = (Message("system", "Be brief."), Message("user", content))
    return Prompt(Prompt.identify(messages), messages, f"data/mine.jsonl:{row}", split)


def file_of(folder: Path, *rows: object, name: str = "exam.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def how(sets: list[EvalSet], asked: str, answered: str = "") -> str:
    found = overlap(prompt(asked), answered, sets)
    return found.why if found else ""


def test_what_shares_thirteen_words_is_found_and_twelve_are_not(tmp_path: Path) -> None:
    drawn = random.Random(0)
    row = text(drawn, 40)
    sets = [benchmark(file_of(tmp_path, {"id": 1}, {"q": row}), LENGTH)]
    lent = words(row)
    thirteen, twelve = " ".join(lent[5:18]), " ".join(lent[5:17])
    said = "overlap: the answer shares 13 words with exam.jsonl:2"
    assert how(sets, "Hm?", f"{text(drawn, 9)} {thirteen} {text(drawn, 9)}") == said
    assert how(sets, f"{text(drawn, 9)} {thirteen}").startswith("overlap: the prompt shares 13")
    assert how(sets, "Hm?", f"{text(drawn, 9)} {twelve} {text(drawn, 9)}") == ""
    shouted = thirteen.upper().replace(" ", ",  \n")
    assert how(sets, "Hm?", shouted) == said


def test_short_texts_are_compared_whole(tmp_path: Path) -> None:
    rows = [{"question": "Who wrote Hamlet?", "options": ["Bacon", "The Earl of Oxford did it"]}]
    sets = [benchmark(file_of(tmp_path, *rows), LENGTH)]
    assert how(sets, "who wrote hamlet") == "overlap: the prompt is exam.jsonl:1"
    assert how(sets, "Who wrote Hamlet, and when?") == ""
    assert how(sets, "Who wrote > Hamlet?") == ""
    assert how(sets, "Who is it?", "Bacon.") == ""  # too short to be no accident
    assert how(sets, "Who is it?", "the earl of oxford did it!") == (
        "overlap: the answer is exam.jsonl:1"
    )


def test_system_messages_and_early_turns_of_a_word_are_no_evidence(tmp_path: Path) -> None:
    sets = [benchmark(file_of(tmp_path, {"q": "Be brief."}, {"a": "yes"}), LENGTH)]
    assert how(sets, "Shall I?") == ""
    turns = [Message("user", "May I?"), Message("assistant", "Yes"), Message("user", "What?")]
    several = Prompt("x", tuple(turns), "p:1", "train")
    assert overlap(several, "", sets) is None


def test_a_template_is_no_sign_of_a_row_but_its_own_words_are() -> None:
    drawn = random.Random(1)
    template = text(drawn, 30)
    bodies = [text(drawn, 20) for _ in range(60)]
    kept_back = [prompt(f"{template} {b}", "held_out", n) for n, b in enumerate(bodies[:40], 1)]
    sets = [held_out(lambda: [*kept_back, prompt(f"{template} {bodies[41]}")], LENGTH)]
    assert not any(how(sets, f"{template} {body}") for body in bodies[40:])
    assert how(sets, f"{template} again", f"It says: {bodies[3]}") == (
        "overlap: the answer shares 13 words with held-out mine.jsonl:4"
    )


def test_a_set_without_text_is_the_user_s_mistake_and_one_without_phrases_is_none(
    tmp_path: Path,
) -> None:
    with pytest.raises(InputError, match="holds no text"):
        benchmark(file_of(tmp_path, {"n": 1}, {"q": " ?! "}), LENGTH)
    with pytest.raises(InputError, match=r"no file .*none\.jsonl"):
        benchmark(str(tmp_path / "none.jsonl"), LENGTH)
    assert how([held_out(lambda: [], LENGTH)], "Who wrote Hamlet?") == ""


def test_a_passage_that_several_rows_repeat_is_read_once(tmp_path: Path) -> None:
    drawn = random.Random(2)
    passage = text(drawn, 50)
    rows = [{"passage": passage, "question": text(drawn, 15)} for _ in range(30)]
    sets = [benchmark(file_of(tmp_path, *rows), LENGTH)]
    assert how(sets, "Hm?", passage[20:]) != ""


def test_planted_rows_of_gsm8k_are_found_and_its_train_rows_are_not() -> None:
    tests, train = DATA / "gsm8k-test.jsonl", DATA / "gsm8k-train.jsonl"
    if not tests.exists() or not train.exists():
        pytest.skip("needs gsm8k-test.jsonl and gsm8k-train.jsonl")
    sets = [benchmark(str(tests), LENGTH)]
    drawn, found, rows = random.Random(3), 0, [row for _, row in read_jsonl(tests)]
    planted = [row for row in rows if len(words(normalise(row["question"]))) >= 20][:400]
    for row in planted:
        lent = words(normalise(row["question"]))
        start = drawn.randrange(len(lent) - 16)
        found += bool(how(sets, "Hm?", f"Look: {' '.join(lent[start : start + 17])}, so"))
    assert found >= 0.99 * len(planted)  # a phrase that more than ten rows share is none
    assert all(
        how(sets, row["question"]) == f"overlap: the prompt is gsm8k-test.jsonl:{n}"
        for n, row in enumerate(rows[:50], 1)
    )
    own = [row for _, row in read_jsonl(train)][:500]
    assert sum(bool(how(sets, row["question"], row["answer"])) for row in own) <= 0.01 * len(own)


def test_memory_grows_with_the_tests_alone(tmp_path: Path) -> None:
    drawn = random.Random(4)
    texts = [("big", n, text(drawn, 100)) for n in range(1000)]
    sets = EvalSet("big", lambda: iter(texts), LENGTH)
    assert sets.phrases == 1000 * (100 - LENGTH + 1)
    assert sets._pairs.nbytes == 12 * sets.phrases  # pyright: ignore[reportPrivateUsage]
    for _, n, one in texts[::100]:
        assert sets.find(Words.of(one)) == f"is big:{n}"

"""Prompts as integers: what stays equal, what is found, and the same on every machine."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from limbeck.guard import lexicon
from limbeck.guard.schema import CAPABILITIES, SKETCH
from limbeck.guard.sketch import masked, sketch
from limbeck.guard.words import LONGEST, hash_each, mix, split

WORDS = "apple river stone cloud music engine garden silver window planet doctor letter".split()  # noqa: SIM905


def rows(*prompts: str | None) -> list[dict[str, Any]]:
    return sketch(pa.array(prompts, pa.string())).to_pylist()


def same(column: str, *prompts: str) -> bool:
    return len({row[column] for row in rows(*prompts)}) == 1


def bands(row: dict[str, Any]) -> list[int]:
    return [row[f"band_{number}"] for number in range(8)]


@pytest.mark.parametrize(
    "fillings",
    [
        ("Solve step by step: how many apples has Tom?", "Solve step by step: what is 3 + 9?"),
        ("Explain the idea of entropy to a boy.", "Explain the idea of love to a boy."),
        ("Solve this problem. Show all steps.\nTom.", "Solve this problem. Show all steps.\nHi"),
        ("The sky is red.\n\nThink step by step", "Cats sleep.\n\nThink step by step"),
        ("Rate this answer on a scale of 1 to 9:\nfo", "Rate this answer on a scale of 1 to 5:\n"),
        ("请逐步解答下面的问题：小明有三个苹果", "请逐步解答下面的问题：树上有五只鸟"),
        ("Traduce el siguiente texto: me gusta", "Traduce el siguiente texto: la casa"),
        ('Translate this sentence to French: "Hi"', 'Translate this sentence to French: "No, I"'),
    ],
)  # fmt: skip
def test_two_fillings_of_a_template_have_one_skeleton(fillings: tuple[str, str]):
    assert same("skeleton", *fillings)
    assert not same("exact", *fillings)
    texts = masked(pa.array(fillings))
    assert texts[0] == texts[1]


def test_two_templates_have_two_skeletons():
    rest = "a train leaves at nine and goes west"
    heads = ["Solve step by step: ", "Rate this answer from 1 to 10: ", "Translate the text: "]
    assert len({row["skeleton"] for row in rows(*(head + rest for head in heads))}) == 3


def test_case_space_and_punctuation_do_not_make_another_prompt():
    assert same(
        "exact",
        "What is  the Capital of Peru?",
        "what is the capital of peru",
        "WHAT is the\tcapital, of Peru!",
    )
    assert same("exact", "ÜBER Straße", "über straße")
    assert same("exact", "ｆｕｌｌ　ｗｉｄｔｈ", "full width")
    assert same("exact", "zero​ wi‍dth", "zero width")
    assert not same("exact", "what is 2 + 3", "what is 2 * 3")
    assert not same("exact", "a b", "b a") and not same("exact", "ab c", "a bc")


def test_neighbours_in_the_buffer_do_not_leak():
    rng = random.Random(1)
    alphabet = 'aZ9 .:\n"+é中…{;'
    prompts = ["".join(rng.choices(alphabet, k=rng.randrange(0, 60))) for _ in range(400)]
    together = sketch(pa.array(prompts))
    for place in range(0, 400, 37):
        alone = sketch(pa.array([prompts[place]]))
        assert together.slice(place, 1).to_pylist() == alone.to_pylist()
    backwards = sketch(pa.array(prompts[::-1]))
    assert backwards.to_pylist()[::-1] == together.to_pylist()


def test_bands_are_shared_as_often_as_minhash_says():
    rng = np.random.default_rng(7)
    words = [f"w{number}" for number in range(4000)]
    prompts: list[str] = []
    due = 0.0
    for _ in range(300):
        drawn = [words[i] for i in rng.permutation(4000)[:60]]
        other = [*drawn[:41], *(words[i] for i in rng.integers(0, 4000, 19))]
        a = {tuple(drawn[i : i + 3]) for i in range(58)}
        b = {tuple(other[i : i + 3]) for i in range(58)}
        due += 8 * (len(a & b) / len(a | b)) ** 2
        prompts += [" ".join(drawn), " ".join(other)]
    told = [bands(row) for row in rows(*prompts)]
    shared = sum(
        x == y
        for one, two in zip(told[::2], told[1::2], strict=True)
        for x, y in zip(one, two, strict=True)
    )
    assert shared == pytest.approx(due, rel=0.15)


@pytest.mark.parametrize(
    ("column", "prompt"),
    [
        ("reasoning", "Think step by step and show your reasoning"),
        ("reasoning", "Réponds étape par étape"),
        ("reasoning", "请一步一步推理"),
        ("reasoning", "Реши шаг за шагом"),
        ("rubric", "You are a grader. Rate the answer on a scale of 1 to 10 by this rubric"),
        ("rubric", "请根据评分标准打分"),
        ("trace", "The correct answer is 42. How did you arrive there? Give your thinking process"),
        ("trace", "已知答案，请写出内部推理"),
    ],
)  # fmt: skip
def test_what_is_elicited(column: str, prompt: str):
    asked, plain = rows(prompt, "What should I cook for dinner with two eggs and some rice?")
    assert asked[column] >= 20 > plain[column]


def test_phrases_are_not_found_across_prompts():
    assert [row["reasoning"] for row in rows("step by", "step")] == [10, 10]


@pytest.mark.parametrize(
    ("capability", "prompt"),
    [
        ("code", "Fix this bug:\n```python\ndef f(x): return {x: 1};\n```"),
        ("maths", "Prove that the sum of two odd integers is even"),
        ("translation", "Übersetze den Text ins Englische: Guten Tag"),
        ("summary", "Give a summary of the key points of this article"),
        ("extraction", "Extract all named entities as JSON fields"),
        ("roleplay", "Pretend you are a pirate and stay in character"),
        ("tools", "Use the browser tool, then make a tool call with these arguments"),
        ("chat", "Hi, thanks for yesterday"),
        ("other", "colourless green ideas sleep furiously"),
    ],
)
def test_capabilities(capability: str, prompt: str):
    assert CAPABILITIES[rows(prompt)[0]["capability"]] == capability


def test_a_narrow_account_shares_topics_and_a_broad_one_does_not():
    rng = random.Random(3)
    narrow = [" ".join(rng.sample([w + "ing" for w in WORDS], 6)) for _ in range(60)]
    broad = [" ".join(f"word{rng.randrange(10**6)}x" for _ in range(6)) for _ in range(60)]
    assert len({row["topic"] for row in rows(*narrow)}) < 12
    assert len({row["topic"] for row in rows(*broad)}) > 50


def test_null_empty_and_numbers_only():
    null, empty, number = rows(None, "", "42 17")
    assert set(null.values()) == {None}
    assert empty["chars"] == 0 and empty["exact"] is not None
    assert empty["skeleton"] is None and empty["band_0"] is None and empty["topic"] is None
    assert number["band_0"] is not None and number["exact"] != rows("42 18")[0]["exact"]
    assert sketch(pa.array([], pa.string())).schema == SKETCH
    assert sketch(pa.array([None, None], pa.string()))["exact"].null_count == 2


def test_a_long_prompt_is_read_in_part_and_counted_whole():
    head = "Solve step by step: " + "word " * (LONGEST // 5)
    one, two = rows(head + "x" * 10_000_000, head + "y" * 20)
    assert one["exact"] == two["exact"] and one["chars"] == len(head) + 10_000_000
    wide = rows("ﷺ" * LONGEST, "中" * LONGEST)  # the first becomes 18 letters a sign
    assert [row["chars"] for row in wide] == [LONGEST, LONGEST]


def test_bytes_that_are_no_utf8():
    bad = pa.array([b"caf\xe9 \xff\xfe au lait", "café".encode(), None], pa.binary())
    told = sketch(bad).to_pylist()
    assert told[0]["chars"] == 15 and told[2]["exact"] is None
    assert told[1] == rows("café")[0]


def test_every_arrow_form_of_text_gives_the_same():
    prompts = ["Explain the sea", None, "Hi ho", "Explain the sea"]
    plain = sketch(pa.array(prompts))
    assert sketch(pa.array(prompts, pa.large_string())).equals(plain)
    assert sketch(pa.array(prompts).dictionary_encode()).equals(plain)
    assert sketch(pa.chunked_array([prompts[:1], prompts[1:]])).equals(plain)
    assert sketch(pa.array(["left out", *prompts])[1:]).equals(plain)


def plain_mix(value: int) -> int:
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        value = (value ^ value >> 33) * factor % 2**64
    return value ^ value >> 33


def test_hashes_are_those_of_every_machine():
    values = [0, 1, 2**63, 0x0123456789ABCDEF]
    assert mix(np.array(values, np.uint64)).tolist() == [plain_mix(value) for value in values]
    told = rows("Solve step by step: what is 3 + 9?")[0]
    assert told == GOLDEN


def test_hashes_of_ids_differ_in_every_byte():
    ids = [
        "",
        "a",
        "b",
        "ab",
        "ba",
        "a\0",
        "x" * 100,
        "x" * 99 + "y",
        "y" + "x" * 99,
        *map(str, range(5000)),
    ]
    data = "".join(ids).encode()
    bounds = np.cumsum([0, *(len(one) for one in ids)])
    assert len(set(hash_each(np.frombuffer(data, np.uint8), bounds).tolist())) == len(ids)


def test_words_are_those_of_a_plain_reading():
    texts = ["It's 3.5 km, e.g. über-lang!", "a+b=c", "我用python写", ""]
    data = "".join(texts).encode()
    bounds = np.cumsum([0, *(len(text.encode()) for text in texts)])
    words = split(np.frombuffer(data, np.uint8), bounds)
    read = [bytes(words.text[a:b]).decode() for a, b in zip(words.start, words.end, strict=True)]
    assert read == [
        "it",
        "s",
        "3",
        "5",
        "km",
        "e",
        "g",
        "über",
        "lang",
        "a",
        "+",
        "b",
        "=",
        "c",
        "我",
        "用",
        "python",
        "写",
    ]
    assert words.counts.tolist() == [9, 5, 4] and words.rows.tolist() == [0, 1, 2]


def test_the_lexicon_weighs_each_phrase_once():
    for text in (lexicon.REASONING, lexicon.RUBRIC, lexicon.TRACE, *lexicon.CAPABLE.values()):
        found = [phrase for _, phrase in lexicon.phrases(text)]
        assert len(found) == len(set(found))
    assert set(lexicon.CAPABLE) == set(CAPABILITIES[1:])


GOLDEN: dict[str, Any] = {
    "exact": 8825683949901703706,
    "skeleton": 6880705990666017243,
    "band_0": -4676226535778136420,
    "band_1": -9183709026612299250,
    "band_2": -2554488437874881282,
    "band_3": -2352581163729470077,
    "band_4": 4671283539201073560,
    "band_5": 6046219767576797923,
    "band_6": 3992156043581392882,
    "band_7": 8368757242258045418,
    "reasoning": 50,
    "rubric": 0,
    "trace": 0,
    "capability": 2,
    "topic": 2147483647,
    "chars": 34,
}

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_store import answer
from test_verify import DATA

from limbeck.collect.checks import Checks, final_answer, number
from limbeck.collect.rows import read_jsonl
from limbeck.errors import InputError
from limbeck.recipe import parse_recipe
from limbeck.records import Message, Prompt
from limbeck.sections import ChecksSection


def asked(reference: str = "") -> Prompt:
    messages = (Message("user", "What is 2 + 2?"),)
    prompt = Prompt(Prompt.identify(messages), messages, "p.jsonl:7", "train")
    return replace(prompt, reference=reference)


def why(text: str, reference: str = "", **told: Any) -> str:
    prompt = asked(reference)
    return Checks(ChecksSection(**told)).why_not(prompt, answer(prompt.id, text))


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("It is 1,234.50 dollars", "1234.5"),
        ("−3", "-3"),
        ("-$5", "-5"),
        ("7-5", "5"),
        ("a half is 1/2", "0.5"),
        (".5", "0.5"),
        ("1e3", "1000"),
        ("50 %", "50"),
        ("from 3 to 18.", "18"),
        ("12,34", "34"),
    ],
)
def test_the_last_number_is_read_as_people_write_it(text: str, wanted: str) -> None:
    assert number(text, first=False) == Decimal(wanted)


@pytest.mark.parametrize("text", ["none", "", "1/0", "-", "e5"])
def test_there_may_be_no_number(text: str) -> None:
    assert number(text, first=False) is None or text == "e5"


@given(st.integers(-(10**12), 10**12), st.integers(0, 4))
def test_a_number_is_itself_however_it_is_written(whole: int, places: int) -> None:
    written = Decimal(whole).scaleb(-places)
    for text in (f"{written:f}", f"{written:,f}", f"about {written:f} in all"):
        assert number(text, first=True) == written


def test_gsm8k_s_own_answers_are_right_and_those_to_the_next_question_mostly_wrong() -> None:
    path = DATA / "gsm8k-test.jsonl"
    if not path.exists():
        pytest.skip(f"needs {path.name}")
    rows = [row for _, row in read_jsonl(path)]
    told = {"equals": "number", "after": "####"}
    assert [why(r["answer"], r["answer"], **told) for r in rows] == [""] * len(rows)
    assert not any(why(r["answer"], r["answer"].partition("####")[2], **told) for r in rows)
    others = [why(a["answer"], b["answer"], **told) for a, b in pairwise(rows)]
    same = [len({_last(a), _last(b)}) == 1 for a, b in pairwise(rows)]
    assert [not w for w in others] == same and sum(same) < 0.05 * len(rows)


def _last(row: dict[str, str]) -> str:
    return row["answer"].rpartition("####")[2].strip().replace(",", "")


def test_what_follows_the_last_marker_on_its_line_is_the_final_answer() -> None:
    assert final_answer("#### 3\nno: #### 4 eggs\nbye", "####") == "4 eggs"
    assert final_answer("####\n 4", "####") == "4"
    assert final_answer("four", "####") is None
    assert final_answer(" four ", None) == "four"


def test_equality_says_what_was_found_and_wanted() -> None:
    assert why("The answer is Paris.", "The answer is  PARIS", equals="text") == ""
    assert why("**Paris**", "paris", equals="text") == ""
    assert why("Rome", "Paris", equals="text") == "equals: rome, not paris"
    assert why("It is 5", "4", equals="number") == "equals: 5, not 4"
    assert why("It is five", "4", equals="number") == "equals: nothing, not 4"
    assert why("4", "#### 4", equals="number", after="####") == "equals: no '####' in the answer"
    assert why("1e999", "4", equals="number").startswith("equals: 1E+999")


def test_a_reference_without_a_number_is_the_user_s_mistake() -> None:
    with pytest.raises(InputError, match=r"p\.jsonl:7: its reference 'four' holds no number"):
        why("4", "four", equals="number")


def test_a_pattern_must_be_found() -> None:
    assert why("Answer: 4", pattern=r"^Answer: \d$") == ""
    assert why("4", pattern=r"^Answer") == "pattern: not found"


def test_json_must_fit_its_schema_and_nothing_is_fetched_for_it(tmp_path: Path) -> None:
    file = tmp_path / "reply.json"
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {"age": {"type": "integer"}},
        "required": ["age"],
    }
    file.write_text(json.dumps(schema))
    told = {"json_schema": str(file)}
    assert why('{"age": 4}', **told) == ""
    assert why('{"age": "x"}', **told) == "json_schema: 'x' is not of type 'integer' at $.age"
    assert why("{}", **told) == "json_schema: 'age' is a required property at $"
    assert why("[" * 100_000, **told).startswith("json_schema: ")
    assert why("```json\n{}\n```", **told).startswith("json_schema: not JSON (it stands in a code")
    assert why('{"age": NaN}', **told) == "json_schema: not JSON: NaN is no JSON"
    for bad in ("{", '{"type": "thing"}', "[]"):
        file.write_text(bad)
        with pytest.raises(InputError, match=r"reply\.json is no JSON schema"):
            Checks(ChecksSection(json_schema=str(file))).ready()
    file.write_text('{"$ref": "http://127.0.0.1:9/x.json"}')
    with pytest.raises(InputError, match="not followed"):
        why("{}", **told)


def function(folder: Path, body: str) -> dict[str, str]:
    file = folder / "mine.py"
    file.write_text(f"import math\n\ndef right(prompt, answer):\n    {body}\n")
    return {"function": f"{file}:right"}


@pytest.mark.parametrize(
    "body, wanted",
    [
        ("return True", ""),
        ("return 'four' in answer.text", ""),
        ("return prompt.reference == 'x'", "function: no"),
        ("return 'too short' if len(answer.text) < 99 else ''", "function: too short"),
        ("return -3.5", ""),
        ("import numpy\n    return numpy.bool_(False)", "function: no"),
    ],
)
def test_a_function_of_one_s_own_says_yes_no_why_or_how_good(
    tmp_path: Path, body: str, wanted: str
) -> None:
    assert why("It is four.", **function(tmp_path, body)) == wanted


@pytest.mark.parametrize(
    "body, named",
    [
        ("return None", "said None of the answer to p.jsonl:7"),
        ("return math.nan", "said nan"),
        ("return answer['text']", "in line 4: TypeError"),
    ],
)
def test_a_function_that_fails_is_named_with_the_row(tmp_path: Path, body: str, named: str) -> None:
    with pytest.raises(InputError, match=named):
        why("It is four.", **function(tmp_path, body))


@pytest.mark.parametrize(
    "named, complaint",
    [
        ("mine.py:right", "cannot be loaded: FileNotFoundError"),
        ("no_such_module:right", "cannot be loaded: ModuleNotFoundError"),
        ("json:no_such_function", "json has no function no_such_function"),
        ("os:getcwd", "must take a prompt and an answer"),
    ],
)
def test_a_function_that_is_not_there_is_the_user_s_mistake(named: str, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        Checks(ChecksSection(function=named)).ready()


def test_the_key_follows_the_files(tmp_path: Path) -> None:
    section = ChecksSection(**function(tmp_path, "return True"))  # pyright: ignore[reportArgumentType]
    before = Checks(section).key
    assert Checks(section).key == before
    function(tmp_path, "return False")
    assert Checks(section).key != before
    assert Checks(ChecksSection(function="json:dumps")).key != Checks(ChecksSection()).key


@pytest.mark.parametrize(
    "told, named",
    [
        ({"checks": {"pattern": "("}}, "checks.pattern"),
        ({"checks": {"equals": "number"}}, "prompts.reference"),
        ({"checks": {"judge": 7}}, r"\[judge\]"),
        ({"judge": {"model": "openai:gpt-5"}}, r"\[judge\]"),
        ({"checks": {"overlap": 3}}, "between 5 and 100"),
        ({"checks": {"benchmarks": ["x"], "overlap": 0}}, "above 0"),
        ({"checks": {"patern": "x"}}, "did you mean 'pattern'"),
        ({"checks": {"function": "right"}}, "checks.function"),
        ({"checks": {"after": "####"}}, "for equals or majority"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(told: dict[str, Any], named: str) -> None:
    recipe: dict[str, Any] = {
        "name": "x",
        "teacher": {"model": "x"},
        "prompts": {"source": "x"},
        "student": {"layers": 1},
        "train": {"steps": 1},
    }
    assert parse_recipe(recipe).judge is None
    with pytest.raises(InputError, match=named):
        parse_recipe(recipe | told)

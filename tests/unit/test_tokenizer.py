from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from limbeck.errors import InputError
from limbeck.models.tokenizer import ChatTokenizer, load_tokenizer, tokenizer_hash
from limbeck.records import Answer, Message, Prompt, Sampling, Usage
from tiny import TEMPLATE, make_tokenizer, sums

TEXT = "What is seven plus five?  It’s twelve — or “12”.<|im_end|> \n\nNaïve ABC"


def rewritten(folder: Path, change: Callable[[dict[str, Any]], object]) -> Any:
    """The tiny tokenizer after `change` to its tokenizer.json."""
    make_tokenizer().save_pretrained(folder)
    file = folder / "tokenizer.json"
    table = json.loads(file.read_text())
    change(table)
    file.write_text(json.dumps(table))
    return load_tokenizer(folder)


def drop_merge(table: dict[str, Any]) -> None:
    table["model"]["merges"].pop(40)


def reverse_merges(table: dict[str, Any]) -> None:
    table["model"]["merges"].reverse()


def swap_tokens(table: dict[str, Any]) -> None:
    vocabulary = table["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]


def lower(table: dict[str, Any]) -> None:
    table["normalizer"] = {"type": "Lowercase"}


def add_space(table: dict[str, Any]) -> None:
    table["pre_tokenizer"]["add_prefix_space"] = True


def swallow_spaces(table: dict[str, Any]) -> None:
    for token in table["added_tokens"]:
        token["rstrip"] = True


@pytest.mark.parametrize(
    "change", [drop_merge, reverse_merges, swap_tokens, lower, add_space, swallow_spaces]
)
def test_the_hash_tells_tokenizers_that_cut_text_otherwise(
    tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    plain, other = make_tokenizer(), rewritten(tmp_path, change)
    texts = [TEXT, *(text for pair in sums() for text in pair)]
    cut = [one(texts, add_special_tokens=False)["input_ids"] for one in (plain, other)]
    assert cut[0] != cut[1], "the change must matter"
    assert len(plain) == len(other), "vocabulary size alone would not tell"
    assert tokenizer_hash(plain) != tokenizer_hash(other)


def test_the_hash_tells_whether_merges_bind(tmp_path: Path) -> None:
    def few(table: dict[str, Any]) -> None:
        del table["model"]["merges"][5:]

    def few_and_not_binding(table: dict[str, Any]) -> None:
        few(table)
        table["model"]["ignore_merges"] = True

    bound = rewritten(tmp_path / "a", few)
    free = rewritten(tmp_path / "b", few_and_not_binding)
    assert bound(" plus")["input_ids"] != free(" plus")["input_ids"]
    assert tokenizer_hash(bound) != tokenizer_hash(free)


def test_the_hash_is_the_same_wherever_the_tokenizer_lies(tmp_path: Path) -> None:
    def template(table: dict[str, Any]) -> None:
        table["post_processor"] = None

    made = make_tokenizer()
    assert tokenizer_hash(rewritten(tmp_path / "a", template)) == tokenizer_hash(made)
    made.chat_template = "{{ messages }}"
    assert tokenizer_hash(made) == tokenizer_hash(make_tokenizer())


def saved(folder: Path, template: str | None = TEMPLATE) -> Path:
    made = make_tokenizer()
    made.chat_template = template
    made.save_pretrained(folder)
    return folder


def test_a_prompt_is_cut_as_transformers_own_chat_template_cuts_it(tmp_path: Path) -> None:
    tokenizer = ChatTokenizer(saved(tmp_path))
    turns = [("system", "Answer briefly."), ("user", "Hi!"), ("assistant", "Yes?"), ("user", TEXT)]
    messages = tuple(Message(*turn) for turn in turns)
    prompt = Prompt(Prompt.identify(messages), messages, "p:1", "train")
    theirs = tokenizer.inner.apply_chat_template(
        [{"role": role, "content": content} for role, content in turns],
        add_generation_prompt=True,
        return_dict=True,
    )["input_ids"]
    assert tokenizer.prompt_ids(prompt) == theirs
    assert tokenizer.inner.decode(theirs).endswith("<|im_start|>assistant\n")


def test_text_leaves_out_special_tokens(tmp_path: Path) -> None:
    tokenizer = ChatTokenizer(saved(tmp_path))
    ids = tokenizer.inner(" It is — naïve.\n<|im_end|>", add_special_tokens=False)["input_ids"]
    assert tokenizer.text(ids) == "It is — naïve."


def test_the_template_has_a_hash_of_its_own(tmp_path: Path) -> None:
    one, other = ChatTokenizer(saved(tmp_path / "a")), ChatTokenizer(saved(tmp_path / "b"))
    third = ChatTokenizer(saved(tmp_path / "c", TEMPLATE.replace("<|im_end|>", "<|im_end|>\n")))
    assert one.template_hash == other.template_hash != third.template_hash
    assert one.hash == third.hash


@pytest.mark.parametrize(
    "eos, expected", [(None, (2,)), (2, (2,)), (0, (0, 2)), ([7, 0, 2], (0, 2, 7))]
)
def test_stops_come_from_tokenizer_and_generation_settings(
    tmp_path: Path, eos: int | list[int] | None, expected: tuple[int, ...]
) -> None:
    tokenizer = ChatTokenizer(saved(tmp_path))
    assert tokenizer.stop_ids(SimpleNamespace(eos_token_id=eos)) == expected
    assert tokenizer.stop_ids(None) == (2,)


def test_no_chat_template_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no chat template.*instruction-tuned") as caught:
        ChatTokenizer(saved(tmp_path, None))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, "{", "{}"])
def test_a_tokenizer_that_cannot_be_read_is_one_line(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(InputError, match="its tokenizer cannot be loaded: ") as caught:
        ChatTokenizer(tmp_path)
    assert "\n" not in str(caught.value)


TOOLS = (
    "{% if tools %}{{ '<|im_start|>system\n' }}{% for t in tools %}{{ t | tojson }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endif %}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.reasoning_content %}{{ '<t>' + m.reasoning_content + '</t>' }}{% endif %}"
    "{{ m.content }}{% for c in m.tool_calls or [] %}{{ '<call>' + (c.function | tojson) }}"
    "{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CLOCK = {"name": "clock", "description": "", "parameters": {"type": "object", "properties": {}}}
CALL = {"id": "c", "name": "clock", "arguments": {"town": "Bath"}}


def question(*tools: dict[str, Any]) -> Prompt:
    messages = (Message("user", "What is the time?"),)
    return Prompt(Prompt.identify(messages, tools), messages, "p:1", "train", (), tools)


def said(text: str, reasoning: str = "", *calls: dict[str, Any]) -> Answer:
    usage = Usage(1, 1)
    return Answer(
        *("a", "p", "m", "r", Sampling(), text, reasoning, calls, (), "stop", usage, "kept")
    )


def test_tools_and_calls_are_written_where_the_template_has_a_place(tmp_path: Path) -> None:
    tokenizer = ChatTokenizer(saved(tmp_path, TOOLS))
    show = tokenizer.inner.decode
    assert '"name": "clock"' in show(tokenizer.prompt_ids(question(CLOCK)))
    written = show(tokenizer.template_ids(question(CLOCK), said("", "", CALL)))
    assert written == '<call>{"name": "clock", "arguments": {"town": "Bath"}}<|im_end|>'
    plain = ChatTokenizer(saved(tmp_path / "plain"))
    with pytest.raises(InputError, match=r"p:1: the chat template knows no tools"):
        plain.prompt_ids(question(CLOCK))
    with pytest.raises(InputError, match=r"p:1: the chat template leaves out 'clock'"):
        plain.template_ids(question(), said("", "", CALL))


@pytest.mark.parametrize(
    ("template", "written"),
    [(TOOLS, "<t>Hm.</t>Noon."), (TEMPLATE, "<think>\nHm.\n</think>\n\nNoon.")],
)
def test_reasoning_is_learnt_by_choice(tmp_path: Path, template: str, written: str) -> None:
    tokenizer = ChatTokenizer(saved(tmp_path, template))
    show = tokenizer.inner.decode
    answer = said("Noon.", "Hm.")
    assert show(tokenizer.template_ids(question(), answer)) == "Noon.<|im_end|>"
    ids = tokenizer.template_ids(question(), answer, reasoning=True)
    assert show(ids) == f"{written}<|im_end|>"


def test_a_template_that_refuses_a_turn_is_one_line(tmp_path: Path) -> None:
    tokenizer = ChatTokenizer(saved(tmp_path, "{{ raise_exception('no tools here') }}"))
    with pytest.raises(InputError, match=r"p:1: the chat template does not take.*no tools here"):
        tokenizer.prompt_ids(question())

"""What is asked: prompts out of a file or the hub, without duplicates, split once and for good."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from limbeck.collect.duplicates import earlier_twins, normalise, shingles
from limbeck.collect.rows import kind, read_jsonl, read_rows
from limbeck.collect.tools import Tools, answered, read_calls, read_file, read_schema, read_tools
from limbeck.errors import InputError
from limbeck.files import sha256_file, whole_file
from limbeck.recipe import PromptsSection
from limbeck.records import Message, Prompt, Split, identity

_ROLES = ("system", "user", "assistant", "tool")
_TABLES = ("tools", "schema", "response_format")

_Tables: TypeAlias = tuple[Tools, Mapping[str, Any] | None]


@dataclass(frozen=True, slots=True)
class PromptSet:
    """The prompts that stay, in the order of their rows, and what became of the others.

    `read` rows are `len(prompts)` + `exact_duplicates` + `near_duplicates`.
    """

    prompts: tuple[Prompt, ...]
    read: int
    exact_duplicates: int
    near_duplicates: int

    @property
    def train(self) -> tuple[Prompt, ...]:
        """The prompts that the student learns from."""
        return tuple(prompt for prompt in self.prompts if prompt.split == "train")

    @property
    def held_out(self) -> tuple[Prompt, ...]:
        """The prompts kept back to test it."""
        return tuple(prompt for prompt in self.prompts if prompt.split == "held_out")


@dataclass(frozen=True, slots=True)
class _Found:
    """A prompt with its normal form: system message, tools and schema apart from the turns."""

    prompt: Prompt
    system: str
    turns: tuple[tuple[str, str], ...]

    @property
    def held_out(self) -> bool:
        return self.prompt.split == "held_out"


def read_prompts(section: PromptsSection) -> PromptSet:
    """Read, clean and split what the recipe's [prompts] names.

    A row holds its prompt in the field `prompt`, else `messages`, else the one that the recipe
    names: text, or a list of {role, content} whose closing assistant turns are dropped. Tags come
    from the field `tags` (texts) or `task` (one text), what the teacher may call from `tools`, and
    the JSON schema of its answer from `schema` or `response_format`.

    Of prompts that are the same once normalised, system message included, the first stays, and
    of near-duplicates under one system message (`duplicates.shingles`) likewise. The hash of its
    normalised turns, system message apart, decides whether a prompt is held out, so it keeps its
    place when rows or a system message are added, and a larger share only adds to those held out.
    Across the splits system messages do not count: a train prompt goes where it comes near a
    held-out one. If held-out prompts have a file of their own, that is an error instead. `limit`
    counts rows of `source` only.

    Raises InputError naming `file:row` and what to do.
    """
    apart = section.held_out if isinstance(section.held_out, str) else None
    found = _find(section.source, section, section.limit, None if apart is None else "train")
    if apart is not None:
        found += _find(apart, section, None, "held_out")
    order = sorted(range(len(found)), key=lambda n: not found[n].held_out)
    exact = _exact_twins(found, order)
    near = _near_twins(found, [n for n in order if n not in exact], section.near_duplicates)
    if apart is not None:
        _refuse_overlap(found, exact | near, section.source, apart)
    stay = [one.prompt for n, one in enumerate(found) if n not in exact and n not in near]
    prompts = PromptSet(tuple(stay), len(found), len(exact), len(near))
    _refuse_empty_split(prompts, section)
    return prompts


def content(section: PromptsSection) -> list[str]:
    """The hashes of the files that prompts come from; a hub data set stands for itself."""
    named = [section.source, str(section.held_out), section.tools or "", section.schema_ or ""]
    named = [Path(name) for name in named]
    return [sha256_file(path) for path in named if path.is_file()]


def write_prompts(path: Path, prompts: Iterable[Prompt]) -> None:
    """Write prompts as JSONL, one record a line; the file appears whole or not at all."""
    with whole_file(path) as part, part.open("w", encoding="utf-8", newline="\n") as file:
        for prompt in prompts:
            row = {key: value for key, value in asdict(prompt).items() if value or key == "tags"}
            turns = [{k: v for k, v in m.items() if v or k == "content"} for m in row["messages"]]
            file.write(json.dumps(row | {"messages": turns}, ensure_ascii=False) + "\n")


def load_prompts(path: Path) -> tuple[Prompt, ...]:
    """Read what `write_prompts` wrote; InputError names the line that is not as it was written."""
    return tuple(iterate_prompts(path))


def iterate_prompts(path: Path) -> Iterator[Prompt]:
    """The same, one after another, for sets that do not fit in memory."""
    if not path.is_file():
        raise InputError(f"{path} does not exist.")
    for place, row in read_jsonl(path):
        try:
            messages = tuple(
                Message(**(turn | {"tool_calls": tuple(turn.get("tool_calls", ()))}))
                for turn in row["messages"]
            )
            told: dict[str, Any] = row | {"messages": messages}
            told |= {name: tuple(row.get(name, ())) for name in ("tags", "tools")}
            prompt = Prompt(**told)
        except (AttributeError, KeyError, TypeError):
            raise InputError(f"{place}: not a prompt record.") from None
        id_ = Prompt.identify(messages, prompt.tools, prompt.schema)
        if prompt.id != id_ or prompt.split not in ("train", "held_out"):
            raise InputError(f"{place}: the record was changed after it was written.")
        yield prompt


def _find(
    source: str, section: PromptsSection, limit: int | None, split: Split | None
) -> list[_Found]:
    """The prompts of one source, all of one `split` or each of its own."""
    fields = (section.field,) if section.field else ("prompt", "messages")
    others = ("tags", "task", *_TABLES, *([section.reference] if section.reference else []))
    rows = islice(read_rows(source, fields, others), limit)
    usual = _tables_of_recipe(section)
    found = [_prompt_of(place, row, fields, section, split, usual) for place, row in rows]
    if not found:
        raise InputError(f"{source} holds no prompts.")
    return found


def _prompt_of(
    place: str,
    row: Mapping[str, Any],
    fields: tuple[str, ...],
    section: PromptsSection,
    split: Split | None,
    usual: _Tables,
) -> _Found:
    field = next((field for field in fields if field in row), None)
    if field is None:
        here = ", ".join(repr(name) for name in list(row)[:12]) or "none"
        raise InputError(
            f"{place}: no field {' or '.join(map(repr, fields))}; its fields are {here}. "
            "Set prompts.field to the one with the prompt."
        )
    messages = _messages(f"{place}: {field!r}", row[field])
    if section.system and messages[0].role != "system":
        messages = (Message("system", section.system), *messages)
    tools, schema = _tables(place, row, usual)
    spoken = [(message.role, _spoken(message)) for message in messages]
    system = spoken.pop(0)[1] if spoken[0][0] == "system" else ""
    turns = tuple(spoken)
    split = split or ("held_out" if _draw(turns) < float(section.held_out) else "train")
    prompt = Prompt(
        Prompt.identify(messages, tools, schema), messages, place, split, _tags(place, row),
        tools, schema, _reference(place, row, section.reference),
    )  # fmt: skip
    if tools or schema:
        system += identity(tools, schema)
    return _Found(prompt, system, turns)


def _spoken(message: Message) -> str:
    """A turn's normal form."""
    said = normalise(message.content)
    called = [[call["name"], call["arguments"]] for call in message.tool_calls]
    return f"{said} {json.dumps(called, sort_keys=True)}" if called else said


def _tables_of_recipe(section: PromptsSection) -> _Tables:
    tools, schema = section.tools, section.schema_
    return (
        read_tools("prompts.tools", read_file("prompts.tools", tools)) if tools else (),
        read_schema("prompts.schema", read_file("prompts.schema", schema)) if schema else None,
    )


def _tables(place: str, row: Mapping[str, Any], usual: _Tables) -> _Tables:
    """A row's own tools and schema, else the recipe's."""
    tools, schema = usual
    if row.get("tools") is not None:
        tools = read_tools(f"{place}: 'tools'", row["tools"])
    for field in ("response_format", "schema"):
        if row.get(field) is not None:
            schema = read_schema(f"{place}: {field!r}", row[field])
    return tools, schema


def _messages(where: str, value: Any) -> tuple[Message, ...]:
    """The turns that lead up to the answer; `where` opens an error."""
    if isinstance(value, str):
        return (Message("user", _text(where, value)),)
    if not isinstance(value, list):
        raise InputError(f"{where} must be text or a list of messages, this is {kind(value)}.")
    messages: list[Message] = []
    for number, turn in enumerate(value, 1):
        one = f"{where}, message {number}"
        if not isinstance(turn, dict) or not {"role", "content"} <= turn.keys():
            have = ", ".join(map(repr, turn)) or "nothing" if isinstance(turn, dict) else kind(turn)
            raise InputError(f"{one} must have 'role' and 'content', this has {have}.")
        if turn["role"] not in _ROLES:
            raise InputError(f"{one} has the role {turn['role']!r}; known are {', '.join(_ROLES)}.")
        called = sum(len(message.tool_calls) for message in messages)
        calls = read_calls(one, turn["tool_calls"], called) if turn.get("tool_calls") else ()
        content = "" if calls and turn["content"] is None else turn["content"]
        id_ = turn.get("tool_call_id") or ""
        messages.append(Message(turn["role"], content, calls, id_))
    while messages and messages[-1].role == "assistant":
        messages.pop()
    if not messages or messages[-1].role not in ("user", "tool"):
        raise InputError(f"{where} has no user message for the teacher to answer.")
    for number, message in enumerate(messages, 1):
        if not (message.tool_calls and message.content == ""):
            _text(f"{where}, message {number}", message.content)
    return answered(where, messages)


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InputError(f"{where} must be text, this is {kind(value)}.")
    if not value.strip():
        raise InputError(f"{where} is empty.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f"{where} holds half of a surrogate pair, which is not text.") from None
    return value


def _tags(place: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    field = "tags" if row.get("tags") is not None else "task"
    value = row.get(field)
    match value:
        case None | "":
            return ()
        case str():
            return (_text(f"{place}: {field!r}", value),)
        case list() if field == "tags":
            return tuple(_text(f"{place}: 'tags', item {n}", tag) for n, tag in enumerate(value, 1))
        case _:
            wanted = "a list of texts" if field == "tags" else "text"
            raise InputError(f"{place}: {field!r} must be {wanted}, this is {kind(value)}.")


def _reference(place: str, row: Mapping[str, Any], field: str | None) -> str:
    """The right answer that a row brings: text as it is, anything else as JSON."""
    if field is None:
        return ""
    if row.get(field) is None:
        raise InputError(f"{place}: no field {field!r}, which prompts.reference names.")
    value = row[field]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _draw(turns: tuple[tuple[str, str], ...]) -> float:
    """A number from 0 to 1 that a prompt's turns determine."""
    return int(identity("split", turns), 16) / 16**32


def _exact_twins(found: list[_Found], order: list[int]) -> dict[int, int]:
    """Which prompts are the same as an earlier one in `order`, held-out ones first there."""
    twins: dict[int, int] = {}
    first: dict[tuple[str, tuple[tuple[str, str], ...]], int] = {}
    first_held_out: dict[tuple[tuple[str, str], ...], int] = {}
    for n in order:
        one = found[n]
        twin = first.get((one.system, one.turns))
        if twin is None and not one.held_out:
            twin = first_held_out.get(one.turns)
        if twin is not None:
            twins[n] = twin
            continue
        first[one.system, one.turns] = n
        if one.held_out:
            first_held_out.setdefault(one.turns, n)
    return twins


def _near_twins(found: list[_Found], order: list[int], threshold: float) -> dict[int, int]:
    """Which prompts come near an earlier one in `order` that stays."""
    if threshold >= 1:
        return {}

    def comparable(one: int, other: int) -> bool:
        here, there = found[order[one]], found[order[other]]
        return here.held_out != there.held_out or here.system == there.system

    twins = earlier_twins([shingles(found[n].turns) for n in order], threshold, comparable)
    return {n: order[twin] for n, twin in zip(order, twins, strict=True) if twin is not None}


def _refuse_overlap(found: list[_Found], twins: dict[int, int], source: str, apart: str) -> None:
    across = sorted(n for n, twin in twins.items() if found[n].held_out != found[twin].held_out)
    if across:
        one, other = found[across[0]].prompt, found[twins[across[0]]].prompt
        raise InputError(
            f"{len(across)} prompts of {source} are, or nearly are, held out in {apart}: "
            f"first {one.source} and {other.source}. Take them out of one of the two files."
        )


def _refuse_empty_split(prompts: PromptSet, section: PromptsSection) -> None:
    share, count = section.held_out, len(prompts.prompts)
    if not prompts.held_out:
        raise InputError(
            f"{section.source}: held_out = {share} keeps none of {count} prompts back to test on; "
            "raise prompts.held_out, name a file there, or add prompts."
        )
    if not prompts.train:
        raise InputError(
            f"{section.source}: held_out = {share} leaves none of {count} prompts to train on; "
            "lower prompts.held_out, or add prompts."
        )

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from test_store import answer

from asking import prompts
from limbeck.collect.ask import Asking
from limbeck.collect.checks import Checks
from limbeck.collect.contamination import held_out
from limbeck.collect.judge import Judge, kinship, purse_of_judge
from limbeck.collect.judging import Group, rejudge
from limbeck.collect.store import AnswerStore
from limbeck.errors import InputError
from limbeck.models.protocol import QUIET, Model, OnTokens
from limbeck.recipe import Recipe, parse_recipe
from limbeck.records import Answer, Prompt, Sampling, Usage
from limbeck.sections import ChecksSection

BENCH = Asking("grader", "local", Sampling(16))


class Grader:
    """Scores an answer by the number in it, and remembers what it was asked."""

    name, fingerprint, route = "grader", "grader", "local"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def generate(
        self, prompts: Iterable[Prompt], sampling: Sampling, on_tokens: OnTokens = QUIET
    ) -> Iterator[list[Answer]]:
        for prompt in prompts:
            text = prompt.messages[0].content
            self.asked.append(text)
            found = re.search(r"<answer>\D*(\d+)", text)
            assert found is not None
            said = f"Fine. Score: {found[1]}" if int(found[1]) else "I would rather not judge it."
            one = replace(answer(prompt.id, said), model=self.name, sampling=sampling)
            id_ = Answer.identify(prompt.id, self.fingerprint, self.route, sampling)
            yield [replace(one, id=id_)]


class Bench:
    """A store with a few answers to each prompt, and what judging them comes to."""

    def __init__(self, path: Path, texts: list[list[str]], references: list[str] | None = None):
        made = list(prompts(len(texts)))
        told = references or [""] * len(texts)
        self.prompts = [replace(p, reference=r) for p, r in zip(made, told, strict=True)]
        self.path, self.grader = path, Grader()
        self.ids = [
            [Answer.identify(p.id, "model", "local", Sampling(seed=n)) for n in range(len(some))]
            for p, some in zip(self.prompts, texts, strict=True)
        ]
        with AnswerStore(path) as store:
            for prompt, some, ids in zip(self.prompts, texts, self.ids, strict=True):
                store.add(
                    replace(answer(prompt.id, text), id=i)
                    for text, i in zip(some, ids, strict=True)
                )

    def groups(self, store: AnswerStore) -> Iterator[Group]:
        yield from ((p, store.get(ids)) for p, ids in zip(self.prompts, self.ids, strict=True))

    def judge(self, run: str = "run", judged: bool = False, **told: Any) -> list[list[str]]:
        """What each answer came to, and that the counts are right."""
        checks = Checks(ChecksSection(**told))
        judge = Judge("grader", BENCH, "Good.", lambda _: cast(Model, self.grader))
        with AnswerStore(self.path, judged=run) as store:
            groups = lambda: self.groups(store)  # noqa: E731
            counts = rejudge(groups, checks, store, (), judge if judged else None)
            found = [answers for _, answers in self.groups(store)]
        rejected = [a.why for some in found for a in some if a.outcome == "rejected"]
        whys = [why for why in rejected if not why.startswith("source")]
        assert sum(counts.values()) == len(whys)
        for name, n in counts.items():
            assert n == sum(why.startswith(f"{name}:") for why in whys)
        return [[answer.why or answer.outcome for answer in some] for some in found]


def test_a_changed_check_judges_anew_and_what_passed_before_comes_back(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "a.sqlite", [["4"], ["5"], ["six"]], ["4", "4", "6"])
    wrong = "equals: 5, not 4"
    assert bench.judge(equals="number") == [["kept"], [wrong], ["equals: nothing, not 6"]]
    assert bench.judge(pattern=r"\d") == [["kept"], ["kept"], ["pattern: not found"]]
    assert bench.judge() == [["kept"], ["kept"], ["kept"]]


def test_runs_that_share_a_store_do_not_see_each_other_s_rejects(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "a.sqlite", [["4"], ["5"]], ["4", "4"])
    bench.judge("one", equals="number")
    bench.judge("two", pattern="5")
    for run, wanted in (("one", ["kept", "rejected"]), ("two", ["rejected", "kept"])):
        with AnswerStore(bench.path, read_only=True, judged=run) as store:
            assert [a.outcome for _, some in bench.groups(store) for a in some] == wanted
    with AnswerStore(bench.path) as store:
        assert {a.outcome for _, some in bench.groups(store) for a in some} == {"kept"}
        told = [id_.partition("/")[0] for id_ in store.digests()]
        assert told.count("judged") == 2


def test_only_kept_answers_are_judged(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "a.sqlite", [["4"], ["5"]])
    with AnswerStore(bench.path) as store:
        store.reject(bench.ids[1], "source dropped: x")
    assert bench.judge(pattern="nine") == [["pattern: not found"], ["source dropped: x"]]


def test_a_majority_then_the_best_of_it(tmp_path: Path) -> None:
    texts = [["a 4", "b 4", "5", "c 4"], ["4", "5"]]
    bench = Bench(tmp_path / "a.sqlite", texts, ["4", "4"])
    out, over = "majority: 3 of 4 agree, on another answer", "best: 2 of 3 are kept"
    split = "majority: 1 of 2 agree"
    told = {"equals": "number", "majority": True, "best": 2}
    assert bench.judge(**told) == [["kept", "kept", "equals: 5, not 4", over],
                                   [split, "equals: 5, not 4"]]  # fmt: skip
    bench = Bench(tmp_path / "b.sqlite", texts)
    assert bench.judge(majority=True) == [["majority: 1 of 4 agree"] * 4, [split] * 2]
    texts = [["4", "4.", "5", "4"]]
    bench = Bench(tmp_path / "c.sqlite", texts)
    assert bench.judge(majority=True) == [["kept", "kept", out, "kept"]]


def test_a_function_s_number_says_which_is_best(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def short(prompt, answer):\n    return -len(answer.text)\n")
    bench = Bench(tmp_path / "a.sqlite", [["long", "a", "bb"]])
    over = "best: 1 of 3 are kept"
    assert bench.judge(function=f"{file}:short", best=1) == [[over, "kept", over]]


def test_a_judge_is_asked_once_about_what_passed_so_far(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "a.sqlite", [["is 9", "is 3"], ["no 10"], ["is 0"]])
    below = "judge: 3 of 10, below 6"
    told = [["kept", below], ["pattern: not found"], ["judge: gave no score"]]
    assert bench.judge(judged=True, pattern="is", judge=6) == told
    assert len(bench.grader.asked) == 3
    told = [["kept", "kept"], ["kept"], ["judge: gave no score"]]
    assert bench.judge(judged=True, judge=2) == told
    assert len(bench.grader.asked) == 4  # the one that failed before it came to the judge
    best = "best: 1 of 2 are kept"
    assert bench.judge(judged=True, judge=1, best=1)[0] == ["kept", best]
    assert len(bench.grader.asked) == 4


def test_a_row_that_overlaps_with_the_held_out_is_dropped_and_named(tmp_path: Path) -> None:
    words = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    bench = Bench(tmp_path / "a.sqlite", [[f"Say {words}."], ["It is."], [words]])
    bench.prompts[1] = replace(bench.prompts[1], split="held_out", reference=words)
    bench.prompts[2] = replace(bench.prompts[2], split="held_out")
    with AnswerStore(bench.path, judged="run") as store:
        groups = lambda: bench.groups(store)  # noqa: E731
        sets = [held_out(lambda: bench.prompts, 13)]
        counts = rejudge(groups, Checks(ChecksSection()), store, sets)
        assert counts == {"overlap with held-out": 1}
        (dropped,) = (a for _, some in bench.groups(store) for a in some if a.why)
    assert dropped.id == bench.ids[0][0]
    assert dropped.why == "overlap: the answer shares 13 words with held-out p.jsonl:2"


@pytest.mark.parametrize(
    "teacher, judge, word",
    [
        ("openai:gpt-5", "openai:gpt-5", "itself"),
        ("openai:gpt-5", "openrouter:openai/gpt-oss-20b", "both are OpenAI's"),
        ("Qwen/Qwen3-8B", "openai:gpt-5", ""),
        ("gemini:gemini-3-pro", "google/gemma-4-9b", "both are Google's"),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "meta-llama/Llama-4", "both are Meta's"),
        ("openai:gpt-5", "teacher", "the lineage of teacher is not known"),
    ],
)
def test_whose_kin_a_judge_is(teacher: str, judge: str, word: str) -> None:
    assert (word in kinship(teacher, judge)) and bool(word) == bool(kinship(teacher, judge))


def recipe(**sections: Any) -> Recipe:
    told: dict[str, Any] = {
        "name": "x",
        "teacher": {"model": "openai:gpt-5-mini"},
        "prompts": {"source": "x"},
        "student": {"base": "x"},
        "train": {"steps": 1},
        "checks": {"judge": 5},
    }
    return parse_recipe(told | sections)


def test_judge_and_teacher_share_a_budget(tmp_path: Path) -> None:
    from limbeck.models.routes import route

    told = recipe(judge={"model": "xai:grok-4.20"}, budget={"tokens": 1000})
    assert told.judge is not None
    where = route(told.judge)
    with AnswerStore(tmp_path / "a.sqlite") as store:
        for n, (model, way) in enumerate([("gpt-5-mini", "openai"), (where.model, where.name)]):
            one = replace(answer(str(n)), model=model, route=way, usage=Usage(300 + n, 100))
            store.add([replace(one, id=str(n))])
        money = purse_of_judge(told, where, store)
        assert money.tokens == 801 and not money.fits(Usage(100, 100))
        assert money.fits(Usage(100, 99))
    unknown = recipe(judge={"model": "mistral:no-such-model"}, budget={"dollars": 1.0})
    assert unknown.judge is not None
    with AnswerStore(tmp_path / "a.sqlite") as store, pytest.raises(InputError, match="the judge"):
        purse_of_judge(unknown, route(unknown.judge), store)

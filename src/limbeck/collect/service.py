"""The answers of a teacher behind a service: probe, estimate, ask, ask again, reconcile."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.collect.ask import Asking, gather, missing, truncated
from limbeck.collect.batches import Desk, Queue
from limbeck.collect.judge import charge_judge
from limbeck.collect.probe import Probe, probe, to_json
from limbeck.collect.store import AnswerStore
from limbeck.collect.told import Way, check_section, plan
from limbeck.files import locked, write_text
from limbeck.models.batches import BatchService
from limbeck.models.budget import Purse, bound, purse
from limbeck.models.pace import Pace
from limbeck.models.routes import SERVER, Route, route
from limbeck.models.served import ServedModel
from limbeck.models.tokenizer import ChatTokenizer
from limbeck.progress import say
from limbeck.recipe import Recipe
from limbeck.records import Prompt, Usage, identity

AGAIN = 4  # times max_tokens, where the recipe does not say
TYPICAL = 0.25  # of max_tokens: how long an answer is taken to be before any has come
BYTES = 4  # a token, in the estimate; the purse itself takes no token for longer than a byte


def asking_of(recipe: Recipe) -> tuple[Route, Asking]:
    """The route of a recipe's served teacher, and what its answers are stored under."""
    section = recipe.teacher
    found = route(section)
    sampling = section.sampling(recipe.seed if found.seed else 0)
    again = section.max_tokens_again
    again = AGAIN * sampling.max_tokens if again is None else again
    return found, Asking(found.model, found.name, sampling, again, section.samples)


def ask_service(
    recipe: Recipe,
    prompts: Callable[[], Iterator[Prompt]],
    store: AnswerStore,
    folder: Path,
    student: Callable[[], ChatTokenizer | None] = lambda: None,
) -> int:
    """Ask for every answer that the store lacks; returns how many that were.

    `prompts` gives the run's prompts anew each time, `student` the tokenizer of who will learn:
    log-probabilities are asked for where it can learn from them. Raises InputError and
    ServiceError as `probe` and `ServedModel.generate` do; all that was answered is kept.
    """
    where, asking = asking_of(recipe)
    due = Due.count(prompts, asking, store)
    if not due.questions:
        return 0
    where.key()
    batch = recipe.teacher.batch
    if batch is None:
        Queue(store.path, where).refuse_live(store)
    money = purse_of(where, recipe, store)
    known = _known(folder / "probe.json", where)
    money.spend(Usage(known.get("tokens_in", 0), known.get("tokens_out", 0)))
    charge_judge(money, recipe, store)
    if due.first is not None and not money.tokens:
        money.refuse_too_little(bound(due.first, asking.sampling.max_tokens))
    pace = Pace(recipe.teacher.in_flight, who=where.teacher)
    if not known:
        found = probe(where, asking.sampling, money, pace)
        known = _remember(folder / "probe.json", where, found)
        say(f"{'probe':>9}  {found.line()}")
    way, why = _plan(known, student, batch is not None)
    say(f"{'plan':>9}  {way}: {why}")
    say(f"{'estimate':>9}  {due.told(money, *due.usage(asking, store, batch=bool(batch)))}")
    logprobs = 0
    if way != "text alone":
        check_section(recipe.train)
        logprobs = known["logprobs"]
    model = ServedModel(where, purse=money, pace=pace, logprobs=logprobs)

    def answer(some: Callable[[], Iterator[Prompt]], one: Asking, label: str, *count: int) -> None:
        if batch is None:
            gather(model, some(), one, store, label, *count)
            return
        with BatchService(where) as service:
            Desk(where, one, store, money, service).collect(some, leave=batch == "leave")

    try:
        for one in asking.each:
            total = sum(one.wants(p) for p in prompts())
            left = sum(1 for _ in missing(prompts(), one, store))
            if left:
                answer(prompts, one, "collect", total, total - left)
        again = sum(_again(answer, prompts, one, store) for one in asking.each)
    finally:
        if money.price is None:
            say(f"{'cost':>9}  {money.told()}; the price of {where.model} is not known")
        else:
            say(f"{'cost':>9}  {money.told()}, by {money.price.source}")
    return due.missing + again


def _again(
    answer: Callable[..., None],
    prompts: Callable[[], Iterator[Prompt]],
    asking: Asking,
    store: AnswerStore,
) -> int:
    """Ask once more for the truncated answers of one sample; returns how many that were."""
    if (longer := asking.longer) is None:
        return 0
    cut = lambda: truncated(prompts(), asking, store)  # noqa: E731
    left = sum(1 for _ in missing(cut(), longer, store))
    if left:
        say(f"{'collect':>9}  {left:,} truncated answers are asked for with a higher cap")
        answer(cut, longer, "again", left)
    return left


def purse_of(where: Route, recipe: Recipe, store: AnswerStore) -> Purse:
    """The recipe's purse, with what the answers that are there took of it."""
    provider = "" if where.provider == SERVER else where.provider
    money = purse(provider, where.model, recipe.budget)
    for used in store.spent(where.model, where.name):
        money.spend(used)
    return money


def _plan(
    probed: dict[str, Any], student: Callable[[], ChatTokenizer | None], batched: bool
) -> tuple[Way, str]:
    if batched:
        return "text alone", "a batch queue is not asked for log-probabilities"
    try:
        return plan(probed, student())
    except ImportError:
        return "text alone", "the student's tokenizer needs: pip install 'limbeck[train]'"


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold a shared store alone: two runs that ask the same would pay twice."""
    busy = f"Another run is adding answers to {path}; wait for it."
    with locked(path.with_name(f".{path.name}.lock"), busy):
        yield


@dataclass(slots=True)
class Due:
    """What is still to be asked: how many questions of `all`, how many cut answers, how long."""

    all: int = 0
    missing: int = 0
    cut: int = 0
    bytes: int = 0
    first: Prompt | None = None

    @staticmethod
    def count(prompts: Callable[[], Iterator[Prompt]], asking: Asking, store: AnswerStore) -> Due:
        """Count it; `prompts` gives all of them anew each time."""
        due = Due()
        for one in asking.each:
            due.all += sum(one.wants(p) for p in prompts())
            for prompt in missing(prompts(), one, store):
                due.missing += 1
                due.bytes += bound(prompt, 0).tokens_in
                due.first = due.first or prompt
            if longer := one.longer:
                cut = truncated(prompts(), one, store)
                due.cut += sum(1 for _ in missing(cut, longer, store))
        return due

    @property
    def questions(self) -> int:
        """How many are still to be asked."""
        return self.missing + self.cut

    def usage(
        self, asking: Asking, store: AnswerStore, *, batch: bool = False
    ) -> tuple[Usage, Usage]:
        """What the rest will take: as long as answers were so far, and at most."""
        done, longest = self.all - self.missing, asking.sampling.max_tokens
        spent = sum(used.tokens_out for used in store.spent(asking.model, asking.route))
        typical = spent / done if done >= 20 else TYPICAL * longest
        read = self.bytes // BYTES
        likely, most = int(typical * self.missing), longest * self.missing
        return Usage(read, likely, batch=batch), Usage(read, most, batch=batch)

    def told(self, money: Purse, likely: Usage, most: Usage) -> str:
        """The same for people, with its price."""
        said = (
            f"{self.missing:,} questions, about {likely.tokens_in + likely.tokens_out:,} tokens"
            f" and at most {most.tokens_in + most.tokens_out:,}"
        )
        if money.price is None:
            return f"{said}; the price is not known"
        dollars = money.price.dollars(likely), money.price.dollars(most)
        return f"{said}; about ${dollars[0]:,.2f}, at most ${dollars[1]:,.2f}"


def _known(path: Path, where: Route) -> dict[str, Any]:
    """What an earlier process found of the same route; nothing where it is another, or damaged."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        return told if told["route"] == identity("probe", where.name, where.model) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _remember(path: Path, where: Route, found: Probe) -> dict[str, Any]:
    told = {"route": identity("probe", where.name, where.model), **to_json(found)}
    write_text(path, json.dumps(told, indent=1) + "\n")
    return told

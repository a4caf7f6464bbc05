"""The answers of a teacher behind a service: probe, estimate, ask, ask again, reconcile."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from limbeck.collect.ask import Asking, gather, missing, truncated
from limbeck.collect.probe import Probe, probe, to_json
from limbeck.collect.store import AnswerStore
from limbeck.errors import InputError
from limbeck.files import write_text
from limbeck.models.budget import Purse, bound, purse
from limbeck.models.pace import Pace
from limbeck.models.routes import SERVER, Route, route
from limbeck.models.served import ServedModel
from limbeck.progress import say
from limbeck.recipe import Recipe
from limbeck.records import Prompt, Sampling, Usage, identity

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
) -> int:
    """Ask for every answer that the store lacks; returns how many that were.

    `prompts` gives the run's prompts anew each time. Raises InputError and ServiceError as `probe`
    and `ServedModel.generate` do; all that was answered is kept.
    """
    where, asking = asking_of(recipe)
    due = _Due.count(prompts, asking, store)
    if not due.questions:
        return 0
    where.key()
    provider = "" if where.provider == SERVER else where.provider
    money = purse(provider, where.model, recipe.budget)
    known = _known(folder / "probe.json", where)
    money.spend(store.spent(where.model, where.name))
    money.spend(Usage(known.get("tokens_in", 0), known.get("tokens_out", 0)))
    if due.first is not None and not money.tokens:
        money.refuse_too_little(bound(due.first, asking.sampling.max_tokens))
    pace = Pace(recipe.teacher.in_flight, who=where.teacher)
    if not known:
        found = probe(where, asking.sampling, money, pace)
        _remember(folder / "probe.json", where, found)
        say(f"{'probe':>9}  {found.line()}")
    say(f"{'plan':>9}  text alone: the distributions of a service's answers are not used yet")
    say(f"{'estimate':>9}  {due.estimate(money, asking.sampling, store, asking)}")
    model = ServedModel(where, purse=money, pace=pace)
    try:
        for one in asking.each:
            total = sum(one.wants(p) for p in prompts())
            left = sum(1 for _ in missing(prompts(), one, store))
            if left:
                gather(model, prompts(), one, store, "collect", total, total - left)
        again = sum(_again(model, prompts, one, store) for one in asking.each)
    finally:
        if money.price is None:
            say(f"{'cost':>9}  {money.told()}; the price of {where.model} is not known")
        else:
            say(f"{'cost':>9}  {money.told()}, by {money.price.source}")
    return due.missing + again


def _again(
    model: ServedModel, prompts: Callable[[], Iterator[Prompt]], asking: Asking, store: AnswerStore
) -> int:
    """Ask once more for the truncated answers of one sample; returns how many that were."""
    if (longer := asking.longer) is None:
        return 0
    cut = lambda: truncated(prompts(), asking, store)  # noqa: E731
    left = sum(1 for _ in missing(cut(), longer, store))
    if left:
        say(f"{'collect':>9}  {left:,} truncated answers are asked for with a higher cap")
        gather(model, cut(), longer, store, "again", left)
    return left


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold a shared store alone: two runs that ask the same would pay twice."""
    with path.with_name(f".{path.name}.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"Another run is adding answers to {path}; wait for it.") from None
        yield


class _Due:
    """What is still to be asked: how much, and how long."""

    def __init__(self) -> None:
        self.all, self.missing, self.cut, self.bytes = 0, 0, 0, 0
        self.first: Prompt | None = None

    @staticmethod
    def count(prompts: Callable[[], Iterator[Prompt]], asking: Asking, store: AnswerStore) -> _Due:
        due = _Due()
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
        return self.missing + self.cut

    def estimate(self, money: Purse, sampling: Sampling, store: AnswerStore, asking: Asking) -> str:
        """What the rest will take: as long as answers were so far, and at most."""
        done = self.all - self.missing
        spent = store.spent(asking.model, asking.route)
        typical = spent.tokens_out / done if done >= 20 else TYPICAL * sampling.max_tokens
        read = self.bytes // BYTES
        likely = Usage(read, int(typical * self.missing))
        most = Usage(read, sampling.max_tokens * self.missing)
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


def _remember(path: Path, where: Route, found: Probe) -> None:
    told = {"route": identity("probe", where.name, where.model), **to_json(found)}
    write_text(path, json.dumps(told, indent=1) + "\n")

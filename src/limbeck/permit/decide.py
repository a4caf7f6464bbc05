"""From the routes of every model that shaped the rows to one Permission; the strictest wins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from typing import Final, TypeAlias

from limbeck.errors import InputError
from limbeck.permit.recorded import Recorded
from limbeck.permit.register import PURPOSES, Entry, Kind, Register, register
from limbeck.records import Decision, Distribution, Permission, Purpose, Reason, identity

STRICTNESS: Final[tuple[Decision, ...]] = ("allow", "conditional", "unknown", "deny")
RECORDED: Final = "recorded permission"
_GIVEN_OUT: Final[dict[Distribution, str]] = {
    "none": "to stay in the house",
    "weights": "to be given out as weights",
    "service": "to be used by others over a network",
}


@dataclass(frozen=True, slots=True)
class Route:
    """How one model that shaped the rows was reached.

    Attributes:
        kind: weights (run by oneself), api, consumer (an app for people), resale (a cloud or
            router that passes on others' models).
        provider: Whom one deals with, as openai, chatgpt or openrouter; "" for weights.
        model: Its name there; of weights, the hub id or the file's name.
        licence: Of weights: hub tag, SPDX id or the licence's name in any case, as the weights
            say it; None where they say nothing.
        found: Where that was read, as "general.license in X.gguf"; "" if nowhere.
        role: What the model did for the rows: teacher, user (simulated), paraphraser, judge (one
            that selects).
    """

    kind: Kind
    provider: str
    model: str
    licence: str | None = None
    found: str = ""
    role: str = "teacher"

    @property
    def name(self) -> str:
        """The model as a recorded permission has to name it."""
        return f"{self.provider}:{self.model}".removeprefix(":").strip()


@dataclass(frozen=True, slots=True)
class _Facts:
    """What the student is for; None where nobody has said."""

    purpose: Purpose
    competes: bool | None = None
    distribution: Distribution | None = None


def decide(
    routes: Sequence[Route],
    purpose: Purpose,
    *,
    competes: bool | None = None,
    distribution: Distribution | None = None,
    recorded: Recorded | None = None,
    today: date | None = None,
    texts: Register | None = None,
) -> Permission:
    """Say whether a student may learn from rows that these models shaped.

    A pure function of its arguments: no network, no clock where `today` is given. The strictest
    text wins (deny, unknown, conditional, allow), and the chain of reasons is kept.

    Args:
        routes: Of every model that shaped the rows: teacher, simulated users, paraphrasers, and
            judges that select.
        purpose: What the student is for.
        competes: Whether it competes with a provider; None where nobody has said, which makes
            terms that turn on it conditional.
        distribution: How it is given out; None likewise.
        recorded: A permission on file, which turns the decision on the models that it names into
            allow and keeps their duties.
        today: The day on which texts must be fresh and the record must hold; default: the
            machine's.
        texts: The register; default: the one that Limbeck ships.

    Raises:
        InputError: For a recorded permission that has expired, or is about another teacher or
            purpose; for a purpose that is none.
    """
    if purpose not in PURPOSES:
        raise InputError(f"purpose {purpose!r} is none of: {', '.join(PURPOSES)}")
    if not routes:
        raise InputError("no model to decide about: the rows need a teacher at least")
    day, facts = today or date.today(), _Facts(purpose, competes, distribution)
    texts = texts or register()
    known = tuple(dict.fromkeys(routes))
    words = _words(recorded, known, purpose, day) if recorded else {}
    reasons: list[Reason] = []
    labels: list[str] = []
    missing: list[str] = []
    for route in known:
        judged = [_judged(route, text, facts, day) for text in _speaking(route, texts)]
        labels.append(_label(route, [reason for reason, _ in judged]))
        reasons += [reason for reason, _ in judged]
        if route in words:
            reasons.append(words[route])
        else:
            missing += [question for _, questions in judged for question in questions]
    permission = _summed(reasons, labels, missing, purpose)
    told = [asdict(route) for route in known]
    return replace(permission, id=identity("permission", told, asdict(permission)))


def by_model(reasons: Sequence[Reason]) -> dict[tuple[str, str], tuple[Decision, list[Reason]]]:
    """The reasons for each model, by kind and name, and what they come to.

    The strictest text decides, unless somebody's word stands against it.
    """
    chains: dict[tuple[str, str], list[Reason]] = {}
    for reason in reasons:
        chains.setdefault((reason.kind, reason.model), []).append(reason)
    return {model: (_outcome(chain), chain) for model, chain in chains.items()}


def plain(text: str) -> str:
    """`text` on one line, fit for a terminal: weights may carry any bytes in their metadata."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _outcome(chain: Sequence[Reason]) -> Decision:
    worded = any(reason.entry == RECORDED for reason in chain)
    return "allow" if worded else _strictest([reason.decision for reason in chain])


def _strictest(decisions: Sequence[Decision]) -> Decision:
    return max(decisions, key=STRICTNESS.index)


_Text: TypeAlias = tuple[Entry | None, str]
"""A text of the register, None where it was not read, and where it is said to be the one."""


def _speaking(route: Route, texts: Register) -> list[_Text]:
    """The texts that speak of a route."""
    if route.kind in ("api", "consumer"):
        return [(texts.terms(route.provider, route.model), "")]
    by_name = _of_family(route.model, texts)
    if route.kind == "resale":
        vendor, _, name = route.model.partition("/")
        behind = by_name or (texts.terms(vendor, name), "")
        return [(texts.terms(route.provider, route.model), ""), behind]
    stated = texts.licence(route.licence)
    if by_name and (not plain(route.licence or "") or (stated and stated.silent)):
        return [by_name]
    both = [(stated, plain(route.found)), *([by_name] if by_name else [])]
    return both[:1] if by_name and by_name[0] is stated else both


def _of_family(model: str, texts: Register) -> _Text | None:
    """The licence of weights that are known by their hub id; a bare name may be anybody's."""
    family = texts.family_of(model) if "/" in model else None
    entry = texts.licence(family.licence) if family else None
    return (entry, f"its hub id; {family.source}") if family else None


def _judged(route: Route, text: _Text, facts: _Facts, day: date) -> tuple[Reason, list[str]]:
    """What a text says of a route, and the facts that would settle it."""
    entry, stated_in = text
    if entry is None:
        return _nothing_read(route), []
    decision, said, missing = _by_facts(entry, facts)
    fit = [purpose for purpose in PURPOSES if entry.decision[purpose] != "deny"]
    if fit and facts.purpose not in fit:
        said.append(f"It is for {' or '.join(fit)} only.")
    if entry.secondary:
        said.append("Only others' accounts of the text were found.")
    if day >= entry.stale_on:
        decision, missing = _strictest([decision, "unknown"]), []
        said.append(
            f"Stale since {entry.stale_on}: the text may have changed after it was read "
            f"({entry.date_read}); read it again."
        )
    reason = Reason(
        model=route.name,
        role=route.role,
        kind=route.kind,
        entry=entry.id,
        title=entry.name,
        decision=decision,
        clause=" ".join([entry.clause, *said]),
        duties=entry.duties,
        stated_in=stated_in,
        source=entry.source,
        read_as=entry.read_as or "",
        date_read=entry.date_read,
        sha256=entry.sha256 or "",
    )
    return reason, missing


def _by_facts(entry: Entry, facts: _Facts) -> tuple[Decision, list[str], list[str]]:
    """What an entry comes to, the facts that it took into account and those that it lacks."""
    decision = entry.decision[facts.purpose]
    said: list[str] = []
    missing: list[str] = []
    given: list[Decision] = []
    if decision == "deny":
        return decision, said, missing
    if entry.competes and facts.competes is not None:
        given.append(entry.competes["yes" if facts.competes else "no"])
        said.append(f"The student is said {'' if facts.competes else 'not '}to compete.")
    elif "allow" in entry.competes.values():
        missing.append(
            f"permit.competes = true or false: would the student compete with {entry.rival}?"
        )
    if entry.distribution and facts.distribution is not None:
        given.append(entry.distribution[facts.distribution])
        said.append(f"The student is said {_GIVEN_OUT[facts.distribution]}.")
    elif "allow" in entry.distribution.values():
        missing.append(
            'permit.distribution = "none", "weights" or "service": does the student stay in the '
            "house, are its weights given out, or do others use it over a network?"
        )
    if "deny" in given:
        return "deny", said, []
    return (decision if missing or not given else _strictest(given)), said, missing


def _nothing_read(route: Route) -> Reason:
    """The reason for a route that no text was read about."""
    stated = plain(route.licence or "")
    title = stated[:80] or "no licence stated"
    if route.kind == "resale":
        title = plain(route.model)
        clause = f"Limbeck's register has read neither terms nor a licence of {title}."
    elif route.kind != "weights":
        title = plain(route.provider)
        clause = f"Limbeck's register has read no terms of {title} for {plain(route.model)}."
    elif stated:
        clause = f"Limbeck's register has not read a licence called {title!r}."
    elif "/" in route.model:
        clause = (
            f"No licence of {plain(route.model)} is known, neither from the weights, as far as "
            "they were read, nor to Limbeck's register, and without one nothing is granted."
        )
    else:
        clause = "The weights state no licence, and without one nothing is granted."
    return Reason(
        route.name, route.role, route.kind, "", title, "unknown", clause,
        stated_in=plain(route.found),
    )  # fmt: skip


def _label(route: Route, reasons: Sequence[Reason]) -> str:
    texts = dict.fromkeys(reason.entry or "-".join(reason.title.split()) for reason in reasons)
    return f"{route.kind}:{route.name} under {'+'.join(texts)}"


def _words(
    recorded: Recorded, routes: Sequence[Route], purpose: Purpose, today: date
) -> dict[Route, Reason]:
    """The recorded permission as a reason, for each route that it names."""
    word, path = recorded.word, recorded.path
    named = {route.name: route for route in routes}
    if strange := [teacher for teacher in word.teacher if teacher not in named]:
        raise InputError(
            f"{path} permits the teacher {strange[0]!r}, and this is "
            f"{' and '.join(map(repr, named))}"
        )
    if word.purpose != purpose:
        raise InputError(f"{path} permits the purpose {word.purpose!r}, and this is {purpose!r}")
    if word.until < today:
        raise InputError(
            f"{path} ran out on {word.until}, and today is {today}: have it renewed, "
            "or take permission out of [permit]"
        )
    note = f" Note: {plain(word.note).rstrip('.')}." if word.note.strip() else ""
    by = f"allowed by {plain(word.allowed_by)} until {word.until}"
    return {
        route: Reason(
            model=route.name,
            role=route.role,
            kind=route.kind,
            entry=RECORDED,
            title=RECORDED,
            decision="allow",
            clause=f"Recorded: {by}, in {path.name}, SHA-256 {recorded.sha256}.{note}",
            source=by,
            sha256=recorded.sha256,
        )
        for route in routes
        if route.name in word.teacher
    }


def _summed(
    reasons: Sequence[Reason], labels: Sequence[str], missing: Sequence[str], purpose: Purpose
) -> Permission:
    """One permission from the whole chain: the strictest model decides, and all duties add up."""
    models = by_model(reasons)
    decision = _strictest([outcome for outcome, _ in models.values()])
    deciding = [
        reason
        for outcome, chain in models.values()
        for reason in chain
        if outcome == decision and decision in ("allow", reason.decision)
    ]
    texts = [reason for reason in deciding if reason.entry != RECORDED]
    words = [reason for reason in deciding if reason.entry == RECORDED]
    told = [f"{r.model}: {r.clause}" if len(models) > 1 else r.clause for r in texts]
    clause = " ".join([*told, f"Purpose: {purpose}.", *dict.fromkeys(r.clause for r in words)])
    sources = [f"{r.title}: {r.source}" if len(texts) > 1 else r.source for r in texts if r.source]
    sources = [*(r.stated_in for r in texts if r.stated_in), *sources, *(r.source for r in words)]
    return Permission(
        route=" + ".join(labels),
        decision=decision,
        duties=tuple(dict.fromkeys(duty for reason in reasons for duty in reason.duties)),
        clause=clause,
        source="; ".join(dict.fromkeys(sources)),
        date_read=min((r.date_read for r in texts if r.date_read), default=""),
        reasons=tuple(reasons),
        missing=tuple(dict.fromkeys(missing)) if decision != "deny" else (),
        purpose=purpose,
    )

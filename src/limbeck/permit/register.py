"""The register: what terms and licences say about training on outputs, checked as it is read."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from datetime import date, timedelta
from functools import cache, cached_property
from importlib import resources
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from limbeck.errors import InputError
from limbeck.records import Decision, Distribution, Purpose

SCHEMA = 2
PURPOSES: tuple[Purpose, ...] = get_args(Purpose)
Kind: TypeAlias = Literal["weights", "api", "consumer", "resale"]

_SEPARATORS = re.compile(r"[\s,_\u2010-\u2015-]+")
_FILLER = frozenset({"", "the", "license", "licence", "version", "agreement"})

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Source = Annotated[str, StringConstraints(pattern=r"^https://\S+\.\S+$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Model = Annotated[str, StringConstraints(pattern=r"^(\*|[^*\s]+\*?)$")]
"""A model's name, or how names begin when it ends in *."""


def _day_of(date_read: str) -> date:
    """The day that 2026-11-21 or 2026-11 means; of a month, the first."""
    return date.fromisoformat(date_read if len(date_read) > 7 else f"{date_read}-01")


def _on_a_calendar(date_read: str) -> str:
    _day_of(date_read)
    return date_read


Day = Annotated[
    str, StringConstraints(pattern=r"^\d{4}-\d\d(-\d\d)?$"), AfterValidator(_on_a_calendar)
]


def _for_all_purposes(value: object) -> object:
    return dict.fromkeys(PURPOSES, value) if isinstance(value, str) else value


class Table(BaseModel):
    """A table of TOML: no key that is not declared, no change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Entry(Table):
    """What one text says about training on what came by one route, in one version."""

    id: Annotated[str, StringConstraints(pattern=r"^[a-z0-9.+-]+$")] = Field(
        description="of a licence: hub tag, or SPDX id in lower case"
    )
    route: Kind
    name: Text = Field(description="how people call the text, with its version")
    also: tuple[Text, ...] = Field(default=(), description="other spellings of licence or provider")
    provider: str = Field(default="", description="whom one deals with; of weights: nobody")
    hosts: tuple[Text, ...] = Field(default=(), description="where the provider's API answers")
    models: tuple[Model, ...] = Field(default=(), description="which of its models are meant")
    decision: Annotated[dict[Purpose, Decision], BeforeValidator(_for_all_purposes)]
    competes: dict[Literal["yes", "no"], Decision] = Field(
        default_factory=dict, description="what it comes to if the student competes with `rival`"
    )
    rival: str = Field(default="", description="with whom the student must not compete")
    distribution: dict[Distribution, Decision] = Field(
        default_factory=dict, description="what it comes to by how the student is given out"
    )
    duties: tuple[Text, ...]
    clause: Text = Field(description="in our own words")
    source: Source
    secondary: bool = Field(default=False, description="only others' accounts of it were found")
    read_as: Source | None = Field(default=None, description="what was read in source's place")
    date_read: Day
    sha256: Sha256 | None = Field(default=None, description="of the bytes that were read")
    stale_after: int = Field(ge=1, description="days after which it has to be read again")

    @property
    def spellings(self) -> tuple[str, ...]:
        """Everything that the licence, or the provider, is called here."""
        if self.route == "weights":
            return (self.id, self.name, *self.also)
        return (self.provider, *self.also)

    @property
    def stale_on(self) -> date:
        """The first day on which it has to be read again."""
        return _day_of(self.date_read) + timedelta(days=self.stale_after)

    @property
    def silent(self) -> bool:
        """Whether the text names no terms at all, as the hub's tag `other`."""
        return set(self.decision.values()) == {"unknown"}

    @model_validator(mode="after")
    def _no_contradiction(self) -> Entry:
        facts = {*self.competes.values(), *self.distribution.values()}
        decided = set(self.decision.values())
        weights = self.route == "weights"
        faults = {
            "decision leaves out a purpose": len(self.decision) < len(PURPOSES),
            "competes needs both yes and no, and a rival": (
                len(self.competes) not in (0, 2) or bool(self.rival) != bool(self.competes)
            ),
            "distribution needs none, weights and service": len(self.distribution) not in (0, 3),
            "it allows, and yet asks for facts": "allow" in decided and bool(facts),
            "it denies, and yet asks for facts": decided == {"deny"} and bool(facts),
            "a secondary source alone allows nothing": (
                self.secondary and "allow" in decided | facts
            ),
            "a licence names no provider, hosts or models: a family does that": (
                weights and bool(self.provider or self.hosts or self.models)
            ),
            "a route names its provider and models": (
                not weights and not (self.provider and self.models)
            ),
        }
        if found := [fault for fault, is_there in faults.items() if is_there]:
            raise ValueError(found[0])
        return self


class Family(Table):
    """Which licence the weights of some models are under, by their hub ids."""

    models: Annotated[tuple[Model, ...], Field(min_length=1)]
    licence: Text
    source: Source
    date_read: Day


class Register(Table):
    """Every text that we have read, each findable under one spelling or more."""

    schema_: Literal[2] = Field(alias="schema")
    entry: tuple[Entry, ...]
    family: tuple[Family, ...] = ()

    @model_validator(mode="after")
    def _one_meaning_each(self) -> Register:
        if len({entry.id for entry in self.entry}) < len(self.entry):
            raise ValueError("an id stands twice")
        owners: dict[tuple[str, str], str] = {}
        for what, said, owner in self._claims():
            key = _key(said) if what in ("licence", "provider") else said.casefold()
            other = owners.setdefault((what, key), owner)
            if other != owner:
                raise ValueError(f"{what} {said!r} stands for both {other!r} and {owner!r}")
        for family in self.family:
            if self.licence(family.licence) is None:
                raise ValueError(f"{family.models[0]!r}: no entry for {family.licence!r}")
        return self

    def _claims(self) -> Iterator[tuple[str, str, str]]:
        """What each name is said to mean: kind of name, name, meaning."""
        for entry in self.entry:
            for said in entry.spellings:
                if entry.route == "weights":
                    yield "licence", said, entry.id
                    continue
                yield "provider", said, f"{entry.provider} by {entry.route}"
                yield from (("model", f"{_key(said)}:{model}", entry.id) for model in entry.models)
            yield from (("host", host, entry.provider) for host in entry.hosts)
        for family in self.family:
            yield from (("family", model, family.licence) for model in family.models)

    @cached_property
    def _licences(self) -> dict[str, Entry]:
        found = (entry for entry in self.entry if entry.route == "weights")
        return {_key(said): entry for entry in found for said in entry.spellings}

    @cached_property
    def _terms(self) -> dict[str, list[Entry]]:
        by_provider: dict[str, list[Entry]] = {}
        for entry in self.entry:
            for said in entry.spellings if entry.route != "weights" else ():
                by_provider.setdefault(_key(said), []).append(entry)
        return by_provider

    @cached_property
    def _families(self) -> dict[str, Family]:
        return {model: family for family in self.family for model in family.models}

    @property
    def providers(self) -> tuple[str, ...]:
        """Everyone whose terms are here, sorted."""
        return tuple(sorted({entry.provider for entry in self.entry} - {""}))

    def licence(self, spelling: str | None) -> Entry | None:
        """The entry for a licence however it is spelt, or None where we have not read it."""
        return self._licences.get(_key(spelling or ""))

    def provider(self, spelling: str) -> tuple[Kind, str] | None:
        """How one deals with a provider, and its name here; None where we have read no terms."""
        found = self._terms.get(_key(spelling))
        return (found[0].route, found[0].provider) if found else None

    def host(self, name: str) -> str | None:
        """The provider whose API answers at this host, or None."""
        for entry in self.entry:
            if name.casefold() in entry.hosts:
                return entry.provider
        return None

    def terms(self, provider: str, model: str) -> Entry | None:
        """The provider's terms for a model, the most exact name first; None if none are read."""
        found = self._terms.get(_key(provider), ())
        by_model = {said: entry for entry in found for said in entry.models}
        return _most_exact(by_model, model)

    def family_of(self, model: str) -> Family | None:
        """Whose licence the weights with this hub id are under, as far as we have read."""
        return _most_exact(self._families, model)

    def family_named(self, name: str) -> Family | None:
        """The same for a name without its owner, as llama-3.1 or gpt-oss-20b."""
        named = {said.rpartition("/")[2]: family for said, family in self._families.items()}
        begun = {said.rstrip("*").rstrip("-"): family for said, family in named.items()}
        return _most_exact(begun | named, "-".join(name.split()))


@cache
def register() -> Register:
    """The register that Limbeck ships, read once."""
    text = resources.files("limbeck.permit").joinpath("register.toml").read_text(encoding="utf-8")
    return parse_register(tomllib.loads(text), "register.toml")


def parse_register(table: Mapping[str, Any], name: str = "register") -> Register:
    """Check a register's table against its shape; `name` is how errors call it.

    Raises:
        InputError: Naming each entry and key that is wrong, a missing source among them; two that
            contradict each other; or the schema, where it is not the one that this Limbeck reads.
    """
    schema = table.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise InputError(
            f"{name} has schema {schema} and this Limbeck reads schema {SCHEMA}: update Limbeck, "
            "or take the register that came with it"
        )
    try:
        return Register.model_validate(table)
    except ValidationError as error:
        tables = {"entry": Entry, "family": Family}
        raise InputError(f"{name}: {complaints(error, Register, tables)}") from None


def complaints(
    error: ValidationError, model: type[BaseModel], inside: Mapping[str, type[BaseModel]]
) -> str:
    """What pydantic found wrong, in one line; `inside` are the tables of `model` by their key."""
    said: list[str] = []
    for one in error.errors():
        where = ".".join(map(str, one["loc"]))
        if one["type"] == "extra_forbidden":
            known = model if len(one["loc"]) == 1 else inside[str(one["loc"][0])]
            keys = (field.alias or key for key, field in known.model_fields.items())
            said.append(f"unknown key {where!r}; known here: {', '.join(keys)}")
        elif one["type"] == "missing":
            said.append(f"{where!r} is missing")
        else:
            what = one["msg"].removeprefix("Value error, ")
            said.append(f"{where!r}: {what}" if where else what)
    return "; ".join(said)


Found = TypeVar("Found")


def _most_exact(by_model: Mapping[str, Found], model: str) -> Found | None:
    """The value of the longest name that `model` is, or begins with where the name ends in *."""
    wanted = model.casefold()
    for said in sorted(by_model, key=len, reverse=True):
        name = said.casefold()
        if wanted == name or (name.endswith("*") and wanted.startswith(name[:-1])):
            return by_model[said]
    return None


def _key(spelling: str) -> str:
    """What is left of a licence's name without case, separators and words that tell nothing."""
    words = _SEPARATORS.split(spelling.casefold())
    words = [re.sub(r"^v(?=\d)", "", word) for word in words if word not in _FILLER]
    return "".join(words)

"""The services that a teacher may be asked through, and what each wants said differently."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from urllib.parse import urlsplit

from limbeck.errors import InputError
from limbeck.models.dialects import anthropic, gemini, openai
from limbeck.models.dialects.base import Dialect
from limbeck.recipe import PROVIDERS, TeacherSection

SERVER = "served"


@dataclass(frozen=True, slots=True)
class Service:
    """A provider: base URL, dialect, the variables that may hold its key, and its field names.

    `cap` is the field of the longest answer; `seed` that of the seed, "" where it takes none.
    """

    base: str
    keys: tuple[str, ...]
    dialect: Dialect = openai
    cap: str = "max_tokens"
    seed: str = ""


SERVICES: dict[str, Service] = {
    "openai": Service(
        "https://api.openai.com/v1", ("OPENAI_API_KEY",), cap="max_completion_tokens"
    ),
    "anthropic": Service("https://api.anthropic.com/v1", ("ANTHROPIC_API_KEY",), anthropic),
    "gemini": Service(
        "https://generativelanguage.googleapis.com/v1beta",
        ("GEMINI_API_KEY", "GOOGLE_API_KEY"),
        gemini,
        cap="maxOutputTokens",
        seed="seed",
    ),
    "xai": Service("https://api.x.ai/v1", ("XAI_API_KEY",)),
    "deepseek": Service("https://api.deepseek.com/v1", ("DEEPSEEK_API_KEY",)),
    "moonshot": Service("https://api.moonshot.ai/v1", ("MOONSHOT_API_KEY",)),
    "minimax": Service("https://api.minimax.io/v1", ("MINIMAX_API_KEY",)),
    "mistral": Service("https://api.mistral.ai/v1", ("MISTRAL_API_KEY",), seed="random_seed"),
    "openrouter": Service("https://openrouter.ai/api/v1", ("OPENROUTER_API_KEY",)),
}
assert set(SERVICES) == set(PROVIDERS)


@dataclass(frozen=True, slots=True)
class Route:
    """How one teacher is reached. `name` and `model` are part of each answer's identity.

    The key itself is no field, so that no record, error or log can hold it by accident.
    """

    provider: str
    base: str
    model: str
    dialect: Dialect
    keys: tuple[str, ...]
    cap: str
    seed: str

    @property
    def name(self) -> str:
        """The provider, or the server's URL where the recipe gives one."""
        return self.base if self.provider == SERVER else self.provider

    @property
    def teacher(self) -> str:
        """What people call the teacher: provider:model, or at a URL the model alone."""
        return self.model if self.provider == SERVER else f"{self.provider}:{self.model}"

    @property
    def local(self) -> bool:
        """Whether the server is this machine."""
        return is_loopback(urlsplit(self.base).hostname or "")

    @property
    def url(self) -> str:
        """Where questions go."""
        return self.base + self.dialect.path(self.model)

    def key(self) -> str:
        """The key, from the environment; "" where none is needed.

        Raises InputError naming the variable that is not set.
        """
        for variable in self.keys:
            if value := os.environ.get(variable, "").strip():
                return value
        if self.provider == SERVER and not self.keys:
            return ""
        wanted = " or ".join(self.keys)
        raise InputError(f"No key for {self.teacher}: set the environment variable {wanted}.")


def route(section: TeacherSection) -> Route:
    """The route that a recipe's [teacher] means.

    Raises InputError for a URL that is none, holds a secret, or sends answers in the clear.
    """
    if section.url is not None:
        base = _checked(section.url, section.insecure)
        keys = (section.key,) if section.key else ()
        like = SERVICES[section.dialect]
        cap, seed = ("max_tokens", "seed") if section.dialect == "openai" else (like.cap, like.seed)
        return Route(SERVER, base, section.model, like.dialect, keys, cap, seed)
    provider, _, model = section.model.partition(":")
    if not model.strip():
        raise InputError(f"teacher.model = {section.model!r} names no model after the colon")
    service = SERVICES[provider]
    keys = (section.key,) if section.key else service.keys
    return Route(provider, service.base, model, service.dialect, keys, service.cap, service.seed)


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _checked(url: str, insecure: bool) -> str:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError as error:
        raise InputError(f"teacher.url is not a URL: {error}") from None
    if parts.scheme not in ("http", "https") or not host:
        raise InputError("teacher.url must be as http://127.0.0.1:8000/v1 or https://HOST/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise InputError(
            "teacher.url holds a user name, a password or a query: a run folder keeps the URL, so "
            "no secret may be in it. Name the variable that holds the key in teacher.key."
        )
    if parts.scheme == "http" and not is_loopback(host) and not insecure:
        raise InputError(
            f"teacher.url would send key and prompts to {host} in the clear: use https, or say "
            "teacher.insecure = true where the network is your own"
        )
    base = url.rstrip("/")
    return base.removesuffix("/chat/completions")

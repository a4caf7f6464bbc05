"""What the headers of a response tell of limits, and of when to ask again."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime

_RESET = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?!s))?(?:([\d.]+)s)?(?:([\d.]+)ms)?$")


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds that Retry-After asks for, told in seconds, milliseconds or as a date."""
    exact = headers.get("retry-after-ms")
    if exact is not None:
        try:
            return max(0.0, float(exact) / 1000)
        except ValueError:
            pass
    told = headers.get("Retry-After")
    if told is None:
        return None
    try:
        return max(0.0, float(told))
    except ValueError:
        pass
    try:
        until = parsedate_to_datetime(told)
    except ValueError:
        return None
    return max(0.0, until.timestamp() - time.time())


def limits_told(headers: Mapping[str, str]) -> list[tuple[str, float, float, float]]:
    """What headers tell of each limit: name, most, left, and seconds until it is whole again."""
    found: list[tuple[str, float, float, float]] = []
    for name in ("requests", "tokens", "input-tokens", "output-tokens"):
        for most, left, reset in (
            (
                f"x-ratelimit-limit-{name}",
                f"x-ratelimit-remaining-{name}",
                f"x-ratelimit-reset-{name}",
            ),
            *((f"anthropic-ratelimit-{name}-{part}" for part in ("limit", "remaining", "reset")),),
        ):
            if most not in headers or left not in headers:
                continue
            try:
                limit, rest = float(headers[most]), float(headers[left])
            except ValueError:
                continue
            if limit > 0 and rest >= 0:
                found.append((name, limit, rest, _seconds(headers.get(reset, ""))))
    return found


def _seconds(reset: str) -> float:
    """Seconds of `6m0s`, `20ms`, `1.5` or an RFC 3339 time; 0 where it says nothing."""
    try:
        return max(0.0, float(reset))
    except ValueError:
        pass
    if reset and (match := _RESET.match(reset)):
        d, h, m, s, ms = (float(part or 0) for part in match.groups())
        return 86400 * d + 3600 * h + 60 * m + s + ms / 1000
    try:
        return max(0.0, datetime.fromisoformat(reset).timestamp() - time.time())
    except ValueError:
        return 0.0

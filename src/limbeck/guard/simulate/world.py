"""What honest and hostile share: networks, clients, models, payment forms, popular prompts.

Networks are /24s of the reserved class E block and AS numbers are private ones, so that nothing
here names a real place. A network is a number below 2**20: twelve bits of prefix, eight below it.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from limbeck.guard.arrow import Array, pa
from limbeck.guard.simulate.keys import Ints, Keys, below, fraction, joined, mix

HOMES, MOBILE, CLOUD, OFFICES = (0, 2048), (2048, 2064), (2064, 2080), (2560, 4096)  # prefixes
MODELS = ("orin-1-mini", "orin-1", "orin-1-max", "orin-2")
NEW_MODEL = 3  # the one released in the middle of the simulation
CLIENTS = (
    "python-sdk/1.42.0", "python-sdk/1.41.2", "node-sdk/4.18.1", "python-sdk/1.38.0", "web/2026.2",
    "node-sdk/4.16.0", "requests/2.32", "aiohttp/3.12", "go-sdk/0.9.4", "java-sdk/2.1.0",
    "curl/8.9", "chainlike/0.31", "chainlike/0.29", "java-sdk/1.9.3", "n8m/1.88", "rust-sdk/0.4.0",
    "okhttp/5.1", "sheets-addon/12", "ide-plugin/3.4", "gitmsg/2.3", "reviewbot/1.7",
    "notetaker/0.8", "evalkit/0.14", "evalkit/0.13",
)  # fmt: skip
PLAIN_CLIENTS = 18  # the first ones; what follows are tools with prompts of their own
CHANNELS = ("web", "sales", "education", "research", "startup", "sponsor", "partner")
TIERS = ("free", "pay-as-you-go", "team", "enterprise")
WEBMAIL = (
    "mailbox.example", "postino.example", "inbox.example", "fastpost.example", "brief.example",
    "correo.example", "yomail.example", "letterbox.example",
)  # fmt: skip
POPULAR = 4_000  # prompts of tutorials and lists that many people paste


def home(rng: np.random.Generator, n: int) -> Ints:
    """Residential networks: some prefixes hold many more customers than others."""
    return residence(rng.integers(1, 1 << 63, n, dtype=np.int64).astype(np.uint64))


def residence(key: Keys) -> Ints:
    """The residential network that each key stands for, spread as in `home`."""
    prefix = (HOMES[1] * fraction(key) ** 1.6).astype(np.int64)
    return prefix * 256 + below(mix(key, 1), 256)


def mobile(rng: np.random.Generator, n: int) -> Ints:
    """Mobile networks: few, behind carrier-grade NAT, shared by everyone."""
    return _network(rng, n, MOBILE, 1.4)


def cloud(rng: np.random.Generator, n: int) -> Ints:
    """Hosting networks, where programs run."""
    return _network(rng, n, CLOUD, 1.4)


def office(rng: np.random.Generator, n: int) -> Ints:
    """Networks of firms and schools."""
    return _network(rng, n, OFFICES, 1.0)


def asn(network: Ints) -> Ints:
    """The AS number of each network; -1 where there is none."""
    prefix = network >> 8
    carriers = (prefix % 61) ** 2 // 61  # uneven: the first carriers hold most prefixes
    few = np.where(prefix < HOMES[1], carriers, 100 + prefix % 16)
    number = 4_200_000_000 + np.where(prefix < OFFICES[0], few, prefix)
    return np.where(network < 0, -1, number)


@lru_cache(maxsize=1)
def networks() -> Array:
    """The spelling of every network."""
    high = [f"{240 + p // 256}.{p % 256}." for p in range(4096)]
    low = [f"{i}.0/24" for i in range(256)]
    index = np.arange(1 << 20)
    return joined(
        pa.array(high).take(pa.array(index >> 8)), pa.array(low).take(pa.array(index & 255))
    )


def _network(rng: np.random.Generator, n: int, prefixes: tuple[int, int], skew: float) -> Ints:
    low, high = prefixes
    prefix = low + ((high - low) * rng.random(n) ** skew).astype(np.int64)
    return prefix * 256 + rng.integers(0, 256, n)

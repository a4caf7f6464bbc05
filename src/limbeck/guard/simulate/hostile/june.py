"""All at once, at the size that was named in June 2026: 25,000 accounts, 26 calls a day."""

from limbeck.guard.simulate.attack import Attack

ATTACK = Attack(
    "anthropic-june",
    accounts=25_000,
    per_day=26.0,
    cover=0.5,
    tasks=10_000_000,
    wordings=200,
    strength=0.5,
    residential=1.0,
    payment=1,
    programmes=0.5,
    signup=45.0,
    sync=0.2,
    daylight=0.3,
    wobble=0.3,
    stack=0.7,
    pivot=0.5,
)

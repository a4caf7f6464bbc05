"""Copies what an honest bot asks, to have it blamed. It is no campaign to be found by."""

from limbeck.guard.simulate.attack import Attack

ATTACK = Attack(
    "framing", accounts=100, cover=0.3, residential=1.0, payment=1, signup=20.0, frames=1
)

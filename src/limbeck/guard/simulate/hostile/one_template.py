"""The weakest: one template, hosting networks, eight accounts a card, no cover."""

from limbeck.guard.simulate.attack import Attack

ATTACK = Attack("one-template", cover=0.0, focus=1)

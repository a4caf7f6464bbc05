"""Every prompt worded on its own; what is left in common is the list of tasks."""

from limbeck.guard.simulate.attack import Attack

ATTACK = Attack("unique", cover=0.5, wordings=0)

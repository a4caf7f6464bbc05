"""Three calls in four are honest traffic, and half the accounts keep their cover's client."""

from dataclasses import replace

from limbeck.guard.simulate.hostile import jitter

ATTACK = replace(jitter.ATTACK, name="cover-75", cover=0.75, stack=0.5)

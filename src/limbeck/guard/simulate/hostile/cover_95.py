"""Nineteen calls in twenty are honest traffic."""

from dataclasses import replace

from limbeck.guard.simulate.hostile import cover_75

ATTACK = replace(cover_75.ATTACK, name="cover-95", cover=0.95)

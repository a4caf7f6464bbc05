"""Behind residential proxies, most sessions of an account at one address."""

from dataclasses import replace

from limbeck.guard.simulate.hostile import unique

ATTACK = replace(unique.ATTACK, name="residential", residential=1.0)

"""No waves: Poisson arrivals, half of the accounts in daylight, uneven days."""

from dataclasses import replace

from limbeck.guard.simulate.hostile import unique_payment

ATTACK = replace(unique_payment.ATTACK, name="jitter", sync=0.0, daylight=0.5, wobble=0.6)

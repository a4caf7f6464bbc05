"""Half the accounts move to a new model within a day of its release."""

from dataclasses import replace

from limbeck.guard.simulate.hostile import unique_payment

ATTACK = replace(unique_payment.ATTACK, name="pivot", pivot=0.5)

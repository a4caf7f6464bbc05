"""A reseller of access: each account also serves two dozen unrelated customers."""

from dataclasses import replace

from limbeck.guard.simulate.hostile import unique_payment

ATTACK = replace(
    unique_payment.ATTACK, name="proxy-network", cover=0.75, customers=24, programmes=0.6
)

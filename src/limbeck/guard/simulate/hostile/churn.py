"""Accounts are thrown away after three days, before any one of them has said much."""

from dataclasses import replace

from limbeck.guard.simulate.hostile import unique_payment

ATTACK = replace(unique_payment.ATTACK, name="churn", life=3.0)

"""A payment method for every account, as bought cards give."""

from dataclasses import replace

from limbeck.guard.simulate.hostile import residential

ATTACK = replace(residential.ATTACK, name="unique-payment", payment=1)

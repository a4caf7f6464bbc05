"""Through honest resellers, whose payment and gateway other customers share."""

from dataclasses import replace

from limbeck.guard.simulate.hostile import unique

ATTACK = replace(unique.ATTACK, name="shared-reseller", agencies=3)

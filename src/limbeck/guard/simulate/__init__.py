"""Traffic from a seed, honest and hostile, to learn a detector's false alarms and misses by.

Everything here is simulated; docs/decisions/0018-simulator.md says what is assumed.
"""

from limbeck.guard.simulate.attack import Attack
from limbeck.guard.simulate.hostile import attacks
from limbeck.guard.simulate.plan import Plan
from limbeck.guard.simulate.write import Summary, simulate

__all__ = ["Attack", "Plan", "Summary", "attacks", "simulate"]

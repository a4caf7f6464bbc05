"""A pool of sixty templates, each loosened, behind some cover."""

from limbeck.guard.simulate.attack import Attack

ATTACK = Attack("paraphrase", cover=0.5, wordings=60, strength=0.3)

"""How often honest families look as even as a p-value says: log-normal people, no campaign.

Families of 20 to 1,000 people whose calls are Poisson about log-normal rates (sigma .8 to 1.4,
median e^.5 to e^3). Beside guard's p-value stands a normal tail in spreads of z's own null. Prints
a line a measurement on standard error and one JSON document last on standard output, which is also
kept in benchmarks/results/guard.json.

    python benchmarks/evenness.py [--families 20000] [--seeds 5]
"""

from __future__ import annotations

import argparse
import statistics
import sys

import numpy as np
from numpy.typing import NDArray
from results import keep
from scipy import stats

from limbeck.guard import even, score

LEVELS = (1e-3, 1e-4, 1e-5)


def main() -> None:
    """Draw, compare, and keep the result."""
    style = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=style)
    parser.add_argument("--families", type=int, default=20_000)
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    drawn = [_drawn(args.families, seed) for seed in range(args.seeds)]
    rows = []
    for level in LEVELS:
        ours = [float((score.chance(z) <= level).mean()) for z in drawn]
        normal = [float((stats.norm.sf(z) <= level).mean()) for z in drawn]
        said = (
            f"p <= {level:g}: {statistics.fmean(ours):.2g}, normal {statistics.fmean(normal):.2g}"
        )
        print(said, file=sys.stderr)  # noqa: T201
        rows.append(
            {
                "what": f"evenness_p_{level:g}",
                "unit": f"share of {args.families} honest families at p <= {level:g}",
                "ours": statistics.fmean(ours),
                "peers": {"normal tail": statistics.fmean(normal)},
                "runs": len(ours),
                "each": ours,
            }
        )
    keep("guard", rows, simulated=True)


def _drawn(families: int, seed: int) -> NDArray[np.float64]:
    """How far each family stands out from the null of all, in spreads, (families,)."""
    rng = np.random.default_rng(seed)
    sizes = np.exp(rng.uniform(np.log(20), np.log(1_000), families)).astype(int)
    laws = zip(rng.uniform(0.5, 3, families), rng.uniform(0.8, 1.4, families), sizes, strict=True)
    people = (rng.poisson(np.exp(rng.normal(*law))) for law in laws)
    counts = [np.unique(x[x > 0], return_counts=True) for x in people]
    of = np.repeat(np.arange(families), [len(calls) for calls, _ in counts])
    calls, users = (np.concatenate(part) for part in zip(*counts, strict=True))
    z = even.evenness(of, calls, users.astype(float), threads=2).z
    return score.above(z, score.null(z))


if __name__ == "__main__":
    main()

"""Linked templates → families: what one group of accounts uses together."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.guard.arrow import csgraph, sparse
from limbeck.guard.link import Edges

RESOLUTION = 0.5
"""Below modularity's own 1: a pool of templates that all members share stays whole."""
LARGE = 3
"""Components up to this many keys are families as they are; larger ones go through Leiden."""


def families(keys: NDArray[np.int64], edges: Edges, seed: int = 0) -> NDArray[np.int64]:
    """The family of each key, as a number from 0; a key without links is one by itself.

    Connected components first, so that Leiden (Traag, Waltman and van Eck, 2019) sees only what
    can be split; a campaign's pool of templates and an honest tool's may touch in a few accounts.
    """
    position = np.searchsorted(keys, np.stack([edges.one, edges.other]))
    n = len(keys)
    graph = sparse.coo_matrix((edges.weight, (position[0], position[1])), shape=(n, n))
    _, component = csgraph.connected_components(graph, directed=False)
    family = component.astype(np.int64)
    large = np.bincount(component)[component[position[0]]] > LARGE
    if large.any():
        split = _leiden(position[:, large], edges.weight[large], seed)
        nodes, group = np.array(list(split)), np.array(list(split.values()))
        family[nodes] = family.max() + 1 + group
    return np.unique(family, return_inverse=True)[1].astype(np.int64)


def _leiden(pairs: NDArray[np.int64], weight: NDArray[np.float64], seed: int) -> dict[int, int]:
    import graspologic_native  # pyright: ignore[reportMissingTypeStubs]

    native: Any = graspologic_native

    rows = [
        (str(a), str(b), float(w)) for a, b, w in zip(*pairs.tolist(), weight.tolist(), strict=True)
    ]
    _, found = native.leiden(
        edges=rows,
        starting_communities=None,
        resolution=RESOLUTION,
        randomness=0.001,
        iterations=2,
        use_modularity=True,
        seed=seed,
        trials=1,
    )
    return {int(node): int(group) for node, group in found.items()}

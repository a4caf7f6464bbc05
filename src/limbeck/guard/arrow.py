"""PyArrow and SciPy ship no types: for a strict checker they are `Any`, said in this one place."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import pyarrow  # pyright: ignore[reportMissingTypeStubs]
import pyarrow.compute  # pyright: ignore[reportMissingTypeStubs]
import pyarrow.parquet  # pyright: ignore[reportMissingTypeStubs]
import scipy.sparse  # pyright: ignore[reportMissingTypeStubs]
import scipy.sparse.csgraph  # pyright: ignore[reportMissingTypeStubs]
import scipy.special  # pyright: ignore[reportMissingTypeStubs]
import scipy.stats  # pyright: ignore[reportMissingTypeStubs]
from numpy.typing import NDArray

pa: Any = pyarrow
pc: Any = pyarrow.compute
pq: Any = pyarrow.parquet
sparse: Any = scipy.sparse
csgraph: Any = scipy.sparse.csgraph
special: Any = scipy.special
stats: Any = scipy.stats

Array: TypeAlias = Any
Batch: TypeAlias = Any
Table: TypeAlias = Any
Schema: TypeAlias = Any


def column(table: Table, name: str) -> NDArray[np.int64]:
    """A column of integers."""
    return table[name].to_numpy().astype(np.int64)


def numbers(table: Table, name: str) -> NDArray[np.float64]:
    """A column of floats."""
    return table[name].to_numpy().astype(np.float64)

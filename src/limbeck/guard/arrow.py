"""PyArrow and SciPy ship no types: for a strict checker they are `Any`, said in this one place."""

from __future__ import annotations

from typing import Any, TypeAlias

import pyarrow  # pyright: ignore[reportMissingTypeStubs]
import pyarrow.compute  # pyright: ignore[reportMissingTypeStubs]
import pyarrow.parquet  # pyright: ignore[reportMissingTypeStubs]
import scipy.sparse  # pyright: ignore[reportMissingTypeStubs]
import scipy.sparse.csgraph  # pyright: ignore[reportMissingTypeStubs]
import scipy.special  # pyright: ignore[reportMissingTypeStubs]
import scipy.stats  # pyright: ignore[reportMissingTypeStubs]

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

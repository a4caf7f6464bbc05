"""PyArrow, which ships no types: for a strict type checker it is `Any`, said in this one place."""

from __future__ import annotations

from typing import Any, TypeAlias

import pyarrow  # pyright: ignore[reportMissingTypeStubs]
import pyarrow.compute  # pyright: ignore[reportMissingTypeStubs]
import pyarrow.parquet  # pyright: ignore[reportMissingTypeStubs]

pa: Any = pyarrow
pc: Any = pyarrow.compute
pq: Any = pyarrow.parquet

Array: TypeAlias = Any
Batch: TypeAlias = Any
Table: TypeAlias = Any
Schema: TypeAlias = Any

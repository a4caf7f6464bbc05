"""A Postgres table, read through DuckDB's extension of that name.

`postgres://user@host/database?table=schema.name`; the password is best left to `PGPASSWORD`.
"""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import duckdb

from limbeck.errors import InputError, ServiceError
from limbeck.guard.arrow import pa
from limbeck.guard.readers.block import ROWS, Block

SCHEMES = ("postgres", "postgresql")


def is_postgres(source: str) -> bool:
    """Whether a source is a Postgres address."""
    return source.partition("://")[0] in SCHEMES


def quoted(name: str) -> str:
    """A name as SQL's identifier."""
    return '"' + name.replace('"', '""') + '"'


def parts(source: str) -> tuple[str, str, list[str]]:
    """The address without the table, how it may be shown, and the table's name, part by part."""
    url = urlsplit(source)
    query = dict(parse_qsl(url.query))
    table = query.pop("table", "")
    if not table:
        raise InputError("A Postgres source names its table: postgres://user@host/db?table=calls")
    address = urlunsplit(url._replace(query=urlencode(query)))
    shown = f"postgres://{url.hostname or 'localhost'}{url.path}?table={table}"
    names = table.split(".") if "." in table else ["public", table]
    return address, shown, names


class Postgres:
    """An open, read-only connection to one table."""

    def __init__(self, source: str) -> None:
        address, self.shown, names = parts(source)
        self._table = ".".join(quoted(name) for name in ["logs", *names])
        self._connection = duckdb.connect()
        try:
            self._connection.execute("SET TimeZone = 'UTC'")
            self._connection.install_extension("postgres")
            self._connection.load_extension("postgres")
        except duckdb.Error:
            raise ServiceError(
                "Postgres needs DuckDB's extension `postgres`, which could not be installed here. "
                'Where there is a network: python -c "import duckdb; '
                "duckdb.connect().install_extension('postgres')\"; or export the table as Parquet."
            ) from None
        literal = "'" + address.replace("'", "''") + "'"
        try:
            self._connection.execute(f"ATTACH {literal} AS logs (TYPE postgres, READ_ONLY)")
        except duckdb.Error:  # its message repeats the address, password and all
            raise ServiceError(f"{self.shown} does not answer, or lets nobody in") from None

    def names(self) -> list[str]:
        """The table's columns."""
        try:
            relation = self._connection.sql(f"SELECT * FROM {self._table} LIMIT 0")
        except duckdb.Error:
            raise InputError(f"{self.shown}: there is no such table") from None
        return relation.columns

    def read(self, wanted: list[str]) -> Iterator[Block]:
        """The columns `wanted`, block by block."""
        columns = ", ".join(quoted(name) for name in wanted)
        relation = self._connection.sql(f"SELECT {columns} FROM {self._table}")
        at = 1
        for batch in relation.to_arrow_reader(ROWS):
            rows = pa.array(range(at, at + batch.num_rows))
            yield Block(self.shown, rows, pa.Table.from_batches([batch]))
            at += batch.num_rows

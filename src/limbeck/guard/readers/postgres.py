"""A Postgres table, read through DuckDB's extension of that name.

`postgres://user@host/database?table=schema.name`; the password is best left to `PGPASSWORD`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import duckdb

from limbeck.errors import InputError, ServiceError
from limbeck.guard.arrow import pa
from limbeck.guard.readers.block import ROWS, Block

SCHEME = re.compile(r"postgres(ql)?(\+\w+)?", re.IGNORECASE)
"""With a driver's name too, as SQLAlchemy writes it."""


def is_postgres(source: str) -> bool:
    """Whether a source is a Postgres address."""
    return "://" in source and SCHEME.fullmatch(source.partition("://")[0]) is not None


def shown(source: str) -> str:
    """What may be shown of a source: a path as it is; of an address its host, path and table.

    Takes what no parser would, since passwords hold any sign: what stands before the last `@` is
    never shown, nor anything where that sign may be part of a password in the query.
    """
    scheme, is_address, rest = source.partition("://")
    if not is_address:
        return source
    scheme = "postgres" if is_postgres(source) else scheme
    before, _, after = rest.rpartition("@")
    if "?" in before or "#" in before:
        return f"{scheme}://…"
    place, _, query = after.partition("?")
    host, slash, path = place.partition("/")
    host = host if host.startswith("[") else host.partition(":")[0]
    table = dict(parse_qsl(query)).get("table")
    return f"{scheme}://{host or 'localhost'}{slash}{path}" + (f"?table={table}" if table else "")


def quoted(name: str) -> str:
    """A name as SQL's identifier."""
    return '"' + name.replace('"', '""') + '"'


def parts(source: str) -> tuple[str, list[str]]:
    """The address without the table, and the table's name, part by part."""
    try:
        url = urlsplit(source)
    except ValueError:
        raise InputError(f"{shown(source)} is no address of Postgres") from None
    if "@" in url.path + url.query or url.fragment:
        raise InputError(
            f"{shown(source)}: in a password, write / ? # @ as %2F %3F %23 %40, or set PGPASSWORD"
        )
    query = dict(parse_qsl(url.query))
    table = query.pop("table", "")
    if not table:
        raise InputError("A Postgres source names its table: postgres://user@host/db?table=calls")
    address = urlunsplit(url._replace(scheme="postgres", query=urlencode(query)))
    return address, table.split(".") if "." in table else ["public", table]


class Postgres:
    """An open, read-only connection to one table."""

    def __init__(self, source: str) -> None:
        address, names = parts(source)
        self.shown = shown(source)
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
        at = 1
        try:
            relation = self._connection.sql(f"SELECT {columns} FROM {self._table}")
            for batch in relation.to_arrow_reader(ROWS):
                rows = pa.array(range(at, at + batch.num_rows))
                yield Block(self.shown, rows, pa.Table.from_batches([batch]))
                at += batch.num_rows
        except (duckdb.Error, pa.ArrowException, OSError):  # its message may repeat the address
            raise ServiceError(f"{self.shown} could not be read beyond row {at - 1:,}") from None

"""Names made unreadable before guard sees them: equal ones stay equal, under a key of the user's.

BLAKE2b with a key, 128 bits, as hexadecimal. The key comes from the environment and is never shown;
who has it can find out whether a name that he guesses is among them, so keep it as a password.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Final

from limbeck.errors import InputError
from limbeck.files import whole_file
from limbeck.guard.arrow import Array, pa, pq
from limbeck.guard.calls import text_column
from limbeck.guard.readers import csv, jsonl, parquet
from limbeck.guard.readers.source import ending

SALT: Final = "LIMBECK_SALT"
SHORTEST: Final = 16


def salt() -> bytes:
    """The key, from the environment.

    Raises:
        InputError: There is none, or one that could be guessed.
    """
    found = os.environ.get(SALT, "")
    if len(found.encode()) < SHORTEST:
        raise InputError(
            f"Set {SALT} to a secret of at least {SHORTEST} bytes, and keep it: "
            "the same names get the same pseudonyms only with the same secret"
        )
    return found.encode()


def pseudonymise(path: Path, columns: list[str], out: Path, key: bytes) -> dict[str, int]:
    """Copy a table (Parquet, CSV, JSON Lines) to Parquet, with the values of `columns` hashed.

    Spaces around a name and its case do not matter; nothing stays nothing. Each column has its own
    hashes, so that a payment cannot be matched with an e-mail domain.

    Returns:
        How many values of each column were hashed.

    Raises:
        InputError: No column is named, one is not there or is no text, a row cannot be read, or
            `out` is `path` or no .parquet: then nothing is written.
    """
    kind = ending(path)
    reader = {"parquet": parquet, "csv": csv, "jsonl": jsonl}.get(kind)
    if reader is None or not path.is_file():
        raise InputError(f"{path} is no Parquet, CSV or JSON Lines file")
    if out.suffix != ".parquet":
        raise InputError(f"{out} will be Parquet: name it with .parquet at its end")
    if out.resolve() == path.resolve():
        raise InputError(f"{out} is what is read: name another file to write")
    if not columns:
        raise InputError("Name the columns to hash, as --columns payment,email_domain")
    names = list(reader.names(path))
    if missing := [name for name in columns if name not in names]:
        raise InputError(f"{path} has no column {', '.join(missing)}; it has {', '.join(names)}")
    counts = dict.fromkeys(columns, 0)
    writer = None
    with whole_file(out) as part:
        try:
            for block in reader.read(path, names):
                if block.bad:
                    raise InputError(f"{path}, row {block.bad[0].row}: {block.bad[0].reason}")
                table = block.columns
                for name in names:
                    column = table[name].combine_chunks()
                    if name in columns or kind != "parquet":
                        column = _text(column, f"{path}, column {name}")
                    if name in columns:
                        counts[name] += len(column) - column.null_count
                        column = hashed(column, name, key)
                    table = table.set_column(table.column_names.index(name), name, column)
                writer = writer or pq.ParquetWriter(part, table.schema, compression="zstd")
                writer.write_table(table)
            if writer is None:
                raise InputError(f"{path} has no rows")
        finally:
            if writer is not None:
                writer.close()
    return counts


def _text(column: Array, where: str) -> Array:
    try:
        return text_column(column)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise InputError(f"{where}: a {column.type} is no text, and cannot be hashed") from None


def hashed(column: Array, name: str, key: bytes) -> Array:
    """A pseudonym for each text of a column; those of another column differ."""
    once = column.dictionary_encode()
    secret = hashlib.blake2b(name.encode(), key=hashlib.sha512(key).digest()).digest()
    made = [
        hashlib.blake2b(value.strip().lower().encode(), digest_size=16, key=secret).hexdigest()
        for value in once.dictionary.to_pylist()
    ]
    return pa.DictionaryArray.from_arrays(once.indices, pa.array(made, pa.string())).cast(
        pa.string()
    )

"""Opening of Arrow tables that may be damaged, or a stranger's.

Arrow doesn't check the contents of a file that it opens: an offset that leads beyond a buffer is followed, and ends the
process or brings its memory into a text.
"""

from collections.abc import Collection
from pathlib import Path

import pyarrow as pa

from data.errors import UserError


def open_table(
    source: Path | pa.Buffer | bytes,
    where: str,
    remedy: str,
    schema: pa.Schema | None = None,
    optional: Collection[str] = (),
    unread: str | None = None,
) -> pa.Table:
    """Return the table in an Arrow IPC file, memory-mapped, after checking its contents.

    Args:
        source: the file, or its contents.
        where: the file's name for messages.
        remedy: what to do about a damaged file, for messages.
        schema: columns that the table must have, among others, of these types and without nulls where none are allowed.
        optional: names of columns in `schema` that may be missing.
        unread: name of a column of large values, of which only the outermost offsets are checked, so that it isn't
            read. Whoever reads a value must check its offsets.

    Raises:
        FileNotFoundError: if the file doesn't exist.
        UserError: if the file is damaged or doesn't have these columns.
    """
    try:
        table = pa.ipc.open_file(pa.memory_map(str(source)) if isinstance(source, Path) else source).read_all()
        for name, column in zip(table.column_names, table.columns, strict=True):
            column.validate(full=name != unread)
        problem = find_schema_problem(table, schema, optional) if schema else ""
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, OverflowError, MemoryError) as error:
        raise UserError(f"{where} is damaged: {' '.join(str(error).split())}; {remedy}") from error
    if problem:
        raise UserError(f"{where} doesn't have the columns that this version writes: {problem}; {remedy}")
    return table


def find_schema_problem(table: pa.Table, schema: pa.Schema, optional: Collection[str]) -> str:
    """Return in words how a table differs from the columns that it must have; '' if it has them all."""
    for field in schema:
        count = table.column_names.count(field.name)
        if count != 1 and not (count == 0 and field.name in optional):
            return f"{field.name} occurs {count} times"
        if not count:
            continue
        column = table[field.name]
        if column.type != field.type:
            return f"{field.name} is of type {column.type}, not {field.type}"
        if not field.nullable and has_nulls(column):
            return f"{field.name} has empty values"
    return ""


def has_nulls(column: pa.ChunkedArray) -> bool:
    """Return whether a column, or the lists in it, contain nulls."""
    if column.null_count:
        return True
    return pa.types.is_list(column.type) and any(chunk.flatten().null_count for chunk in column.chunks)

"""Opening of Arrow tables that may be damaged, or a stranger's.

Arrow doesn't check the contents of a file that it opens: an offset that leads beyond a buffer is followed, and ends the
process or brings its memory into a text.
"""

import struct
from collections.abc import Collection
from pathlib import Path

import pyarrow as pa

from data.errors import UserError

CONTINUATION = 0xFFFFFFFF
"""First four bytes of a message; Arrow before 0.15 wrote none."""


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
        buffer = pa.memory_map(str(source)).read_buffer() if isinstance(source, Path) else pa.py_buffer(source)
        reader = pa.ipc.open_file(buffer)
        if is_compressed(memoryview(buffer)):
            raise ValueError("its columns are compressed, which this project's files never are")
        table = reader.read_all()
        for name, column in zip(table.column_names, table.columns, strict=True):
            column.validate(full=name != unread)
        problem = find_schema_problem(table, schema, optional) if schema else ""
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, OverflowError, MemoryError, struct.error) as error:
        raise UserError(f"{where} is damaged: {' '.join(str(error).split())}; {remedy}") from error
    if problem:
        raise UserError(f"{where} doesn't have the columns that this version writes: {problem}; {remedy}")
    return table


def is_compressed(file: memoryview) -> bool:
    """Return whether any record batch or dictionary in an Arrow IPC file is compressed. Some kB can stand for many GB,
    and Arrow doesn't say so before it reads them. Raises struct.error if the file is damaged.

    Format: https://arrow.apache.org/docs/format/Columnar.html#ipc-file-format; Footer, Message and RecordBatch are
    FlatBuffers tables: https://flatbuffers.dev/internals
    """
    footer = len(file) - 10 - read_integer(file, len(file) - 10)
    for dictionaries_or_batches in (2, 3):
        blocks = read_reference(file, find_field(file, read_reference(file, footer), dictionaries_or_batches))
        for number in range(read_integer(file, blocks) if blocks else 0):
            (offset,) = struct.unpack_from("<q", file, blocks + 4 + 24 * number)
            start = offset + (8 if read_integer(file, offset) == CONTINUATION else 4)
            batch = read_reference(file, find_field(file, read_reference(file, start), 2))
            if dictionaries_or_batches == 2:
                batch = read_reference(file, find_field(file, batch, 1))
            if find_field(file, batch, 3):
                return True
    return False


def read_integer(file: memoryview, position: int) -> int:
    """Return the unsigned 32-bit integer at a position."""
    if position < 0:
        raise struct.error("a position before the file")
    (value,) = struct.unpack_from("<I", file, position)
    return int(value)


def read_reference(file: memoryview, position: int) -> int:
    """Return the position that the FlatBuffers offset at a position refers to; 0 if `position` is 0."""
    return position + read_integer(file, position) if position else 0


def find_field(file: memoryview, table: int, index: int) -> int:
    """Return the position of a field of a FlatBuffers table; 0 if the table at `table` doesn't have it."""
    (distance,) = struct.unpack_from("<i", file, table)
    size, entry = table - distance, 4 + 2 * index
    if size < 0:
        raise struct.error("a position before the file")
    if entry >= struct.unpack_from("<H", file, size)[0]:
        return 0
    (offset,) = struct.unpack_from("<H", file, size + entry)
    return table + offset if offset else 0


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

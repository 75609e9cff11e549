"""Read and write files whole: JSON and Arrow tables that a reader never sees half written."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from data.errors import UserError
from data.sources.json_text import parse_json


@contextlib.contextmanager
def appearing_whole(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its name once the block has ended without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # a machine that dies mustn't leave the name without the contents
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file that appears whole or not at all."""
    with appearing_whole(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """A JSON file that a user names. A UserError says why it can't be read."""
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{path} isn't JSON: {error}") from error


def write_table(path: Path, table: pa.Table) -> None:
    """Write an Arrow IPC file that appears whole or not at all."""
    with (
        appearing_whole(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as writer,
    ):
        writer.write_table(table)


def read_table(path: Path) -> pa.Table:
    """An Arrow IPC file, mapped into memory."""
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def short_hash(value: Any) -> str:
    """16 hexadecimal digits that stand for a JSON value."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def hash_of_table(table: pa.Table) -> str:
    """16 hexadecimal digits that stand for a table's contents."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return hashlib.sha256(sink.getvalue()).hexdigest()[:16]

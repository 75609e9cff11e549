"""Atomic reading and writing of JSON and Arrow files: a reader never sees a half-written file."""

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from data.errors import UserError
from data.sources.json_text import parse_json


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`. If the block ends without an error, the file there is renamed to `path`,
    replacing an existing file; otherwise it is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        yield temporary
        sync(temporary)  # after a crash, the name must not exist without the contents
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        if error.filename in (None, str(temporary)):  # a full disk is reported without a name
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until the contents of a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Wait until a folder with all its files and subfolders is on the disk. Call this before the folder is renamed, so
    that after a power cut the new name doesn't exist without the contents.
    """
    for path in [*folder.rglob("*"), folder]:
        sync(path)


def rename_folder(folder: Path, target: Path) -> None:
    """Rename a folder to `target`, which must not exist or be an empty folder, after everything in it is on the disk;
    wait until the new name is, too.
    """
    sync_folder(folder)
    folder.rename(target)
    sync(target.parent)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file that the user named. Raises UserError if it can't be read."""
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{path} isn't JSON: {error}") from error


def write_arrow_table(path: Path, table: pa.Table) -> None:
    """Write an Arrow IPC file atomically."""
    with (
        atomic_write(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as writer,
    ):
        writer.write_table(table)


def hash_json(value: Any) -> str:
    """Return 16 hexadecimal digits that identify a JSON value, from the SHA-256 of its text."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def hash_arrow_table(table: pa.Table) -> str:
    """Return 16 hexadecimal digits that identify the schema and the contents of a table."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return hashlib.sha256(sink.getvalue()).hexdigest()[:16]

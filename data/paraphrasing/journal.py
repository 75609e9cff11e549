"""Journal of answers: every line is on disk before it is used.

    STORE/CORPUS/SPLIT/paraphrases.jsonl

If a process is killed while it writes, the last line is incomplete; it is removed when the journal is opened again.
"""

import asyncio
import contextlib
import json
import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import filelock

from data.errors import UserError
from data.sources.json_text import parse_json
from data.store.files import sync

Line = dict[str, Any]

FIELDS: dict[str, type] = {
    **dict.fromkeys(("key", "model", "instruction", "answer", "problem", "time"), str),
    **dict.fromkeys(("input_tokens", "output_tokens"), int),
}
"""Fields of each line; `key` is hexadecimal."""


class Journal:
    """File of answers as JSON objects, one per line. Only one process at a time can append to it.

    Lines that arrive while others are being written and synced are written and synced together afterwards.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self.waiting: list[tuple[bytes, asyncio.Future[int]]] = []
        self.writer: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.enter_context(lock_journal(self.path))
            self.file = stack.enter_context(self.path.open("ab", buffering=0))
            # Without this, a power cut may remove the file even though its contents were synced.
            sync(self.path.parent)
            self.size = count_complete_bytes(self.path)
            self.file.truncate(self.size)
            self.stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stack.close()

    async def append(self, line: Line) -> int:
        """Append an answer as a line of JSON, and return its offset in the file in bytes once it is on disk.

        Raises OSError if the line can't be written; the file then contains no part of it.
        """
        written = asyncio.get_running_loop().create_future()
        self.waiting.append((json.dumps(line, ensure_ascii=False).encode(errors="replace") + b"\n", written))
        if self.writer is None or self.writer.done():
            self.writer = asyncio.create_task(self._write_waiting())
        return await asyncio.shield(written)

    async def _write_waiting(self) -> None:
        while self.waiting:
            batch, self.waiting = self.waiting, []
            try:
                await asyncio.to_thread(self._write, b"".join(line for line, _ in batch))
            except OSError as error:
                for _, written in batch:
                    written.set_exception(error)
                continue
            for line, written in batch:
                written.set_result(self.size)
                self.size += len(line)

    def _write(self, data: bytes) -> None:
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[self.file.write(rest) :]
            os.fsync(self.file.fileno())
        except OSError:
            self.file.truncate(self.size)
            raise


@contextlib.contextmanager
def lock_journal(path: Path) -> Iterator[None]:
    """Hold the lock of a journal within the context, so that no other process writes to it. Raises UserError if
    another process holds it.
    """
    try:
        with filelock.FileLock(path.with_suffix(".lock"), timeout=0):
            yield
    except filelock.Timeout:
        raise UserError(f"another command is writing to {path}: wait until it has ended") from None


def count_complete_bytes(path: Path) -> int:
    """Return the number of bytes of a file up to the end of its last complete line; 0 if it has none."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - 2**16)
            file.seek(start)
            last = file.read(end - start).rfind(b"\n")
            if last >= 0:
                return start + last + 1
            end = start
    return 0


def read_lines(path: Path) -> Iterator[tuple[int, Line]]:
    """Yield pairs of the offset in bytes and the content of each complete line in a journal, which records one answer;
    nothing if the file doesn't exist.

    Raises UserError if a complete line is not an answer.
    """
    if not path.exists():
        return
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return  # the writer was killed within this line
            try:
                value = parse_json(line)
                bytes.fromhex(value["key"])
                if not all(isinstance(value[name], kind) for name, kind in FIELDS.items()):
                    raise TypeError(f"not {FIELDS}")
                if datetime.fromisoformat(value["time"]).tzinfo is None:
                    raise ValueError("its time has no time zone")
            except (ValueError, TypeError, KeyError) as error:
                raise UserError(
                    f"{path}, line {number} isn't an answer ({error!r}): the file is damaged; remove that line, or "
                    "restore the file, and re-run the command"
                ) from error
            yield offset, value
            offset += len(line)


def read_line(file: BinaryIO, offset: int) -> Line:
    """Return the answer in the line of a journal that begins at an offset in bytes."""
    file.seek(offset)
    line: Line = json.loads(file.readline())
    return line

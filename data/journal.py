"""A journal of what has been answered: every line is on disk before anything else happens with it.

    STORE/CORPUS/SPLIT/paraphrases.jsonl

A line that was cut short, as its writer was killed, is the last one, and is removed when the journal is opened again.
"""

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import filelock

from data.errors import UserError

Line = dict[str, Any]


class Journal:
    """A file of JSON objects, one a line, that one process at a time appends to.

    Lines that come while others are being written and synced wait, and are then written and synced together.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self.waiting: list[tuple[bytes, asyncio.Future[int]]] = []
        self.writer: asyncio.Task[None] | None = None

    def __enter__(self) -> "Journal":
        self.lock = filelock.FileLock(self.path.with_suffix(".lock"), timeout=0)
        try:
            self.lock.acquire()
        except filelock.Timeout:
            raise UserError(f"another command is writing into {self.path}; wait until it has ended") from None
        self.file: BinaryIO = self.path.open("ab", buffering=0)
        self.size = whole_bytes(self.path)
        self.file.truncate(self.size)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.file.close()
        self.lock.release()

    async def append(self, line: Line) -> int:
        """Write a line; where it begins in the file is returned once it is on disk.

        Raises OSError where it can't be written; then nothing of it is there.
        """
        written = asyncio.get_running_loop().create_future()
        self.waiting.append((json.dumps(line, ensure_ascii=False).encode() + b"\n", written))
        if self.writer is None or self.writer.done():
            self.writer = asyncio.create_task(self._write_waiting())
        return await asyncio.shield(written)

    async def _write_waiting(self) -> None:
        while self.waiting:
            taken, self.waiting = self.waiting, []
            try:
                await asyncio.to_thread(self._write, b"".join(line for line, _ in taken))
            except OSError as error:
                for _, written in taken:
                    written.set_exception(error)
                continue
            for line, written in taken:
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


def whole_bytes(path: Path) -> int:
    """How much of a file are whole lines."""
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


def lines(path: Path) -> Iterator[tuple[int, Line]]:
    """A journal's lines, with where each begins; none where there is none. A UserError for a damaged one."""
    if not path.exists():
        return
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return  # cut short
            try:
                value = json.loads(line)
                value["key"], value["answer"]
            except (ValueError, TypeError, KeyError) as error:
                raise UserError(
                    f"{path}, line {number} isn't an answer ({error!r}): the file is damaged; remove that line, or "
                    "restore the file, and run this again"
                ) from error
            yield offset, value
            offset += len(line)


def line_at(file: BinaryIO, offset: int) -> Line:
    """The line that begins there."""
    file.seek(offset)
    line: Line = json.loads(file.readline())
    return line

"""A bounded cache on this machine's disk for blocks of remote files, shared by all its processes.

CHORALE_CACHE      the cache's folder, on a local disk; by default $XDG_CACHE_HOME/chorale or ~/.cache/chorale
CHORALE_CACHE_GB   what all processes of this machine together keep there, in 10^9 bytes; by default 50
"""

import fcntl
import functools
import logging
import os
import re
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.fs

from data.errors import UserError

logger = logging.getLogger(__name__)


def map_file(path: str) -> pa.Buffer:
    """A file, memory-mapped; nothing of it is read."""
    # The mapping outlives the file object, which would hold a descriptor. It covers the whole file, but the kernel
    # reads ahead what read_buffer is asked for: so that is one byte.
    with pa.memory_map(path) as file:
        first = file.read_buffer(1)
        return pa.foreign_buffer(first.address, file.size(), first)


LENGTH_BYTES = 8
"""At the end of a cached file, its contents' length: a torn one is noticed without asking the object store."""

SIZE_DIGITS = 20
"""Of the number of bytes kept, which is written in place: a file that is truncated is slow to close on ext4."""

CACHED = re.compile(r"[0-9a-f]{64}(\.\d+)?(\.part\w+)?")
"""Names of the cache's own files; nothing else in its folder is removed."""

SHARE_KEPT = 0.9
"""Of the bound, when it is reached: the folder is listed only once for each tenth of the bound that is fetched."""

ABANDONED_S = 3600
"""A file that was being written so long ago was left by a process that was killed."""


@dataclass(frozen=True)
class Cache:
    """Files fetched before, shared by all processes of this machine. Keys are SHA-256 digests, blocks with '.INDEX'."""

    folder: Path
    max_bytes: int

    @classmethod
    def of_environment(cls) -> "Cache":
        """As CHORALE_CACHE and CHORALE_CACHE_GB say. Raises UserError for what isn't a number."""
        folder = (
            os.environ.get("CHORALE_CACHE") or f"{os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'}/chorale"
        )
        bound = os.environ.get("CHORALE_CACHE_GB") or "50"
        try:
            return cls(Path(folder) / "blocks", int(float(bound) * 1e9))
        except (ValueError, OverflowError):
            raise UserError(f"CHORALE_CACHE_GB is {bound!r}: give the cache's size in GB, as 50 or 0.5") from None

    def get(self, key: str) -> pa.Buffer | None:
        """What is kept under a key, memory-mapped, so that it outlives its eviction. None if it is absent or torn."""
        path = self.folder / key
        try:
            os.utime(path)
            return _intact(path)
        except (OSError, ValueError):
            return None

    def put(self, key: str, parts: Iterable[bytes], num_bytes: int) -> pa.Buffer | None:
        """Keep contents of `num_bytes` in all, making room for them, and map them.

        A disk that is full must not end a run of hours: None, and a warning once a process. Raises UserError where the
        folder can't be made at all.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"the cache's folder can't be made: {error}; set CHORALE_CACHE to another") from error
        try:
            self._reserve(num_bytes + LENGTH_BYTES)
            descriptor, name = tempfile.mkstemp(dir=self.folder, prefix=f"{key}.part")
            temporary = Path(name)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.writelines(parts)
                    file.write(num_bytes.to_bytes(LENGTH_BYTES, "little"))
                contents = _intact(temporary)  # before it has its name: it could be evicted at once
                temporary.replace(self.folder / key)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            _warn_once(f"{self.folder} can't be written ({error.strerror}); reading on without a cache, which is slow")
            return None
        return contents

    def _reserve(self, num_bytes: int) -> None:
        """Add to the number of bytes kept, which all processes share; where that passes the bound, make room."""
        descriptor = os.open(self.folder / "size", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            total = int(os.pread(descriptor, SIZE_DIGITS, 0) or self.max_bytes)  # unknown at first
            if total + num_bytes > self.max_bytes:
                total = self._evict(int(SHARE_KEPT * self.max_bytes) - num_bytes)
            os.pwrite(descriptor, f"{total + num_bytes:{SIZE_DIGITS}}".encode(), 0)
        finally:
            os.close(descriptor)

    def _evict(self, target_bytes: int) -> int:
        """Remove the least recently used files until `target_bytes` are left. Returns how many are."""
        now = time.time()
        entries = [(entry.stat(), entry) for entry in os.scandir(self.folder) if CACHED.fullmatch(entry.name)]
        total = sum(stat.st_size for stat, _ in entries)
        for stat, entry in sorted(entries, key=lambda pair: pair[0].st_mtime_ns):
            being_written = ".part" in entry.name and now - stat.st_mtime < ABANDONED_S
            if total > target_bytes and not being_written:
                Path(entry.path).unlink(missing_ok=True)
                total -= stat.st_size
        return total


def _intact(path: Path) -> pa.Buffer:
    """A cached file's contents, memory-mapped. Raises ValueError for a torn one."""
    whole = map_file(str(path))
    num_bytes = whole.size - LENGTH_BYTES
    if num_bytes < 0 or int.from_bytes(whole[num_bytes:], "little") != num_bytes:
        raise ValueError(f"{path} is torn")
    return whole.slice(0, num_bytes)


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning(message)

"""Bounded disk cache of remote files, shared by all processes of a machine.

CHORALE_CACHE      folder of the cache, on a local disk; by default $XDG_CACHE_HOME/chorale or ~/.cache/chorale
CHORALE_CACHE_GB   maximum size of the cache, in 10^9 bytes; by default 50
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
    """Return the contents of a file as a memory-mapped buffer, without reading them."""
    # The mapping outlives the file object, which would hold a descriptor. It covers the complete file, but the kernel
    # reads ahead what read_buffer requests: so that is one byte.
    with pa.memory_map(path) as file:
        first = file.read_buffer(1)
        return pa.foreign_buffer(first.address, file.size(), first)


LENGTH_BYTES = 8
"""Number of bytes at the end of a cached file that hold the length of its contents, to detect a truncated file locally.
"""

SIZE_DIGITS = 20
"""Number of digits of the cache's size, which is overwritten in place: truncated files are slow to close on ext4."""

CACHED_NAME = re.compile(r"[0-9a-f]{64}(\.\d+)?(\.part\w+)?")
"""Pattern of the names of the cache's own files; nothing else in its folder is removed."""

EVICTION_TARGET_SHARE = 0.9
"""Share of the maximum size that eviction leaves: the folder is listed once per tenth of that size that is fetched."""

MAX_PART_AGE_S = 3600
"""Age after which an unfinished file is taken to be left by a killed process."""


@dataclass(frozen=True)
class BlockCache:
    """Disk cache of files and of blocks of files fetched from an object store, shared by all processes of this
    machine.

    A key is the SHA-256 of the store's location and the file's path; that of a block ends with '.INDEX', the number of
    the block in the file.
    """

    folder: Path
    max_bytes: int

    @classmethod
    def from_environment(cls) -> "BlockCache":
        """Return the cache that the environment variables CHORALE_CACHE, its folder, and CHORALE_CACHE_GB, its maximum
        size, define; without them, a cache of 50 GB in the user's cache folder. Raises UserError if the size isn't a
        number.
        """
        folder = (
            os.environ.get("CHORALE_CACHE") or f"{os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'}/chorale"
        )
        bound = os.environ.get("CHORALE_CACHE_GB") or "50"
        try:
            return cls(Path(folder) / "blocks", int(float(bound) * 1e9))
        except (ValueError, OverflowError):
            raise UserError(f"CHORALE_CACHE_GB is {bound!r}: give the cache's size in GB, as 50 or 0.5") from None

    def get(self, key: str) -> pa.Buffer | None:
        """Return the contents stored under a key as a memory-mapped buffer, which stays valid if the file is
        evicted; None if the file is absent or truncated.
        """
        path = self.folder / key
        try:
            os.utime(path)
            return _map_intact(path)
        except (OSError, ValueError):
            return None

    def put(self, key: str, parts: Iterable[bytes], num_bytes: int) -> pa.Buffer | None:
        """Store the contents of a key, given as consecutive `parts` of `num_bytes` in total, and return them
        memory-mapped. If the cache would exceed its maximum size, other files are evicted first.

        If the disk is full, returns None and warns once per process instead of failing. Raises UserError if the folder
        can't be created.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"the cache's folder can't be created: {error}; set CHORALE_CACHE to another folder"
            ) from error
        try:
            self._reserve(num_bytes + LENGTH_BYTES)
            descriptor, name = tempfile.mkstemp(dir=self.folder, prefix=f"{key}.part")
            temporary = Path(name)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.writelines(parts)
                    file.write(num_bytes.to_bytes(LENGTH_BYTES, "little"))
                contents = _map_intact(temporary)  # before it is renamed: it could be evicted immediately
                temporary.replace(self.folder / key)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            _warn_once(f"{self.folder} can't be written ({error.strerror}); continuing without a cache, which is slow")
            return None
        return contents

    def _reserve(self, num_bytes: int) -> None:
        """Add `num_bytes` to the recorded size of the cache, which all processes share. If it would exceed the
        maximum, evict files first.
        """
        descriptor = os.open(self.folder / "size", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            total = int(os.pread(descriptor, SIZE_DIGITS, 0) or self.max_bytes)  # unknown at first
            if total + num_bytes > self.max_bytes:
                total = self._evict(int(EVICTION_TARGET_SHARE * self.max_bytes) - num_bytes)
            os.pwrite(descriptor, f"{total + num_bytes:{SIZE_DIGITS}}".encode(), 0)
        finally:
            os.close(descriptor)

    def _evict(self, target_bytes: int) -> int:
        """Remove the least recently used files until at most `target_bytes` are left, and return the remaining
        size in bytes.
        """
        now = time.time()
        entries = [(entry.stat(), entry) for entry in os.scandir(self.folder) if CACHED_NAME.fullmatch(entry.name)]
        total = sum(stat.st_size for stat, _ in entries)
        for stat, entry in sorted(entries, key=lambda pair: pair[0].st_mtime_ns):
            being_written = ".part" in entry.name and now - stat.st_mtime < MAX_PART_AGE_S
            if total > target_bytes and not being_written:
                Path(entry.path).unlink(missing_ok=True)
                total -= stat.st_size
        return total


def _map_intact(path: Path) -> pa.Buffer:
    """Memory-map the contents of a cached file. Raises ValueError if it is truncated."""
    buffer = map_file(str(path))
    num_bytes = buffer.size - LENGTH_BYTES
    if num_bytes < 0 or int.from_bytes(buffer[num_bytes:], "little") != num_bytes:
        raise ValueError(f"{path} is truncated")
    return buffer.slice(0, num_bytes)


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning(message)

"""Locks of folders that one command at a time writes to."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import filelock

from data.errors import UserError


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold the write lock of a folder, which is created if it doesn't exist, in the `with` block. Raises UserError if
    another command holds it.

    The lock of a killed process is released.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(folder / ".lock", timeout=0):
            yield
    except filelock.Timeout:
        raise UserError(f"another command is writing to {folder}; wait until it has finished") from None

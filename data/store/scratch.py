"""Temporary folders that don't stay for ever if the process that created them is killed."""

import contextlib
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

PREFIX = ".chorale-"
"""Beginning of the names of temporary folders, and of the lock files beside them."""


@contextlib.contextmanager
def create_scratch_folder(parent: Path | None = None) -> Iterator[Path]:
    """Create an empty temporary folder in `parent`, by default the system's folder for temporary files, and remove it
    at the end of the `with` block. `parent` is created if it is absent.

    Folders that killed processes left in `parent` are removed first: beside each folder there is a lock file, which its
    process holds as long as it runs.
    """
    parent = parent or Path(tempfile.gettempdir())
    parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned_folders(parent)
    folder = parent / f"{PREFIX}{secrets.token_hex(8)}"
    lock = get_lock_path(folder)
    with FileLock(lock):
        try:
            folder.mkdir(mode=0o700)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            lock.unlink(missing_ok=True)


def remove_abandoned_folders(parent: Path) -> None:
    """Remove those temporary folders in `parent` that `create_scratch_folder` created in a process that no longer
    runs. Folders of other users are left alone.
    """
    for lock in parent.glob(f"{PREFIX}*.lock"):
        with contextlib.suppress(Timeout, OSError), FileLock(lock, timeout=0):
            shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
            lock.unlink(missing_ok=True)


def get_lock_path(folder: Path) -> Path:
    """Return the path of the lock file of a temporary folder."""
    return folder.with_name(f"{folder.name}.lock")

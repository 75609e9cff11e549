"""Recordings in files and in archives, before a table describes them."""

import logging
import os
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data.decoding.audio import decode_file
from data.errors import UserError
from data.schema import Samples
from data.sources.archives import ArchiveMember, decode_member

logger = logging.getLogger("chorale.files")


@dataclass(frozen=True, slots=True)
class Recording:
    """Recording on disk: its location, for messages, the function that decodes it, a text that changes with the file,
    and its size in bytes.
    """

    location: str
    load: Callable[[], Iterator[Samples]]
    revision: str
    num_bytes: int


def describe_file(path: Path) -> Recording:
    """Return the location, size and decoding function of the recording in an audio file, without decoding it."""
    status = path.stat()
    revision = f"{status.st_size}-{status.st_mtime_ns}"
    return Recording(str(path), partial(decode_file, path), revision, status.st_size)


def describe_member(member: ArchiveMember) -> Recording:
    """Return the location, size and decoding function of the recording in a file of an archive, without decoding it."""
    info = member.info
    location = f"{member.segments[-1]}/{info.filename}"
    return Recording(location, partial(decode_member, member), f"{info.file_size}-{info.CRC:08x}", info.file_size)


def iter_files(folder: Path) -> Iterator[Path]:
    """Yield all files in a folder and its subfolders. Links are followed; each folder is visited once.

    Subfolders that can't be read and links whose target doesn't exist are logged and skipped. Raises UserError if the
    folder itself can't be read.
    """
    root, waiting, seen = folder, [folder], set[tuple[int, int]]()
    while waiting:
        folder = waiting.pop()
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as scanned:
                entries = sorted(scanned, key=lambda entry: entry.name)
        except OSError as error:
            if folder is root:
                raise UserError(f"{folder} can't be read: {error.strerror}") from error
            logger.warning("skipped: the folder %s can't be read: %s", folder, error.strerror)
            continue
        for entry in entries:
            try:
                if entry.is_dir():
                    waiting.append(Path(entry.path))
                elif entry.is_file():
                    yield Path(entry.path)
                elif entry.is_symlink() and not Path(entry.path).exists():
                    logger.warning("skipped: %r is a link to a file that doesn't exist", entry.path)
                else:
                    logger.warning("skipped: %r is neither a file nor a folder", entry.path)
            except OSError as error:  # such as a loop of links
                logger.warning("skipped: %s can't be read: %s", entry.path, error.strerror)


def find_encoding_problem(path: Path) -> str:
    """Return the reason why a path can't be stored in tables: it isn't valid UTF-8. Return '' if it is."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return "its path isn't valid UTF-8: rename it, for instance with convmv"
    if any(unicodedata.category(character) == "Cc" for character in str(path)):
        return "its path contains a line break or another control character: rename it"
    return ""

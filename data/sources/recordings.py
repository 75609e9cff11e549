"""Recordings in files and in archives, before a table describes them."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data.schema import Samples
from data.sources.archives import ArchiveMember, decode_member
from data.waveform import decode_file


@dataclass(frozen=True, slots=True)
class Recording:
    """Recording on disk: its location, for messages, and the fields of `data.schema.SourceClip` that depend on the
    file.
    """

    location: str
    load: Callable[[], Iterator[Samples]]
    revision: str
    num_bytes: int


def describe_file(path: Path) -> Recording:
    """Return the description of the recording in an audio file, which isn't decoded yet."""
    status = path.stat()
    revision = f"{status.st_size}-{status.st_mtime_ns}"
    return Recording(str(path), partial(decode_file, path), revision, status.st_size)


def describe_member(member: ArchiveMember) -> Recording:
    """Return the description of the recording in a file of an archive, which isn't decoded yet."""
    info = member.info
    location = f"{member.segments[-1]}/{info.filename}"
    return Recording(location, partial(decode_member, member), f"{info.file_size}-{info.CRC:08x}", info.file_size)


def iter_files(folder: Path) -> Iterator[Path]:
    """Yield all files in a folder and its subfolders. Links are followed; each folder is visited once."""
    waiting, seen = [folder], set[tuple[int, int]]()
    while waiting:
        folder = waiting.pop()
        status = folder.stat()
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.is_dir():
                    waiting.append(Path(entry.path))
                elif entry.is_file():  # and not a broken link
                    yield Path(entry.path)

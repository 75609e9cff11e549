"""Read members of zip archives in place: of joined ones, and of those split over NAME.z01, NAME.z02, ..., NAME.zip.

Python's zipfile doesn't open split archives. In the format a place is a segment's number and an offset in that segment
(https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT, 4.3.12 to 4.3.16), so zipfile is given the directory
alone, and its members are then read from the segment that they begin in on. Nothing has to be joined before; `zip -s 0`
(3.0) spoils members that lie in more than two segments (seen).
"""

import io
import os
import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipExtFile, ZipFile, ZipInfo

from data.errors import UserError
from data.schema import Samples
from data.waveform import AudioError, decode

END, END_SIGNATURE = struct.Struct("<4s4H2LH"), b"PK\5\6"
"""This segment, the directory's, its entries here and in all, its size, its offset; length of a comment."""
ZIP64_LOCATOR, ZIP64_LOCATOR_SIGNATURE = struct.Struct("<4sLQL"), b"PK\6\7"
"""Right before END: segment and offset of ZIP64_END, number of segments."""
ZIP64_END, ZIP64_END_SIGNATURE = struct.Struct("<4sQ2H2L4Q"), b"PK\6\6"
"""Its size, two versions, this segment, the directory's, its entries here and in all, its size, its offset."""
LOCAL_HEADER, LOCAL_HEADER_SIGNATURE = struct.Struct("<4s22x2H"), b"PK\3\4"
"""Right before a member's data: the lengths of the name and of the extra field that follow."""
LONGEST_COMMENT = 2**16

ENCRYPTED = 1
"""Of a member's flag bits."""

SPOOLED_BYTES = 2**26
"""A longer member waits in a temporary file on disk while it is decoded."""
BLOCK_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive: the archive's segments, and what its directory says about the file."""

    segments: tuple[Path, ...]
    info: ZipInfo  # header_offset counts from the start of segments[info.volume]


def members(path: Path) -> list[Member]:
    """The files in an archive; `path` is the .zip, the last segment of a split one. Nothing but the directory is read.

    Raises UserError for what isn't a whole zip archive, for an absent segment, and for a member that is encrypted or
    packed by another method than "deflate".
    """
    try:
        segments, directory = read_directory(path)
        end = END.pack(END_SIGNATURE, 0, 0, 0, 0, len(directory), 0, 0)
        with ZipFile(io.BytesIO(directory + end)) as archive:
            found = [Member(segments, info) for info in archive.infolist() if not info.is_dir()]
        if any(member.info.volume >= len(segments) for member in found):
            raise BadZipFile("a member lies in a segment that isn't there")
    except UserError:
        raise
    except (BadZipFile, IndexError, NotImplementedError, OverflowError, struct.error, UnicodeDecodeError) as error:
        raise UserError(f"{path} isn't a whole zip archive ({error}): download it again") from error
    for member in found:
        if member.info.flag_bits & ENCRYPTED or member.info.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
            how = "encrypted" if member.info.flag_bits & ENCRYPTED else "packed by an unknown method"
            raise UserError(f"{path}: {member.info.filename!r} is {how}: extract the archive, and leave it out")
    return found


def read_directory(path: Path) -> tuple[tuple[Path, ...], bytes]:
    """The segments of an archive, and its directory as it stands in them.

    Raises UserError for an absent segment, BadZipFile or struct.error for what is torn.
    """
    with path.open("rb") as file:
        longest = ZIP64_LOCATOR.size + END.size + LONGEST_COMMENT
        file.seek(max(0, file.seek(0, os.SEEK_END) - longest))
        tail = file.read()
    place = tail.rfind(END_SIGNATURE)
    if place < 0:
        raise BadZipFile("it has no directory")
    _, last, segment, _, _, size, offset, _ = END.unpack_from(tail, place)
    segments = segment_paths(path, last + 1)
    locator = tail[max(0, place - ZIP64_LOCATOR.size) : place]
    if locator.startswith(ZIP64_LOCATOR_SIGNATURE):
        _, end_segment, end_offset, num_segments = ZIP64_LOCATOR.unpack(locator)
        segments = segment_paths(path, num_segments)
        with open_segments(segments[end_segment:], end_offset) as stream:
            signature, *_, segment, _, _, size, offset = ZIP64_END.unpack(stream.read(ZIP64_END.size))
        if signature != ZIP64_END_SIGNATURE:
            raise BadZipFile("its directory isn't where its end says")
    if size > sum(segment.stat().st_size for segment in segments):
        raise BadZipFile("its directory is longer than itself")
    with open_segments(segments[segment:], offset) as stream:
        return segments, stream.read(size)


def segment_paths(path: Path, number: int) -> tuple[Path, ...]:
    """The files that a split archive consists of. A UserError names the first that is absent."""
    segments = []
    for place in range(1, number):
        segments.append(path.with_suffix(f".z{place:02d}"))
        if not segments[-1].exists():
            raise UserError(f"{segments[-1]} is absent: {path.name} is split into {number} files; download them all")
    return (*segments, path)


def decode_member(member: Member) -> Iterator[Samples]:
    """The audio of an archive's member, in blocks; its checksum is verified before the first one.

    Raises AudioError for a member that is torn, or whose audio is, and UserError where the archive is gone.
    """
    with tempfile.SpooledTemporaryFile(SPOOLED_BYTES) as spool:
        try:
            with open_segments(member.segments[member.info.volume :], member.info.header_offset) as stream:
                signature, name_bytes, extra_bytes = LOCAL_HEADER.unpack(stream.read(LOCAL_HEADER.size))
                if signature != LOCAL_HEADER_SIGNATURE:
                    raise BadZipFile("it isn't where the directory says")
                stream.read(name_bytes + extra_bytes)
                with ZipExtFile(stream, "r", member.info) as data:
                    shutil.copyfileobj(data, spool, BLOCK_BYTES)
        except (BadZipFile, EOFError, struct.error, zlib.error) as error:
            raise AudioError(f"can't be unpacked: {str(error) or 'its archive ends early'}") from error
        spool.seek(0)
        yield from decode(cast(BinaryIO, spool))


def open_segments(paths: Sequence[Path], offset: int) -> io.BufferedReader:
    """What lies in consecutive files, from a place in the first one on, as one stream that can't seek."""
    if not paths:
        raise BadZipFile("it names a segment that isn't there")
    first = open_segment(paths[0])
    first.seek(offset)
    return io.BufferedReader(_Segments(first, iter(paths[1:])))


def open_segment(path: Path) -> io.FileIO:
    """One segment. A UserError says that it is absent."""
    try:
        return io.FileIO(path)
    except FileNotFoundError:
        raise UserError(f"{path} is absent; every machine that decodes needs it under this path") from None


class _Segments(io.RawIOBase):
    """Consecutive files as one stream; each is opened when it is reached."""

    def __init__(self, first: io.FileIO, waiting: Iterator[Path]) -> None:
        self.file, self.waiting = first, waiting

    def readable(self) -> bool:
        """Whether it can be read from: yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """As much as there is in the current file; 0 at the end of the last one."""
        while not (num_read := self.file.readinto(buffer) or 0) and (path := next(self.waiting, None)):
            self.file.close()
            self.file = open_segment(path)
        return num_read

    def close(self) -> None:
        """Close the current file."""
        self.file.close()
        super().close()

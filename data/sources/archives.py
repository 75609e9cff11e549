"""Read members of zip archives in place, including archives split over NAME.z01, NAME.z02, ..., NAME.zip.

Python's zipfile doesn't open split archives. In the zip format, a position is the number of a segment and an offset in
that segment (https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT, 4.3.12 to 4.3.16). zipfile therefore gets
only the directory, and each member is read starting at the segment that it begins in. Archives don't have to be joined
first; `zip -s 0` (3.0) corrupts members that span more than two segments (observed).
"""

import io
import os
import shutil
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipExtFile, ZipFile, ZipInfo

from data.decoding.audio import Warn, decode
from data.errors import UserError
from data.schema import Samples
from data.waveform import AudioBlocks, AudioError

END, END_SIGNATURE = struct.Struct("<4s4H2LH"), b"PK\5\6"
"""End record: this segment, the directory's, its entries here and in total, its size and offset, a comment's length."""
ZIP64_LOCATOR, ZIP64_LOCATOR_SIGNATURE = struct.Struct("<4sLQL"), b"PK\6\7"
"""Locator directly before END: segment and offset of ZIP64_END, number of segments."""
ZIP64_END, ZIP64_END_SIGNATURE = struct.Struct("<4sQ2H2L4Q"), b"PK\6\6"
"""Zip64 end record: its size, two versions, this segment, the directory's, its entries here and in total, its size, its
offset.
"""
LOCAL_HEADER, LOCAL_HEADER_SIGNATURE = struct.Struct("<4s22x2H"), b"PK\3\4"
"""Header directly before a member's data: the lengths of the name and of the extra field that follow."""
MAX_COMMENT_BYTES = 2**16

ENCRYPTED_FLAG = 1
"""Bit of a member's flags."""

SPOOLED_BYTES = 2**26
"""Maximum size of a member that is decoded in memory; a longer one is unpacked to a temporary file."""
MAX_COMPRESSION_RATIO = 20
"""Maximum ratio of a member's size to its compressed size, beyond SPOOLED_BYTES; audio compresses by less."""
BLOCK_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class ArchiveMember:
    """File in a zip archive: the paths of the archive's segments (one, unless it is split), and the description of
    the file in the archive's directory.
    """

    segments: tuple[Path, ...]
    info: ZipInfo  # header_offset counts from the start of segments[info.volume]


def list_members(path: Path) -> list[ArchiveMember]:
    """Return the files in a zip archive, without its folders. `path` is the .zip file; of a split archive it is the
    last segment.

    Only the directory is read. Raises UserError if the file isn't a complete zip archive, if a segment is absent, or if
    a member is encrypted or uses a compression method other than "deflate".
    """
    try:
        segments, directory = read_directory(path)
        end = END.pack(END_SIGNATURE, 0, 0, 0, 0, len(directory), 0, 0)
        with ZipFile(io.BytesIO(directory + end)) as archive:
            archive_members = [ArchiveMember(segments, info) for info in archive.infolist() if not info.is_dir()]
        if any(member.info.volume >= len(segments) for member in archive_members):
            raise BadZipFile("a member is in a segment that doesn't exist")
    except UserError:
        raise
    except (BadZipFile, IndexError, NotImplementedError, OverflowError, struct.error, UnicodeDecodeError) as error:
        raise UserError(f"{path} isn't a complete zip archive ({error}): download it again") from error
    for member in archive_members:
        if member.info.flag_bits & ENCRYPTED_FLAG or member.info.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
            how = "encrypted" if member.info.flag_bits & ENCRYPTED_FLAG else "compressed by an unsupported method"
            raise UserError(f"{path}: {member.info.filename!r} is {how}: extract the archive and remove this file")
    return archive_members


def read_directory(path: Path) -> tuple[tuple[Path, ...], bytes]:
    """Return the paths of an archive's segments, and the bytes of its central directory, which lists its files.

    Raises UserError if a segment is absent, BadZipFile or struct.error if the archive is truncated or corrupt.
    """
    with path.open("rb") as file:
        max_tail_bytes = ZIP64_LOCATOR.size + END.size + MAX_COMMENT_BYTES
        file.seek(max(0, file.seek(0, os.SEEK_END) - max_tail_bytes))
        tail = file.read()
    end_position = tail.rfind(END_SIGNATURE)
    if end_position < 0:
        raise BadZipFile("it has no directory")
    _, last, segment, _, _, size, offset, _ = END.unpack_from(tail, end_position)
    segments = list_segment_paths(path, last + 1)
    locator = tail[max(0, end_position - ZIP64_LOCATOR.size) : end_position]
    if locator.startswith(ZIP64_LOCATOR_SIGNATURE):
        _, end_segment, end_offset, num_segments = ZIP64_LOCATOR.unpack(locator)
        segments = list_segment_paths(path, num_segments)
        with open_segments(segments[end_segment:], end_offset) as stream:
            signature, *_, segment, _, _, size, offset = ZIP64_END.unpack(stream.read(ZIP64_END.size))
        if signature != ZIP64_END_SIGNATURE:
            raise BadZipFile("its directory isn't at the position that its end record states")
    if size > sum(segment.stat().st_size for segment in segments):
        raise BadZipFile("its directory is longer than the archive")
    with open_segments(segments[segment:], offset) as stream:
        return segments, stream.read(size)


def list_segment_paths(path: Path, num_segments: int) -> tuple[Path, ...]:
    """Return the paths of all segments of an archive: NAME.z01, NAME.z02, ..., and `path`, NAME.zip, as the last.
    Raises UserError if one is absent.
    """
    segments = []
    for segment_number in range(1, num_segments):
        segments.append(path.with_suffix(f".z{segment_number:02d}"))
        if not segments[-1].exists():
            raise UserError(
                f"{segments[-1]} is absent: {path.name} is split into {num_segments} files; download them all"
            )
    return (*segments, path)


def decode_member(member: ArchiveMember) -> AudioBlocks:
    """Decode a member of an archive into blocks of samples; its checksum is verified before the first block.

    A member of more than SPOOLED_BYTES is unpacked to a temporary file, in the folder `scratch` of the blocks. The
    blocks raise AudioError if the member or its audio is corrupt, and UserError if the archive no longer exists.
    """
    blocks = AudioBlocks(lambda warn: _decode_member(member, warn, lambda: blocks.scratch))
    return blocks


def _decode_member(member: ArchiveMember, warn: Warn, get_scratch: Callable[[], Path | None]) -> Iterator[Samples]:
    if member.info.file_size > max(SPOOLED_BYTES, MAX_COMPRESSION_RATIO * member.info.compress_size):
        raise AudioError(
            f"unpacks to more than {MAX_COMPRESSION_RATIO} times its size: {member.info.file_size:,} bytes"
        )
    scratch = get_scratch()
    with tempfile.SpooledTemporaryFile(SPOOLED_BYTES, dir=str(scratch) if scratch else None) as spool:
        try:
            with open_segments(member.segments[member.info.volume :], member.info.header_offset) as stream:
                signature, name_bytes, extra_bytes = LOCAL_HEADER.unpack(stream.read(LOCAL_HEADER.size))
                if signature != LOCAL_HEADER_SIGNATURE:
                    raise BadZipFile("it isn't at the position that the directory states")
                stream.read(name_bytes + extra_bytes)
                with ZipExtFile(stream, "r", member.info) as data:
                    shutil.copyfileobj(data, spool, BLOCK_BYTES)
        except (BadZipFile, EOFError, struct.error, zlib.error) as error:
            raise AudioError(f"can't be extracted: {str(error) or 'its archive ends early'}") from error
        spool.seek(0)
        yield from decode(cast(BinaryIO, spool), warn)


def open_segments(paths: Sequence[Path], offset: int) -> io.BufferedReader:
    """Open the files `paths`, consecutive segments of an archive, as one unseekable stream that starts at byte `offset`
    of the first. Raises BadZipFile if there are none.
    """
    if not paths:
        raise BadZipFile("it names a segment that doesn't exist")
    first = open_segment(paths[0])
    first.seek(offset)
    return io.BufferedReader(_Segments(first, iter(paths[1:])))


def open_segment(path: Path) -> io.FileIO:
    """Open one segment of an archive for reading. Raises UserError if it is absent."""
    try:
        return io.FileIO(path)
    except FileNotFoundError:
        raise UserError(f"{path} is absent; every machine that decodes needs it under this path") from None


class _Segments(io.RawIOBase):
    """Segments of an archive as one stream of bytes; each file is opened when it is reached."""

    def __init__(self, first: io.FileIO, remaining_paths: Iterator[Path]) -> None:
        self.file, self.waiting = first, remaining_paths

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read as much as the current file provides; return 0 at the end of the last one."""
        while not (num_read := self.file.readinto(buffer) or 0) and (path := next(self.waiting, None)):
            self.file.close()
            self.file = open_segment(path)
        return num_read

    def close(self) -> None:
        """Close the current file."""
        self.file.close()
        super().close()

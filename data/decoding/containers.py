"""Check that audio files are complete, by the sizes that their containers state.

libsndfile decodes a shorter file without an error if a file was cut off, if a recorder never finished the header, or if
the sizes wrapped because the file exceeds 4 GiB. Sizes that are off without affecting the audio are ignored.
"""

import os
from dataclasses import dataclass
from typing import BinaryIO, Literal

from data.waveform import AudioError


@dataclass(frozen=True)
class ChunkLayout:
    """Layout of a container that consists of chunks, one of which holds the audio."""

    first: int  # position of the first chunk
    id_bytes: int
    size_bytes: int
    order: Literal["little", "big"]
    audio_id: bytes
    min_unknown: int  # a size from this value on means "unknown", as written by programs that stream to a pipe
    alignment: int = 2  # chunks begin at multiples of this number of bytes
    counts_header: bool = False  # whether the size of a chunk includes its id and size

    @property
    def header_bytes(self) -> int:
        """Size of a chunk's id and size field."""
        return self.id_bytes + self.size_bytes


WAV = ChunkLayout(12, 4, 4, "little", b"data", 0x7FFF_F000)
W64 = ChunkLayout(40, 16, 8, "little", b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a", 2**62, 8, True)
LAYOUTS: dict[bytes, ChunkLayout] = {
    b"RIFF": WAV,
    b"RF64": WAV,
    b"RIFX": ChunkLayout(12, 4, 4, "big", b"data", 0x7FFF_F000),
    b"FORM": ChunkLayout(12, 4, 4, "big", b"SSND", 0x7F00_0000),
    b"riff": W64,
    b"caff": ChunkLayout(8, 4, 8, "big", b"data", 2**62, 1),
}
"""Layouts by the first four bytes of a file."""

AU_HEADER_BYTES = 24
MAX_CHUNKS = 10_000
"""Maximum number of chunks read before the audio; a file with more is left to libsndfile."""

MAX_TRAILING_SHARE = 0.01
MIN_TRAILING_BYTES = 1_024
"""Bytes after the last chunk that aren't a chunk are ignored up to the larger of these: a tag, or padding."""

SIZE_SLACK = 8
"""Tolerance in bytes of the size of the audio: some writers count a chunk's header or its padding, some don't."""

MAX_AIFF_SLACK = 8
"""Bytes of an AIFF audio chunk that aren't audio: the offset and the block size."""


def check_container(file: BinaryIO) -> None:
    """Raise AudioError if a file was cut off, if its header wasn't finished, or if the size in its header has
    overflowed, because the file is larger than its format can state.

    Files in other formats than WAV, RF64, AIFF, W64, CAF and AU are not checked. The position in the file changes.
    """
    file.seek(0)
    head, size = file.read(AU_HEADER_BYTES), file.seek(0, os.SEEK_END)
    if head.startswith(b".snd") and len(head) == AU_HEADER_BYTES:
        start, stated = int.from_bytes(head[4:8], "big"), int.from_bytes(head[8:12], "big")
        if stated < LAYOUTS[b"FORM"].min_unknown:
            require_complete_audio(stated, size - start)
    elif layout := LAYOUTS.get(head[:4]):
        check_chunks(file, layout, size, is_rf64=head.startswith(b"RF64"))


def check_chunks(file: BinaryIO, layout: ChunkLayout, size: int, *, is_rf64: bool) -> None:
    """Raise AudioError if the size of the audio that the file's header states contradicts the size of the file, `size`
    in bytes. `layout` says how the file is divided into chunks; in an RF64 file (`is_rf64`), the size of the audio is
    in a chunk of its own.
    """
    position, long_size = layout.first, None
    for _ in range(MAX_CHUNKS):
        chunk_id, stated = read_chunk_header(file, layout, position) if position < size else (b"", 0)
        if not chunk_id:
            return  # no audio: libsndfile says so
        if is_rf64 and chunk_id == b"ds64":
            file.seek(position + layout.header_bytes + 8)  # after the size of the whole file
            long_size = int.from_bytes(file.read(8), "little")
        if chunk_id == layout.audio_id:
            break
        position = find_next_chunk(layout, position, stated)
    else:
        return
    if is_rf64 and stated == 0xFFFF_FFFF and long_size is not None:
        stated = long_size
    elif stated >= layout.min_unknown:
        return
    available = size - position - layout.header_bytes
    require_complete_audio(stated, available)
    trailing = count_trailing_bytes(file, layout, find_next_chunk(layout, position, stated), size)
    if trailing > max(MIN_TRAILING_BYTES, MAX_TRAILING_SHARE * stated):
        if stated <= MAX_AIFF_SLACK:
            raise AudioError(
                f"its header was never finished, as when a recorder loses power: it states {stated} bytes of "
                f"audio, but {trailing:,} bytes follow; repair it with the recorder, or "
                f"import it as raw data and save it again"
            )
        raise AudioError(
            f"its header states {stated:,} bytes of audio, but {trailing:,} more follow that belong to nothing: sizes "
            f"wrap in WAV and AIFF files over 4 GiB, or the header is that of an unfinished recording; save it as W64, "
            f"RF64 or FLAC"
        )


def read_chunk_header(file: BinaryIO, layout: ChunkLayout, position: int) -> tuple[bytes, int]:
    """Return the id of the chunk that begins at a byte position of a file, and the number of bytes of its contents; b''
    and 0 at the end of the file. `layout` describes the format of the header.
    """
    file.seek(position)
    header = file.read(layout.header_bytes)
    if len(header) < layout.header_bytes:
        return b"", 0
    stated = int.from_bytes(header[layout.id_bytes :], layout.order)
    if layout.counts_header:
        stated = max(0, stated - layout.header_bytes)
    return header[: layout.id_bytes], stated


def find_next_chunk(layout: ChunkLayout, position: int, stated: int) -> int:
    """Return the byte position of the chunk after the one at `position`, whose contents have `stated` bytes in a
    container with this layout.
    """
    end = position + layout.header_bytes + stated
    return end + -end % layout.alignment


def require_complete_audio(stated: int, available: int) -> None:
    """Raise AudioError if a file has fewer bytes of audio, `available`, than its header states, `stated`; SIZE_SLACK
    bytes may be missing.
    """
    if available + SIZE_SLACK < stated:
        raise AudioError(f"truncated: its header states {stated:,} bytes of audio, {max(0, available):,} are there")


def count_trailing_bytes(file: BinaryIO, layout: ChunkLayout, position: int, size: int) -> int:
    """Return the number of bytes from `position` to the end of a file of `size` bytes that don't form chunks in this
    layout; 0 if they are all zero.
    """
    while position < size:
        chunk_id, stated = read_chunk_header(file, layout, position)
        end = find_next_chunk(layout, position, stated)
        is_chunk = chunk_id and chunk_id[:4].isascii() and chunk_id[:4].decode("ascii").isprintable()
        if not is_chunk or end > size + layout.alignment:
            break
        position = end
    else:
        return 0
    file.seek(position)
    while block := file.read(2**20):
        if block.strip(b"\0"):
            return size - position
    return 0

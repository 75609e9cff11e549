"""Split audio files into the streams that they consist of, each in a form that libsndfile decodes to its end.

libsndfile decodes only the first of several streams, as they are found in chained Ogg files (a radio programme) and in
MP3 files that were joined end to end; it stops too early in an MP3 of variable bit rate without a header that counts
the frames; and it can't read a FLAC file to its end if the header doesn't state the length.
"""

import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from data.waveform import AudioError

Warn = Callable[[str], None]

Piece = bytes | tuple[int, int]
"""Piece of a spliced file: bytes, or first and last position (exclusive) in the original file."""


class SplicedFile(io.RawIOBase):
    """Read-only file that consists of pieces of another file and of additional bytes."""

    def __init__(self, file: BinaryIO, pieces: Sequence[Piece]) -> None:
        self.file, self.pieces, self.position = file, pieces, 0
        self.lengths = [len(piece) if isinstance(piece, bytes) else piece[1] - piece[0] for piece in pieces]

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position in bytes."""
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position to `offset` bytes from the start, the current position or the end, as `whence` says (as in
        `io`), and return it. Raises ValueError if the position is negative.
        """
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: sum(self.lengths)}[whence]
        if base + offset < 0:
            raise ValueError(f"negative position {base + offset}")
        self.position = base + offset
        return self.position

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer from the piece at the current position, at most to the end of that piece. Return the number
        of bytes read; 0 at the end of the file.
        """
        start = self.position
        for piece, length in zip(self.pieces, self.lengths, strict=True):
            if start < length:
                num_bytes = min(len(buffer), length - start)
                if isinstance(piece, bytes):
                    data = piece[start : start + num_bytes]
                else:
                    self.file.seek(piece[0] + start)
                    data = self.file.read(num_bytes)
                buffer[: len(data)] = data
                self.position += len(data)
                return len(data)
            start -= length
        return 0


def splice(file: BinaryIO, *pieces: Piece) -> BinaryIO:
    """Return a readable file that consists of `pieces` in order: each is either bytes, or the first and the last
    position (exclusive) of a part of `file`.
    """
    return cast(BinaryIO, io.BufferedReader(SplicedFile(file, pieces), 2**16))


def split_streams(file: BinaryIO, warn: Warn) -> list[BinaryIO]:
    """Return the streams of an audio file as one file object each, in order; the file itself if it has only one. `warn`
    is called with a description if the end of the recording may be missing; if it is certainly missing, AudioError is
    raised.
    """
    file.seek(0)
    head = file.read(42)
    if head.startswith(b"OggS"):
        return split_ogg(file, warn)
    if head.startswith(b"fLaC"):
        return [add_flac_length(file, head)]
    start = skip_id3_tags(file, 0)
    return split_mp3(file, start, warn) if is_mp3(file, start) else [file]


OGG_HEADER_BYTES = 27
OGG_FIRST_PAGE, OGG_LAST_PAGE = 2, 4
"""Flag bits of the first and the last page of a stream (https://www.rfc-editor.org/rfc/rfc3533, section 6)."""


def split_ogg(file: BinaryIO, warn: Warn) -> list[BinaryIO]:
    """Return each stream of a chained Ogg file (several Ogg files joined end to end) as a file object. `warn` is called
    with a message if the end of the last stream isn't marked. Raises AudioError if the last page is incomplete.

    Each page is marked if it begins a stream. A marked page after an unmarked one begins the next of the joined files.
    """
    size = file.seek(0, os.SEEK_END)
    starts, flags, was_first = [0], 0, True
    position: int | None = 0
    while position is not None and position < size:
        file.seek(position)
        header = file.read(OGG_HEADER_BYTES + 255)
        if not header.startswith(b"OggS"):
            position = find_bytes(file, b"OggS", position)
            continue
        sizes = header[OGG_HEADER_BYTES : OGG_HEADER_BYTES + header[26]] if len(header) > 26 else b""
        end = position + OGG_HEADER_BYTES + len(sizes) + sum(sizes)
        if len(header) <= 26 or len(sizes) < header[26] or end > size:
            raise AudioError("truncated: its last page is incomplete")
        flags = header[5]
        is_first = bool(flags & OGG_FIRST_PAGE)
        if is_first and not was_first:
            starts.append(position)
        position, was_first = end, is_first
    if not flags & OGG_LAST_PAGE:
        warn("its last page isn't marked as the end of the stream: the end of the recording may be missing")
    if len(starts) == 1:
        return [file]
    return [splice(file, (start, end)) for start, end in zip(starts, [*starts[1:], size], strict=True)]


def find_bytes(file: BinaryIO, pattern: bytes, position: int) -> int | None:
    """Return the first position after `position` at which the bytes `pattern` occur in a file; None if they don't."""
    file.seek(position + 1)
    base, kept = position + 1, b""
    while block := file.read(2**16):
        offset = (kept + block).find(pattern)
        if offset >= 0:
            return base - len(kept) + offset
        base += len(block)
        kept = (kept + block)[1 - len(pattern) :]
    return None


def add_flac_length(file: BinaryIO, head: bytes) -> BinaryIO:
    """Return a seekable FLAC file whose header states the number of samples. If the header says 0 (unknown), the number
    is computed from the last frame. `head` are the first bytes of `file`, whose position doesn't matter.

    Raises AudioError if the last frame is incomplete. Format: https://www.rfc-editor.org/rfc/rfc9639.
    """
    total = int.from_bytes(head[21:26], "big") & (2**36 - 1)
    if total or len(head) < 42:
        return file
    file.seek(0, os.SEEK_END)
    size = file.tell()
    tail_start = max(len(head), size - 2**20)
    file.seek(tail_start)
    tail = file.read()
    if tail[-128:].startswith(b"TAG"):
        tail = tail[:-128]
    max_block = int.from_bytes(head[10:12], "big")
    position = len(tail)
    while (position := tail.rfind(b"\xff", 0, position)) >= 0:
        end = read_flac_frame(tail[position : position + 16], max_block)
        if end is not None and compute_crc(tail[position:], 0x8005, 16) == 0:
            patched = bytearray(head)
            patched[21] = head[21] & 0xF0 | end >> 32
            patched[22:26] = (end & 0xFFFF_FFFF).to_bytes(4, "big")
            return splice(file, bytes(patched), (len(head), tail_start + len(tail)))
    raise AudioError("truncated: its last frame is incomplete, and its header doesn't state its length")


def read_flac_frame(header: bytes, max_block: int) -> int | None:
    """Return the number of samples of a FLAC stream up to the end of the frame that begins with the 16 bytes `header`;
    None if they aren't a frame header. `max_block` is the number of samples in each frame but the last, if all have the
    same.
    """
    if len(header) < 6 or header[0] != 0xFF or header[1] & 0xFE != 0xF8:
        return None
    lead = header[4]
    num_further = 0 if lead < 0x80 else f"{lead:08b}".find("0") - 1  # coded like UTF-8, with up to 7 bytes
    if lead == 0xFF or num_further < 0 or (num_further == 0 and lead >= 0x80):
        return None
    number = lead if lead < 0x80 else lead & (0x3F >> num_further)
    for byte in header[5 : 5 + num_further]:
        number = number << 6 | byte & 0x3F
    position = 5 + num_further
    block_code, rate_code = header[2] >> 4, header[2] & 15
    num_size_bytes = {6: 1, 7: 2}.get(block_code, 0)
    block = int.from_bytes(header[position : position + num_size_bytes], "big") + 1
    if not num_size_bytes:
        block = 192 if block_code == 1 else 576 << block_code - 2 if block_code < 6 else 256 << block_code - 8
    position += num_size_bytes + {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
    if block_code == 0 or len(header) <= position or compute_crc(header[: position + 1], 0x07, 8):
        return None
    return number + block if header[1] & 1 else number * max_block + block


def compute_crc(data: bytes, polynomial: int, num_bits: int) -> int:
    """Return the cyclic redundancy check of `data`, a number of `num_bits` bits; 0 if the data ends with its own check.
    `polynomial` is the generator polynomial without its highest bit; the most significant bit of each byte comes first.
    """
    mask = (1 << num_bits) - 1
    table = []
    for byte in range(256):
        value = byte << num_bits - 8
        for _ in range(8):
            value = value << 1 ^ (polynomial if value >> num_bits - 1 & 1 else 0)
        table.append(value & mask)
    check = 0
    for byte in data:
        check = (check << 8 ^ table[check >> num_bits - 8 ^ byte]) & mask
    return check


@dataclass(frozen=True)
class Mp3Frame:
    """Header of an MP3 frame: its four bytes, and the properties that all frames of a stream share."""

    header: bytes
    version: int  # 3: MPEG 1, 2: MPEG 2, 0: MPEG 2.5
    rate_hz: int
    is_mono: bool
    num_bytes: int

    @property
    def format(self) -> tuple[int, int, bool]:
        """MPEG version, sample rate in Hz and whether the audio is mono, which are the same in all frames of a
        stream.
        """
        return self.version, self.rate_hz, self.is_mono

    @property
    def info_offset(self) -> int:
        """Byte position within a stream's first frame at which its info header, "Xing" or "Info", begins if it has
        one.
        """
        if self.version == 3:
            return 21 if self.is_mono else 36
        return 13 if self.is_mono else 21


MP3_RATES_HZ = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
MP3_KBPS_1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
MP3_KBPS_2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
"""Bit rates of layer III by index, of MPEG 1 and of MPEG 2 and 2.5."""

MIN_SYNC_FRAMES = 3
"""Number of consecutive frames that make bytes at any position MP3 audio and not a coincidence."""
MAX_COUNT_DIFFERENCE = 2
"""Tolerance of a header's number of frames: some writers count the header itself or the last, incomplete frame."""


def parse_mp3_frame(header: bytes) -> Mp3Frame | None:
    """Return the MP3 frame that begins with these four bytes; None if they aren't the header of an MPEG layer III
    frame.
    """
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:
        return None
    version, bit_rate, rate = header[1] >> 3 & 3, header[2] >> 4, header[2] >> 2 & 3
    if version == 1 or bit_rate in (0, 15) or rate == 3:
        return None
    rate_hz = MP3_RATES_HZ[version][rate]
    kbps, factor = (MP3_KBPS_1[bit_rate], 144_000) if version == 3 else (MP3_KBPS_2[bit_rate], 72_000)
    return Mp3Frame(header, version, rate_hz, header[3] >> 6 == 3, kbps * factor // rate_hz + (header[2] >> 1 & 1))


MP3_HEAD_BYTES = 64
"""Bytes of a frame read at a time: they contain the header that counts the frames, if there is one."""


def read_mp3_frame(file: BinaryIO, position: int) -> tuple[Mp3Frame | None, bytes]:
    """Return the MP3 frame that begins at a byte position of a file, or None if none begins there, and the first
    MP3_HEAD_BYTES bytes at that position.
    """
    file.seek(position)
    head = file.read(MP3_HEAD_BYTES)
    return parse_mp3_frame(head[:4]), head


def skip_id3_tags(file: BinaryIO, position: int) -> int:
    """Return the byte position in a file after the ID3v2 tags that begin at `position`; `position` if there are
    none.
    """
    while True:
        file.seek(position)
        header = file.read(10)
        if len(header) < 10 or not header.startswith(b"ID3") or max(header[6:]) >= 0x80:
            return position
        size = header[6] << 21 | header[7] << 14 | header[8] << 7 | header[9]
        position += 10 + size + (10 if header[5] & 0x10 else 0)


def is_mp3(file: BinaryIO, position: int) -> bool:
    """Return whether MP3 audio begins at a byte position of a file: MIN_SYNC_FRAMES frames one after the other, or
    fewer if they reach the end of the file.
    """
    size = file.seek(0, os.SEEK_END)
    for number in range(MIN_SYNC_FRAMES):
        frame, _ = read_mp3_frame(file, position)
        if frame is None:
            return number > 0 and position >= size
        position += frame.num_bytes
    return True


def find_mp3_frame(file: BinaryIO, position: int) -> int | None:
    """Return the first byte position after `position` at which MP3 audio begins in a file; None if there is none."""
    candidate = find_bytes(file, b"\xff", position)
    while candidate is not None and not is_mp3(file, candidate):
        candidate = find_bytes(file, b"\xff", candidate)
    return candidate


@dataclass
class Mp3Stream:
    """Stream in an MP3 file, with its first frame, its byte positions and the number of its frames."""

    start: int
    end: int
    first: Mp3Frame
    stated_frames: int | None = None  # in the header of the stream; None if it has no header
    num_frames: int = 0  # without the header


def split_mp3(file: BinaryIO, position: int, warn: Warn) -> list[BinaryIO]:
    """Return the streams of an MP3 file as one file object each; the first frame is at byte `position`. `warn` is
    called with a message if the last frame is incomplete.

    A stream begins with an info header, a frame that states the number of frames, or where the sample rate or the
    number of channels changes. A stream whose info header is missing or states too few frames is returned with a header
    that states the right number. Other bytes between the frames, such as tags, are skipped.
    """
    size = file.seek(0, os.SEEK_END)
    streams: list[Mp3Stream] = []
    at: int | None = position
    while at is not None and at < size:
        frame, head = read_mp3_frame(file, at)
        if frame is None:
            at = find_mp3_frame(file, max(at, skip_id3_tags(file, at) - 1))
            continue
        if at + frame.num_bytes > size:
            warn("its last frame is incomplete: the end of the recording may be missing")
            break
        stated = read_frame_count(frame, head)
        if stated is not None or not streams or frame.format != streams[-1].first.format:
            streams.append(Mp3Stream(at, at, frame, stated))
        streams[-1].num_frames += stated is None
        at += frame.num_bytes
        streams[-1].end = at
    return [open_mp3_stream(file, stream) for stream in streams if stream.num_frames] or [file]


def read_frame_count(frame: Mp3Frame, head: bytes) -> int | None:
    """Return the number of frames that a stream's info header (Xing, Info or VBRI) states. Return -1 if the header
    doesn't state it, and None if the frame, which begins with the bytes `head`, isn't an info header but audio.
    """
    info = head[frame.info_offset : frame.info_offset + 12]
    if info[:4] in (b"Xing", b"Info"):
        return int.from_bytes(info[8:12], "big") if len(info) == 12 and info[7] & 1 else -1
    return int.from_bytes(head[50:54], "big") if head[36:40] == b"VBRI" else None


def open_mp3_stream(file: BinaryIO, stream: Mp3Stream) -> BinaryIO:
    """Return a stream of an MP3 file as a file object. If its info header is missing or states too few frames, a header
    with the right number is put in front.
    """
    if stream.stated_frames is not None and stream.num_frames <= stream.stated_frames + MAX_COUNT_DIFFERENCE:
        return splice(file, (stream.start, stream.end))
    first = stream.first
    audio_start = stream.start + (first.num_bytes if stream.stated_frames is not None else 0)
    header = bytearray(first.header)
    header[1] |= 1  # without a checksum
    header[2] = header[2] & 0x0D | (5 if first.version == 3 else 8) << 4  # 64 kbit/s, no padding
    frame = parse_mp3_frame(bytes(header))
    assert frame is not None
    count = b"Info" + (1).to_bytes(4, "big") + stream.num_frames.to_bytes(4, "big")
    info = (bytes(header) + bytes(frame.info_offset - 4) + count).ljust(frame.num_bytes, b"\0")
    return splice(file, info, (audio_start, stream.end))

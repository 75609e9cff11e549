"""Recordings as HTTP responses: files that browsers play are sent as they are, others are converted to WAV.

A request may ask for a range of bytes, with which a player seeks. Only files that libsndfile recognises as audio are
sent: an index may be a stranger's, and its paths could name any file of this machine.
"""

import contextlib
import functools
import hashlib
import os
import re
import stat
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

import soundfile
from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import iterate_in_threadpool, run_in_threadpool

from data.schema import SAMPLE_RATE_HZ
from ensemble.serving.hits import Recording
from ensemble.web.decoding import BYTES_PER_SAMPLE, WAV_HEADER_BYTES, stream_wav
from ensemble.web.problems import ProblemError

MEDIA_TYPES = {
    **dict.fromkeys(
        [("WAV", kind) for kind in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "ULAW", "ALAW")]
        + [("WAVEX", kind) for kind in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT")],
        "audio/wav",
    ),
    **dict.fromkeys([("FLAC", kind) for kind in ("PCM_S8", "PCM_16", "PCM_24")], "audio/flac"),
    ("OGG", "VORBIS"): "audio/ogg",
    ("OGG", "OPUS"): "audio/ogg",
    ("MP3", "MPEG_LAYER_III"): "audio/mpeg",
}
"""Media types of the formats and encodings, as libsndfile names them, that browsers play (tried with Chromium)."""

MAX_PLAYED_CHANNELS = 8
PLAYED_RATES_HZ = range(3_000, 384_001)
"""Sample rates that Chromium plays (its kMinSampleRate and an earlier kMaxSampleRate)."""

CHUNK_BYTES = 2**17

MAX_CONVERSIONS = 64
"""Maximum number of recordings that are converted at a time. A player that is paused keeps its conversion."""

BYTE_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


@dataclass(frozen=True)
class ByteRange:
    """Part of a file's bytes: from `start` to before `stop`."""

    start: int
    stop: int


class Playback:
    """Sends recordings to players, and converts a bounded number of them at a time."""

    def __init__(self) -> None:
        self.num_conversions = 0

    async def send_recording(self, recording: Recording, request: Request, is_download: bool) -> Response:
        """Return a response with a recording, or with the range of its bytes that a request asks for. For a download,
        it is the file itself, in whatever format.

        Raises ProblemError if the file no longer exists or isn't audio, or if too many recordings are being converted.
        """
        status = await run_in_threadpool(get_status, recording.path)
        media_type = await run_in_threadpool(
            find_media_type, recording.path, status.st_ino, status.st_size, status.st_mtime_ns
        )
        num_samples = max(1, round(recording.duration_s * SAMPLE_RATE_HZ))
        is_converted = media_type is None and not is_download
        size = WAV_HEADER_BYTES + num_samples * BYTES_PER_SAMPLE if is_converted else status.st_size
        tag = f'"{hashlib.sha256(f"{status.st_mtime_ns} {size}".encode()).hexdigest()[:16]}"'
        part, is_partial = choose_range(request, size, tag)
        headers = {"Accept-Ranges": "bytes", "Content-Length": str(part.stop - part.start), "ETag": tag}
        if is_partial:
            headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{size}"
        if is_download:
            headers["Content-Disposition"] = f"attachment; filename*=utf-8''{quote(recording.path.name, safe='')}"
            media_type = "application/octet-stream"
        code = 206 if is_partial else 200
        if request.method == "HEAD":
            return Response(None, code, headers, media_type or "audio/wav")
        chunks: AsyncIterator[bytes]
        if is_converted:
            chunks = await start_chunks(self.convert(recording.path, num_samples, part))
        else:
            file = await run_in_threadpool(open_recording, recording.path)
            chunks = iterate_in_threadpool(read_chunks(file, part))
        return StreamingResponse(chunks, code, headers, media_type or "audio/wav")

    async def convert(self, path: Path, num_samples: int, part: ByteRange) -> AsyncGenerator[bytes]:
        """Yield the bytes of a part of a recording that is converted to a WAV file of `num_samples`."""
        if self.num_conversions >= MAX_CONVERSIONS:
            raise ProblemError(
                503, f"{MAX_CONVERSIONS} recordings are being converted: close players on other pages, and try again."
            )
        self.num_conversions += 1
        try:
            async with contextlib.aclosing(stream_wav(path, num_samples, part.start, part.stop)) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            self.num_conversions -= 1


async def start_chunks(chunks: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """Return a generator of the same chunks. The first one has been generated, so that an error that it raises can
    still become the response.
    """
    first = await anext(chunks)

    async def continue_chunks() -> AsyncGenerator[bytes]:
        async with contextlib.aclosing(chunks):
            yield first
            async for chunk in chunks:
                yield chunk

    return continue_chunks()


def get_status(path: Path) -> os.stat_result:
    """Return the status of a recording's file. Raises ProblemError if it no longer exists or isn't a regular file."""
    try:
        status = path.stat()
    except OSError as error:
        raise explain_gone_file(path) from error
    if not stat.S_ISREG(status.st_mode):
        raise explain_gone_file(path)
    return status


def open_recording(path: Path) -> BinaryIO:
    """Open a recording's file. Raises ProblemError if that is impossible."""
    try:
        return path.open("rb")
    except OSError as error:
        raise explain_gone_file(path) from error


def explain_gone_file(path: Path) -> ProblemError:
    """Return the error of a recording whose file has gone."""
    return ProblemError(
        410,
        f"{path.name} no longer exists in its folder or can't be read. If it was moved, add the folder that it is in "
        "now to the index: search.py DIR --add FOLDER.",
    )


@functools.lru_cache(maxsize=10_000)
def find_media_type(path: Path, inode: int, size: int, mtime_ns: int) -> str | None:
    """Return the media type of an audio file; None if browsers can't play its format. The file's inode, size and
    modification time make it be looked at again after a change.

    Raises ProblemError if libsndfile doesn't recognise the file.
    """
    try:
        info = soundfile.info(str(path))
    except (soundfile.SoundFileError, OSError) as error:
        raise ProblemError(
            422, f"{path.name} is no longer an audio file that can be read: restore it, or update the index with --add."
        ) from error
    is_playable = info.channels <= MAX_PLAYED_CHANNELS and info.samplerate in PLAYED_RATES_HZ
    return MEDIA_TYPES.get((info.format, info.subtype)) if is_playable else None


def choose_range(request: Request, size: int, tag: str) -> tuple[ByteRange, bool]:
    """Return two values: the range of a file's bytes to send, and whether the response is partial. The whole file is
    sent if a request asks for several ranges, or for a range of a version of the file that doesn't have this tag.

    Raises ProblemError, with status 416, if the range is outside the file.
    """
    whole = ByteRange(0, size)
    match = BYTE_RANGE.fullmatch(request.headers.get("range", "").replace(" ", ""))
    if not match or match[1] == match[2] == "" or request.headers.get("if-range", tag) != tag:
        return whole, False
    start = int(match[1]) if match[1] else max(0, size - int(match[2]))
    stop = min(size, int(match[2]) + 1) if match[1] and match[2] else size
    if not start < stop:
        raise ProblemError(
            416, f"The range isn't within the {size:,} bytes of the file.", {"Content-Range": f"bytes */{size}"}
        )
    return ByteRange(start, stop), True


def read_chunks(file: BinaryIO, part: ByteRange) -> Iterator[bytes]:
    """Yield a part of an open file in chunks, and close the file."""
    with file:
        file.seek(part.start)
        missing = part.stop - part.start
        while missing and (chunk := file.read(min(CHUNK_BYTES, missing))):
            missing -= len(chunk)
            yield chunk

"""Decode audio files in processes of their own: uploaded recordings, and recordings that browsers can't play."""

import asyncio
import contextlib
import os
import signal
import struct
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import BinaryIO

from data.schema import SAMPLE_RATE_HZ
from ensemble.web.problems import ProblemError

ROOT = Path(__file__).parents[2]

MAX_QUERY_S = 60
"""Maximum duration of an uploaded recording that is searched with; the rest is left out."""

MAX_QUERY_DECODING_S = 30
"""Limit of the time to decode an uploaded recording, and of its CPU time."""

MAX_PLAYBACK_CPU_S = 900
"""Limit of the CPU time to decode a recording that is played: an hour of audio takes 10 s (measured)."""

MAX_MEMORY_BYTES = 2**30
"""Limit of the address space of a process that decodes (assumed): an hour of audio needs 0.34 GB (measured)."""

BYTES_PER_SAMPLE = 2
WAV_HEADER_BYTES = 44
MAX_WAV_BYTES = 2**32 - 1
PIPE_BYTES = 2**16

ENVIRONMENT = ("HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "TMPDIR")
"""Environment variables that the processes keep: they decode files of strangers and need no keys or tokens."""


@contextlib.asynccontextmanager
async def start_decoder(
    path: Path, skipped: int, max_samples: int, cpu_s: int, out: BinaryIO | int
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Start a process that decodes an audio file and writes samples to `out`; it is killed at the end of the `with`
    block. See `ensemble.web.decode_to_pcm`.
    """
    environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    words = [str(path.absolute()), str(skipped), str(max_samples), str(cpu_s), str(MAX_MEMORY_BYTES)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "ensemble.web.decode_to_pcm", *words,
        stdin=asyncio.subprocess.DEVNULL, stdout=out, stderr=asyncio.subprocess.PIPE, cwd=ROOT,
        env=environment | {"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()  # closes the pipes


async def decode_upload(source: Path, out: Path) -> list[str]:
    """Decode the first MAX_QUERY_S of an uploaded file, write them as a WAV file, and return the warnings.

    Raises ProblemError if the file can't be decoded within the limits.
    """
    max_samples = MAX_QUERY_S * SAMPLE_RATE_HZ
    with out.open("wb") as file:
        file.write(bytes(WAV_HEADER_BYTES))
        file.flush()
        try:
            async with (
                asyncio.timeout(MAX_QUERY_DECODING_S),
                start_decoder(source, 0, max_samples + 1, MAX_QUERY_DECODING_S, file) as process,
            ):
                _, errors = await process.communicate()
        except TimeoutError as error:
            raise explain_slow_decoding() from error
        lines = errors.decode(errors="replace").splitlines()
        if process.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
            raise explain_slow_decoding()
        if process.returncode:
            reason = lines[-1] if lines and process.returncode == 2 else "its decoder has crashed"
            raise ProblemError(
                422,
                f"The sound was refused: {reason.rstrip('.')}. Convert it, for instance to WAV or FLAC, and try again.",
            )
        num_samples = (out.stat().st_size - WAV_HEADER_BYTES) // BYTES_PER_SAMPLE
        if num_samples > max_samples:
            num_samples = max_samples
            file.truncate(WAV_HEADER_BYTES + num_samples * BYTES_PER_SAMPLE)
            lines.append(f"only the first {MAX_QUERY_S} s are searched with")
        file.seek(0)
        file.write(build_wav_header(num_samples))
    return lines


def explain_slow_decoding() -> ProblemError:
    """Return the error of an upload that takes too long to decode."""
    return ProblemError(
        422, f"The sound can't be decoded within {MAX_QUERY_DECODING_S} s: cut out the part to search with."
    )


def build_wav_header(num_samples: int) -> bytes:
    """Return the header of a WAV file with samples as the decoding processes write them."""
    size = min(num_samples * BYTES_PER_SAMPLE, MAX_WAV_BYTES - WAV_HEADER_BYTES)
    rate = SAMPLE_RATE_HZ
    layout = struct.pack("<HHIIHH", 1, 1, rate, rate * BYTES_PER_SAMPLE, BYTES_PER_SAMPLE, 8 * BYTES_PER_SAMPLE)
    return b"".join((
        b"RIFF", struct.pack("<I", size + WAV_HEADER_BYTES - 8), b"WAVE",
        b"fmt ", struct.pack("<I", len(layout)), layout, b"data", struct.pack("<I", size),
    ))  # fmt: skip


async def stream_wav(path: Path, num_samples: int, start: int, stop: int) -> AsyncGenerator[bytes]:
    """Yield the bytes from `start` to before `stop` of an audio file that is converted to a WAV file of `num_samples`.
    A file that has fewer samples is continued by silence.

    Raises ProblemError instead of yielding anything if the file can't be decoded.
    """
    head = build_wav_header(num_samples)[start:stop]
    skipped, odd = divmod(max(start - WAV_HEADER_BYTES, 0), BYTES_PER_SAMPLE)
    missing = stop - start - len(head)
    max_samples = -(-(missing + odd) // BYTES_PER_SAMPLE)
    pipe = asyncio.subprocess.PIPE
    async with start_decoder(path, skipped, max_samples, MAX_PLAYBACK_CPU_S, pipe) as process:
        assert process.stdout
        data = await process.stdout.read(PIPE_BYTES)
        if not data and await process.wait():
            raise ProblemError(422, f"{path.name} can't be decoded: download it, and open it with another program.")
        yield head
        while missing and data:
            data = data[odd:][:missing]
            odd, missing = 0, missing - len(data)
            yield data
            data = await process.stdout.read(PIPE_BYTES)
    while missing:
        silence = bytes(min(missing, PIPE_BYTES))
        missing -= len(silence)
        yield silence

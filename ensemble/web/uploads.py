"""Receive uploaded recordings: as the body of a request, in bounded size, into a temporary file."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

from fastapi import Request

from ensemble.web.decoding import decode_upload
from ensemble.web.problems import ProblemError

MAX_UPLOAD_BYTES = 100 * 10**6
MAX_DISCARDED_BYTES = 10**9
"""Maximum size of a body that is read to its end, though it is too large: a client that still sends reads no answer."""

MAX_UPLOAD_S = 300
"""Limit of the time to receive an uploaded recording."""

MAX_UPLOADS = 8
"""Maximum number of uploaded recordings at a time; more wait."""

TOO_LARGE = f"The sound has more than {MAX_UPLOAD_BYTES // 10**6} MB: cut out the part to search with, and try again."


class Uploads:
    """Receives and decodes uploaded recordings in a folder for temporary files."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.slots = folder, asyncio.Semaphore(MAX_UPLOADS)

    @contextlib.asynccontextmanager
    async def receive_sound(self, request: Request) -> AsyncIterator[tuple[Path, list[str]]]:
        """Yield two values: a WAV file with the sound in the body of a request, and the changes that were made to it.
        The file exists within the `with` block.

        Raises ProblemError if the body is empty, too large or not audio.
        """
        if int(request.headers.get("content-length", 0)) > MAX_DISCARDED_BYTES:
            raise ProblemError(413, TOO_LARGE)
        name = secrets.token_hex(8)
        received, decoded = self.folder / f"{name}.upload", self.folder / f"{name}.wav"
        async with self.slots:
            try:
                await receive_body(request, received)
                warnings = await decode_upload(received, decoded)
                received.unlink()
                yield decoded, warnings
            finally:
                received.unlink(missing_ok=True)
                decoded.unlink(missing_ok=True)


async def receive_body(request: Request, path: Path) -> None:
    """Write the body of a request to a file.

    Raises ProblemError if it is empty, has more than MAX_UPLOAD_BYTES or takes longer than MAX_UPLOAD_S.
    """
    num_bytes = 0
    try:
        with path.open("xb") as file:
            async with asyncio.timeout(MAX_UPLOAD_S):
                async for chunk in request.stream():
                    num_bytes += len(chunk)
                    if num_bytes > MAX_DISCARDED_BYTES:
                        raise ProblemError(413, TOO_LARGE)
                    if num_bytes <= MAX_UPLOAD_BYTES:
                        file.write(chunk)
    except TimeoutError as error:
        raise ProblemError(408, f"The sound wasn't received within {MAX_UPLOAD_S} s: try again.") from error
    if num_bytes > MAX_UPLOAD_BYTES:
        raise ProblemError(413, TOO_LARGE)
    if not num_bytes:
        raise ProblemError(400, "The body of the request is empty: send an audio file, as curl --data-binary does.")

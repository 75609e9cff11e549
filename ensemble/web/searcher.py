"""Searches that many users make at once: models run in one thread, the index is searched in others."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from data.errors import UserError
from ensemble.serving.hits import Filter, Hit, Recording
from ensemble.web.model_worker import ModelWorker, SentenceBatcher
from ensemble.web.problems import ProblemError

if TYPE_CHECKING:
    from ensemble.serving.library import Library

T = TypeVar("T")


class Searcher:
    """Searches a library for many users at once."""

    def __init__(self, library: "Library") -> None:
        self.library, self.worker = library, ModelWorker()
        self.batcher = SentenceBatcher(library.embed_text, self.worker)

    async def search(self, sentence: str, k: int, where: Filter) -> list[Hit]:
        """Return the k best recordings for a sentence with a word."""
        await self.refresh()
        return await self._search_vector(await self.batcher.embed_sentence(sentence), k, where)

    async def search_audio(self, path: Path, k: int, where: Filter) -> list[Hit]:
        """Return the k recordings that sound most like an audio file. Raises ProblemError if it can't be embedded."""
        await self.refresh()
        try:
            vectors_AD = await self.worker.run(self.library.embed_audio, [path])
        except UserError as error:
            reason = str(error).removeprefix(f"{path}: ")
            raise ProblemError(422, f"The sound was refused: {reason}. Try another part of the recording.") from error
        return await self._search_vector(vectors_AD[0], k, where)

    async def search_similar(self, recording_id: str, k: int, where: Filter) -> list[Hit]:
        """Return the k recordings that sound most like a recording of the index, without itself.

        Raises ProblemError if it isn't in the index.
        """
        await self.refresh()
        return await self.read(lambda: self.library.search_similar(recording_id, k, where), recording_id)

    async def get_recording(self, recording_id: str) -> Recording:
        """Return a recording of the index. Raises ProblemError if it isn't there."""
        return await self.read(lambda: self.library.get(recording_id), recording_id)

    async def read_peaks(self, recording_id: str) -> list[int]:
        """Return the peaks of a recording's waveform. Raises ProblemError if it isn't in the index."""
        peaks = await self.read(lambda: self.library.read_peaks(recording_id), recording_id)
        return [int(peak) for peak in peaks]

    async def refresh(self) -> None:
        """Open the index again if another process has changed it. Raises ProblemError if that is impossible."""
        try:
            if await asyncio.to_thread(self.library.refresh):
                await asyncio.to_thread(self.library.prepare)
        except UserError as error:
            raise ProblemError(503, str(error)) from error

    async def read(self, function: Callable[[], T], recording_id: str) -> T:
        """Call a function that reads a recording of the library, in another thread, and return its result.

        Raises ProblemError if the function raises KeyError: the recording isn't in the index.
        """
        try:
            return await asyncio.to_thread(function)
        except KeyError as error:
            raise ProblemError(404, f"No recording of the index has the id {recording_id}: search again.") from error

    async def _search_vector(self, vector_D: NDArray[np.float32], k: int, where: Filter) -> list[Hit]:
        return (await asyncio.to_thread(self.library.search_vectors, vector_D[np.newaxis], k, where))[0]

    def warm_up(self) -> None:
        """Run the models once, since the first call is slower than others."""
        self.library.embed_text(["a sound"])

    def close(self) -> None:
        """End the thread that runs the models."""
        self.worker.close()

"""The JSON interface: search by text, by a recording of the index or by an uploaded sound, and read recordings."""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from data.captions import has_word
from ensemble.serving.hits import RECORDING_ID, Filter, Hit
from ensemble.web.answers import (
    FoldersAnswer,
    PeaksAnswer,
    RecordingAnswer,
    SearchAnswer,
    describe_folders,
    describe_hits,
    describe_recording,
)
from ensemble.web.playback import Playback
from ensemble.web.problems import Problem, ProblemError
from ensemble.web.searcher import Searcher
from ensemble.web.uploads import Uploads

MAX_RESULTS = 100
MAX_SENTENCE_CHARACTERS = 1_000

RecordingId = Annotated[str, Path(pattern=f"^{RECORDING_ID}$", description="id of a recording")]
NumResults = Annotated[int, Query(ge=1, le=MAX_RESULTS, description="maximum number of recordings")]
Seconds = Annotated[float | None, Query(ge=0, allow_inf_nan=False)]
Name = Annotated[str | None, Query(max_length=4_096)]

PROBLEMS: dict[int | str, dict[str, Any]] = {"4XX": {"model": Problem}, "5XX": {"model": Problem}}
AUDIO: dict[int | str, dict[str, Any]] = {
    200: {"content": {"audio/*": {"schema": {"type": "string", "format": "binary"}}}, "description": "the recording"},
    206: {"description": "a range of its bytes"},
}
UPLOAD = {
    "requestBody": {
        "required": True,
        "description": "an audio file of at most 100 MB, as it is",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


def read_filter(
    corpus: Name = None, folder: Name = None, min_duration_s: Seconds = None, max_duration_s: Seconds = None
) -> Filter:
    """Return the conditions on recordings in the parameters of a request."""
    return Filter(corpus, folder, min_duration_s, max_duration_s)


Where = Annotated[Filter, Depends(read_filter)]


def build_router(searcher: Searcher, playback: Playback, uploads: Uploads) -> APIRouter:
    """Return the routes of the JSON interface."""
    router, library = APIRouter(prefix="/api", responses=PROBLEMS), searcher.library

    async def describe(hits: Sequence[Hit], warnings: Sequence[str] = ()) -> SearchAnswer:
        return await run_in_threadpool(describe_hits, hits, len(library.recordings), warnings)

    @router.get("/search", tags=["search"], summary="Search by a sentence")
    async def search(
        q: Annotated[str, Query(min_length=1, max_length=MAX_SENTENCE_CHARACTERS, description="a sentence")],
        where: Where,
        k: NumResults = 10,
    ) -> SearchAnswer:
        if not has_word(q):
            raise ProblemError(422, "The sentence contains no word: describe a sound, such as 'rain on a tin roof'.")
        return await describe(await searcher.search(q, k, where))

    @router.get("/similar", tags=["search"], summary="Search by a recording of the index")
    async def search_similar(
        id: Annotated[str, Query(pattern=f"^{RECORDING_ID}$", description="id of a recording")],  # noqa: A002
        where: Where,
        k: NumResults = 10,
    ) -> SearchAnswer:
        return await describe(await searcher.search_similar(id, k, where))

    @router.post("/similar", tags=["search"], summary="Search by an uploaded sound", openapi_extra=UPLOAD)
    async def search_audio(request: Request, where: Where, k: NumResults = 10) -> SearchAnswer:
        async with uploads.receive_sound(request) as (path, warnings):
            return await describe(await searcher.search_audio(path, k, where), warnings)

    @router.get("/folders", tags=["recordings"], summary="List the folders of the index")
    async def list_folders() -> FoldersAnswer:
        await searcher.refresh()
        return await run_in_threadpool(lambda: describe_folders(library.list_folders()))

    @router.get("/recordings/{recording_id}", tags=["recordings"], summary="Describe a recording")
    async def get_recording(recording_id: RecordingId) -> RecordingAnswer:
        return await run_in_threadpool(describe_recording, await searcher.get_recording(recording_id))

    @router.get("/peaks/{recording_id}", tags=["recordings"], summary="Read the waveform of a recording")
    async def read_peaks(recording_id: RecordingId) -> PeaksAnswer:
        return PeaksAnswer(peaks=await searcher.read_peaks(recording_id))

    @router.head("/audio/{recording_id}", include_in_schema=False)
    @router.get("/audio/{recording_id}", tags=["recordings"], summary="Play or download a recording", responses=AUDIO)
    async def send_audio(
        request: Request,
        recording_id: RecordingId,
        download: Annotated[bool, Query(description="send the file itself instead of one that browsers play")] = False,
    ) -> Response:
        return await playback.send_recording(await searcher.get_recording(recording_id), request, download)

    return router

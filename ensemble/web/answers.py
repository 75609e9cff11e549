"""Types of the JSON that the server answers with."""

from collections.abc import Sequence

from pydantic import BaseModel, Field

from ensemble.serving.hits import FolderCount, Hit, Recording


class RecordingAnswer(BaseModel):
    """Recording of the index."""

    id: str = Field(description="16 hexadecimal digits")
    name: str = Field(description="name of the file")
    path: str
    corpus: str = Field(description="name of the folder that was added to the index")
    folder: str = Field(description="folder of the file, relative to the added folder; empty for that folder itself")
    duration_s: float
    captions: list[str]
    exists: bool = Field(description="false if the file was moved or removed since it was added to the index")


class MomentAnswer(BaseModel):
    """Part of a recording that fits a query well."""

    start_s: float
    end_s: float
    score: float


class HitAnswer(BaseModel):
    """Result of a search."""

    recording: RecordingAnswer
    score: float
    moments: list[MomentAnswer] = Field(description="best moments, the best first")


class SearchAnswer(BaseModel):
    """Results of a search."""

    hits: list[HitAnswer] = Field(description="recordings, the best first")
    num_recordings: int = Field(description="number of recordings in the index")
    warnings: list[str] = Field(default=[], description="changes to the uploaded audio, if there are any")


class FolderAnswer(BaseModel):
    """Folder of a corpus."""

    corpus: str
    folder: str
    num_recordings: int = Field(description="number of recordings, without those of subfolders")


class FoldersAnswer(BaseModel):
    """Folders of the index."""

    folders: list[FolderAnswer]
    num_recordings: int = Field(description="number of recordings in the index")


class PeaksAnswer(BaseModel):
    """Waveform of a recording."""

    peaks: list[int] = Field(description="peaks of equal parts of the recording, 0 to 255")


def describe_recording(recording: Recording) -> RecordingAnswer:
    """Return the answer for a recording; whether its file exists is looked up."""
    return RecordingAnswer(
        id=recording.id,
        name=recording.path.name,
        path=str(recording.path),
        corpus=recording.corpus,
        folder=recording.folder,
        duration_s=recording.duration_s,
        captions=list(recording.captions),
        exists=recording.path.is_file(),
    )


def describe_hits(hits: Sequence[Hit], num_recordings: int, warnings: Sequence[str] = ()) -> SearchAnswer:
    """Return the answer for the results of a search, in an index of `num_recordings`."""
    return SearchAnswer(
        hits=[
            HitAnswer(
                recording=describe_recording(hit.recording),
                score=hit.score,
                moments=[
                    MomentAnswer(start_s=moment.start_s, end_s=moment.end_s, score=moment.score)
                    for moment in hit.moments
                ],
            )
            for hit in hits
        ],
        num_recordings=num_recordings,
        warnings=list(warnings),
    )


def describe_folders(folders: Sequence[FolderCount]) -> FoldersAnswer:
    """Return the answer for the folders of an index."""
    return FoldersAnswer(
        folders=[
            FolderAnswer(corpus=count.corpus, folder=count.folder, num_recordings=count.num_recordings)
            for count in folders
        ],
        num_recordings=sum(count.num_recordings for count in folders),
    )

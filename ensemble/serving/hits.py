"""Recordings of an index, results of a search, and filters. They hold plain values only."""

from dataclasses import dataclass
from pathlib import Path

RECORDING_ID = "[0-9a-f]{16}"
"""Pattern of the id of a recording, in hexadecimal digits."""


@dataclass(frozen=True)
class Recording:
    """Recording in an index."""

    id: str  # 16 hexadecimal digits, from the path
    path: Path
    corpus: str  # name of the folder that was added
    folder: str  # folder of the file, relative to the added folder; '' for the added folder itself
    duration_s: float
    captions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Moment:
    """Part of a recording, with its score."""

    start_s: float
    end_s: float
    score: float


@dataclass(frozen=True)
class Hit:
    """Result of a search: a recording with its score, and its best moments, the best first."""

    recording: Recording
    score: float
    moments: tuple[Moment, ...]

    @property
    def path(self) -> Path:
        """Path of the recording."""
        return self.recording.path


@dataclass(frozen=True)
class Filter:
    """Conditions on recordings; None leaves a condition out."""

    corpus: str | None = None
    folder: str | None = None  # with its subfolders, relative to the corpus
    min_duration_s: float | None = None
    max_duration_s: float | None = None

    def accepts_folder(self, corpus: str, folder: str) -> bool:
        """Return whether recordings in a folder of a corpus meet the conditions on them."""
        is_in_folder = not self.folder or f"{folder}/".startswith(f"{self.folder}/")
        return self.corpus in (None, corpus) and is_in_folder


NO_FILTER = Filter()


@dataclass(frozen=True)
class FolderCount:
    """Number of recordings in a folder of a corpus, without its subfolders."""

    corpus: str
    folder: str
    num_recordings: int

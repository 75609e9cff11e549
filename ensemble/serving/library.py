"""Search a library of recordings with an exported ensemble: `load(folder).search("rain on a tin roof", k=5)`."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data.captions import normalise
from data.errors import UserError
from ensemble.index.manifest import Manifest, identify_manifest
from ensemble.index.vector_search import OpenedIndex, ScoredRows, choose_best, open_index
from ensemble.serving import index_update
from ensemble.serving.bundle import EnsembleModels, load_models
from ensemble.serving.hits import NO_FILTER, RECORDING_ID, Filter, FolderCount, Hit, Moment, Recording
from ensemble.serving.index_update import UpdateSummary, require_ensemble
from trainables.records.run_storage import RunStorage

INDEX_FOLDER = "index"
"""Folder of the index in an exported ensemble."""

NUM_MOMENTS = 3
"""Number of moments of a hit."""

MOMENT_CANDIDATES = 8
"""Number of moments that are scored for each hit of a search for moments, since touching ones are merged."""


class Library:
    """Library of recordings that an ensemble searches. Its methods may be called from several threads.

    Args:
        folder: the folder of the index; it needn't exist yet.
        models: the models of the ensemble.

    Raises:
        UserError: if the index is damaged, or belongs to another ensemble.
    """

    def __init__(self, folder: Path, models: EnsembleModels) -> None:
        self.folder, self.models = folder, models
        self.text_lock, self.opening_lock = threading.Lock(), threading.Lock()  # tokenizers aren't thread-safe
        self.identity = identify_manifest(folder)
        self.view = self.open_view()

    def open_view(self) -> LibraryView:
        """Return the state of the index. Raises UserError if it is damaged, or belongs to another ensemble."""
        empty = Manifest(self.models.signature, self.models.embedding_size)
        index = open_index(self.folder) or OpenedIndex(self.folder, empty)
        require_ensemble(index, self.models)
        return LibraryView(index)

    def prepare(self) -> None:
        """Read into memory what searches need of the index, so that the first one is as fast as all others."""
        self.view.index.prepare()

    def refresh(self) -> bool:
        """Open the index again if it was changed, and return whether it was."""
        with self.opening_lock:
            identity = identify_manifest(self.folder)
            if identity == self.identity:
                return False
            self.view = self.open_view()
            self.identity = identity
            return True

    def __len__(self) -> int:
        """Return the number of recordings."""
        return len(self.view.index)

    @property
    def recordings(self) -> Sequence[Recording]:
        """Recordings of the index."""
        return self.view.recordings

    def get(self, recording_id: str) -> Recording:
        """Return the recording with an id. Raises KeyError if the index has none."""
        view = self.view
        return view.describe(view.find(recording_id))

    def list_folders(self) -> list[FolderCount]:
        """Return the folders that have recordings, and the number of recordings in each, sorted."""
        return self.view.folder_counts

    def read_peaks(self, recording_id: str) -> NDArray[np.uint8]:
        """Return the peaks of a recording's waveform: the maxima of 240 parts of equal length, from 0 to 255. Raises
        KeyError if the index has no recording with this id.
        """
        view = self.view
        part, number = view.index.locate(view.find(recording_id))
        return np.frombuffer(part.recordings["peaks"][number].as_py(), np.uint8)

    def describe_search(self) -> str:
        """Return a sentence on how the index is searched: exactly, or by reduced vectors."""
        return self.view.index.describe_search()

    def embed_text(self, sentences: Sequence[str]) -> NDArray[np.float32]:
        """Return the vectors of sentences [Q, D]. Raises UserError for a sentence without a word."""
        for sentence in sentences:
            if not normalise(sentence):
                raise UserError(f"{sentence!r} contains no word to search for")
        with self.text_lock:
            return self.models.embed_text(sentences)

    def embed_audio(self, paths: Iterable[Path | str]) -> NDArray[np.float32]:
        """Return the vectors of audio files [A, D], of the beginning of each that the ensemble embeds as one clip.
        Raises UserError if one can't be decoded.
        """
        files = [Path(path) for path in paths]
        vectors_AD, _, problems = self.models.embed_files(files)
        for path, reason in problems.skipped.items():
            raise UserError(f"{path}: {reason}")
        return self.models.convert_to_queries(vectors_AD)

    def search(self, sentence: str, k: int = 10, where: Filter = NO_FILTER) -> list[Hit]:
        """Return the `k` recordings with the highest scores for a sentence, the best first.

        Args:
            sentence: what to search for.
            k: maximum number of recordings.
            where: conditions on the recordings.

        Raises:
            UserError: if the sentence has no word.
        """
        return self.search_vectors(self.embed_text([sentence]), k, where)[0]

    def search_audio(self, path: Path | str, k: int = 10, where: Filter = NO_FILTER) -> list[Hit]:
        """Return the `k` recordings that are most similar to the beginning of an audio file, the best first. Raises
        UserError if the file can't be decoded.
        """
        return self.search_vectors(self.embed_audio([path]), k, where)[0]

    def search_similar(self, recording_id: str, k: int = 10, where: Filter = NO_FILTER) -> list[Hit]:
        """Return the `k` recordings that are most similar to the beginning of a recording, without the recording
        itself, the best first. Raises KeyError if the index has no recording with this id.
        """
        view = self.view
        number = view.find(recording_id)
        vectors_RD = view.index.load_rows(view.index.find_rows(number, "passages")[:1])
        hits = view.search(self.models.convert_to_queries(vectors_RD), k + 1, where)[0]
        return [hit for hit in hits if hit.recording.id != recording_id][:k]

    def search_vectors(
        self,
        vectors_QD: NDArray[np.float32],
        k: int = 10,
        where: Filter = NO_FILTER,
        kind: Literal["recordings", "moments"] = "recordings",
    ) -> list[list[Hit]]:
        """Return the `k` recordings or moments with the highest scores for each query, the best first; ties are sorted
        by path. A recording's score is that of its best passage.

        Args:
            vectors_QD: vectors from `embed_text` or `embed_audio`.
            k: maximum number of hits per query.
            where: conditions on the recordings.
            kind: what to search for.
        """
        view = self.view
        return (view.search if kind == "recordings" else view.search_moments)(vectors_QD, k, where)

    def search_moments(self, sentence: str, k: int = 10, where: Filter = NO_FILTER) -> list[Hit]:
        """Return the `k` moments with the highest scores for a sentence, the best first. Moments of a recording that
        touch are merged, and have the score of the best one.
        """
        return self.search_vectors(self.embed_text([sentence]), k, where, "moments")[0]

    def add(self, paths: Iterable[Path | str], progress: Callable[[int, int], None] | None = None) -> UpdateSummary:
        """Add audio files, and the audio files in folders, to the index, and return what was changed.

        Args:
            paths: files and folders.
            progress: function that is called with the number of files that are done, and of all files to embed.

        Raises:
            UserError: if no file can be decoded, or another process is writing to the index.
        """
        summary = index_update.update_index(self.folder, map(Path, paths), self.models, False, progress)
        self.refresh()
        return summary

    def sync(self, folder: Path | str, progress: Callable[[int, int], None] | None = None) -> UpdateSummary:
        """Bring the index in step with a folder: add new and changed files, and remove recordings whose files no longer
        exist. The arguments are those of `add`.
        """
        summary = index_update.update_index(self.folder, [Path(folder)], self.models, True, progress)
        self.refresh()
        return summary

    def remove(self, paths: Iterable[Path | str]) -> int:
        """Remove recordings from the index, by their paths or folders, and return their number. The files are kept."""
        num_removed = index_update.remove_paths(self.folder, map(Path, paths), self.models)
        self.refresh()
        return num_removed


class LibraryView:
    """State of a library between two changes of its index, which searches use from beginning to end.

    Args:
        index: the opened index.
    """

    def __init__(self, index: OpenedIndex) -> None:
        self.index = index
        self.recordings = RecordingSequence(self)

    def find(self, recording_id: str) -> int:
        """Return the number of the recording with an id. Raises KeyError if there is none."""
        if not re.fullmatch(RECORDING_ID, recording_id):
            raise KeyError(recording_id)
        (number,) = self.index.find_recordings([int(recording_id, 16)])
        if number is None:
            raise KeyError(recording_id)
        return number

    def describe(self, number: int) -> Recording:
        """Return a recording by its number."""
        part, local = self.index.locate(number)
        row = part.recordings.select(["id", "path", "root", "duration_s", "captions"]).slice(local, 1).to_pylist()[0]
        return Recording(
            f"{row['id']:016x}",
            Path(row["path"]),
            *split_location(row["path"], row["root"]),
            row["duration_s"],
            tuple(row["captions"]),
        )

    @cached_property
    def locations(self) -> tuple[list[tuple[str, str]], NDArray[np.int32]]:
        """Pairs of corpus and folder, and the number of the pair of each recording [A]."""
        numbers: dict[tuple[str, str], int] = {}
        codes = []
        for part in self.index.parts:
            columns = part.recordings.select(["path", "root"])
            roots = columns["root"].to_pylist()
            for path, root in zip(columns["path"].to_pylist(), roots, strict=True):
                codes.append(numbers.setdefault(split_location(path, root), len(numbers)))
        return list(numbers), np.array(codes, np.int32)

    @cached_property
    def folder_counts(self) -> list[FolderCount]:
        """Folders that have recordings, with the number of recordings in each, sorted."""
        pairs, location_A = self.locations
        counts = np.bincount(location_A[~self.index.is_removed_A], minlength=len(pairs))
        return [FolderCount(*pair, int(count)) for pair, count in sorted(zip(pairs, counts, strict=True)) if count]

    def apply(self, where: Filter) -> NDArray[np.bool_] | None:
        """Return which recordings meet the conditions [A]; None if there are no conditions."""
        if where == NO_FILTER:
            return None
        duration_A = self.index.duration_A
        accepted_A = np.ones(len(duration_A), bool)
        if where.min_duration_s is not None:
            accepted_A &= duration_A >= where.min_duration_s
        if where.max_duration_s is not None:
            accepted_A &= duration_A <= where.max_duration_s
        if where.corpus is not None or where.folder is not None:
            pairs, location_A = self.locations
            accepted_A &= np.array([where.accepts_folder(*pair) for pair in pairs], bool)[location_A]
        return accepted_A

    def search(self, vectors_QD: NDArray[np.float32], k: int, where: Filter) -> list[list[Hit]]:
        """Return the `k` recordings with the highest scores for each query."""
        scored = self.index.score_recordings(vectors_QD, k, self.apply(where))
        return [
            [
                Hit(recording, score, self.find_moments(number, vector_D))
                for score, recording, number in self.rank(choose_best(recordings, k))[:k]
            ]
            for recordings, vector_D in zip(scored, vectors_QD, strict=True)
        ]

    def rank(self, scored: ScoredRows) -> list[tuple[float, Recording, int]]:
        """Return scores, recordings and their numbers, the best first; ties are sorted by path."""
        described = [
            (float(score), self.describe(int(number)), int(number)) for number, score in zip(*scored, strict=True)
        ]
        return sorted(described, key=lambda item: (-item[0], str(item[1].path)))

    def find_moments(self, number: int, vector_D: NDArray[np.float32]) -> tuple[Moment, ...]:
        """Return the best moments of a recording for a query, the best first."""
        rows = self.index.find_rows(number, "moments")
        scores = self.index.load_rows(rows) @ vector_D
        best = np.argsort(-scores, kind="stable")[:NUM_MOMENTS]
        intervals = self.index.read_intervals(rows[best])
        return tuple(
            Moment(float(start), float(end), float(score))
            for (start, end), score in zip(intervals, scores[best], strict=True)
        )

    def search_moments(self, vectors_QD: NDArray[np.float32], k: int, where: Filter) -> list[list[Hit]]:
        """Return the `k` moments with the highest scores for each query; those that touch are merged."""
        accepted_A, num = self.apply(where), MOMENT_CANDIDATES * k
        scored = self.index.score("moments", vectors_QD, num, accepted_A)
        return [self.merge_moments(choose_best(rows, num))[:k] for rows in scored]

    def merge_moments(self, scored: ScoredRows) -> list[Hit]:
        """Return moments as hits, the best first, with those that touch merged."""
        rows_R, scores_R = scored
        merged: list[tuple[int, Moment]] = []
        recordings_R, intervals = self.index.recording_R[rows_R], self.index.read_intervals(rows_R)
        order = np.lexsort((intervals[:, 0], recordings_R))
        for number, (start, end), score in zip(recordings_R[order], intervals[order], scores_R[order], strict=True):
            if merged and merged[-1][0] == number and start <= merged[-1][1].end_s:
                last = merged.pop()[1]
                start, end, score = last.start_s, max(end, last.end_s), max(score, last.score)
            merged.append((int(number), Moment(float(start), float(end), float(score))))
        hits = [Hit(self.describe(number), moment.score, (moment,)) for number, moment in merged]
        return sorted(hits, key=lambda hit: (-hit.score, str(hit.path), hit.moments[0].start_s))


def split_location(path: str, root: str) -> tuple[str, str]:
    """Return the corpus of a file, which is the name of the added folder, and the file's folder relative to that one.

    Example:
        >>> split_location("/sounds/rain/roof/1.wav", "/sounds")
        ('sounds', 'rain/roof')
    """
    return root.rstrip("/").rpartition("/")[2], path[len(root) :].strip("/").rpartition("/")[0]


class RecordingSequence(Sequence[Recording]):
    """Recordings of an index in the order of the index, read when they are used.

    Args:
        view: the state of the library.
    """

    def __init__(self, view: LibraryView) -> None:
        self.view, self.numbers = view, np.flatnonzero(~view.index.is_removed_A)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, position: int) -> Recording:  # type: ignore[override]
        return self.view.describe(int(self.numbers[position]))

    def __iter__(self) -> Iterator[Recording]:
        return (self.view.describe(int(number)) for number in self.numbers)


def load(folder: Path | str, index: Path | str | None = None, runs: RunStorage | None = None) -> Library:
    """Return the library of an exported ensemble.

    Args:
        folder: the folder of the exported ensemble, or an ensemble.json.
        index: the folder of the index; by default `index` in the folder of the ensemble.
        runs: the run storage with the members' models, for an ensemble.json.

    Raises:
        UserError: if a model is missing, or the index belongs to another ensemble.
    """
    folder = Path(folder)
    models = load_models(folder, runs)
    default = (folder if folder.is_dir() else folder.parent) / INDEX_FOLDER
    return Library(Path(index) if index is not None else default, models)

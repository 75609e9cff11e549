"""Add audio files to an index, and keep it in step with folders.

A file is recognised by its path, size and modification time, or else by its contents: a file that was moved or copied
keeps its vectors. An interruption loses at most one part of the files.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from data.errors import UserError
from data.sources.audio_files import AudioListing, FileProblems, list_audio_files
from data.sources.csv_tables import read_csv
from data.sources.file_names import FileMatcher
from data.store.locks import lock_folder
from ensemble.index.parts import UNKNOWN_DIGEST, IndexedFile, IndexedRecording, compute_id
from ensemble.index.vector_search import OpenedIndex
from ensemble.index.writer import IndexWriter
from ensemble.serving.bundle import EnsembleModels
from ensemble.serving.recording_vectors import RecordingVectors, embed_recordings

logger = logging.getLogger("chorale.recordings")

MIN_PART_FILES = 256
"""Minimum number of files that are embedded before they are written."""

CAPTION_PREFIX = "caption"
"""Beginning of the names of the columns of captions: caption, caption_1, ..."""

ReportProgress = Callable[[int, int], None]
"""Function that is called with the numbers of files that are done and of all files to embed."""


@dataclass
class UpdateSummary:
    """Changes of an index by one update."""

    num_embedded: int = 0
    num_reused: int = 0
    num_unchanged: int = 0
    num_removed: int = 0
    listings: Sequence[tuple[Path, AudioListing]] = ()  # folders that were added, and their files
    problems: FileProblems = field(default_factory=FileProblems)

    def log_problems(self) -> None:
        """Log each file that can't be used, was skipped, or was changed when it was decoded."""
        for root, listing in self.listings:
            listing.log_unusable(root)
        self.problems.log(logger)

    def log(self) -> None:
        """Log the problems, and the changes."""
        self.log_problems()
        num_skipped = len(self.problems.skipped) + sum(len(listing.skipped) for _, listing in self.listings)
        logger.info(
            "%d files embedded, %d unchanged, %d removed, %d skipped",
            self.num_embedded, self.num_unchanged, self.num_removed, num_skipped,
        )  # fmt: skip
        if self.num_reused:
            logger.info("%d files have the contents of recordings in the index: not embedded again", self.num_reused)


def update_index(
    folder: Path,
    paths: Iterable[Path],
    models: EnsembleModels,
    removes_absent: bool = False,
    report_progress: ReportProgress | None = None,
) -> UpdateSummary:
    """Add new and changed audio files, and those in folders, to an index, and return what was changed.

    A recording whose file no longer exists, while a new file has the same contents, was moved: it is removed. A
    symbolic link in a folder is listed by its own path, since its target may be outside the folder.

    Args:
        folder: the folder of the index, which is created if it doesn't exist.
        paths: audio files, and folders, which are searched recursively.
        models: the models of the ensemble.
        removes_absent: whether to remove recordings of the folders whose files no longer exist; then all paths must be
            folders.
        report_progress: function to call after each part of the files.

    Raises:
        UserError: if no file can be used, the index belongs to another ensemble, or another command is writing to it.
    """
    listings = []
    for path in paths:
        path = path.resolve()
        is_file = path.is_file() and not removes_absent
        listings.append((path.parent, AudioListing([path], {}, [])) if is_file else (path, list_audio_files(path)))
    return update_files(folder, listings, models, removes_absent, report_progress)


def remove_paths(folder: Path, paths: Iterable[Path], models: EnsembleModels) -> int:
    """Remove recordings from an index, by their paths or by folders that they are in, and return their number. The
    files stay as they are. A path that the index doesn't have is ignored.
    """
    with lock_folder(folder):
        writer = open_writer(folder, models)
        numbers = list_recordings_below(writer.index, [path.absolute() for path in paths])
        writer.commit([], numbers)
        return len(numbers)


def open_writer(folder: Path, models: EnsembleModels) -> IndexWriter:
    """Return the writer of an index. Raises UserError if the index belongs to another ensemble."""
    writer = IndexWriter(folder, models.signature, models.compute_query_scale())
    require_ensemble(writer.index, models)
    return writer


def require_ensemble(index: OpenedIndex, models: EnsembleModels) -> None:
    """Raise UserError if an index was created with another ensemble."""
    signature = index.manifest.signature
    if (signature, index.manifest.vector_size) != (models.signature, models.embedding_size):
        raise UserError(f"{index.folder} is the index of another ensemble ({signature}, not {models.signature})")


def update_files(
    folder: Path,
    listings: Sequence[tuple[Path, AudioListing]],
    models: EnsembleModels,
    removes_absent: bool,
    report_progress: ReportProgress | None,
) -> UpdateSummary:
    """Update an index with listed files, as `update_index` does. `listings` are pairs of the folder that was added and
    its files.
    """
    summary = UpdateSummary(listings=listings)
    with lock_folder(folder):
        writer = open_writer(folder, models)
        files = [file for root, listing in listings for file in stat_files(root, listing, summary.problems)]
        changed = [hash_file(file) for file in find_changed(writer.index, files)]
        summary.num_unchanged = len(files) - len(changed)
        moved = reuse_vectors(writer, changed, summary)
        waiting = [file for file in changed if file.path not in moved]
        num_waiting = len(waiting)
        while waiting:
            size = max(MIN_PART_FILES, len(writer.index) // 4)
            part, waiting = waiting[:size], waiting[size:]
            embed_part(writer, part, models, summary)
            if report_progress:
                report_progress(num_waiting - len(waiting), num_waiting)
        if removes_absent:
            listed = {file.path for file in files}
            roots = [root for root, _ in listings]
            remove_absent(writer, roots, listed, summary)
        if not len(writer.index):
            summary.log_problems()
            raise UserError(f"{', '.join(str(root) for root, _ in listings)}: no audio file can be decoded")
        writer.prepare_search()
    return summary


def stat_files(root: Path, listing: AudioListing, problems: FileProblems) -> Iterator[IndexedFile]:
    """Yield the audio files of a listing with their sizes, times and captions. Files that can't be read are added to
    `problems`.
    """
    captions = read_captions(root, listing.paths)
    for path in listing.paths:
        try:
            status = path.stat()
        except OSError as error:
            problems.skipped[path] = f"can't be read: {error.strerror}"
            continue
        yield IndexedFile(str(path), str(root), status.st_size, status.st_mtime_ns, captions.get(path, ()))


def read_captions(root: Path, paths: Sequence[Path]) -> Mapping[Path, tuple[str, ...]]:
    """Return the captions of audio files, from the tables *.csv in the folder that have the columns file_name and
    caption, or caption_1, caption_2 and so on. A table with errors is logged, and ignored.
    """
    captions: dict[Path, list[str]] = {}
    matcher = FileMatcher((path.relative_to(root).as_posix() for path in paths), root)
    for table in sorted(root.glob("*.csv")):
        try:
            rows = read_csv(table, ["file_name"])
        except UserError as error:
            logger.warning("captions aren't read: %s", error)
            continue
        columns = [name for name in rows[0].cells if name.startswith(CAPTION_PREFIX)]
        matches = matcher.match(row["file_name"] for row in rows)
        for row in rows:
            files = matches[row["file_name"]]
            texts = [text for column in columns if (text := row.get_optional(column).strip())]
            if len(files) == 1:
                captions.setdefault(root / files[0], []).extend(texts)
    return {path: tuple(dict.fromkeys(texts)) for path, texts in captions.items()}


def find_changed(index: OpenedIndex, files: Sequence[IndexedFile]) -> list[IndexedFile]:
    """Return the files that the index doesn't have, or has with another size, time or captions."""
    recordings = find_recordings(index, files)
    known: dict[int, tuple[int, int, tuple[str, ...]]] = {}
    for part, numbers in index.iter_numbers_by_part([number for number in recordings if number is not None]):
        table = part.recordings.select(["id", "size", "mtime_ns", "captions"]).take(numbers)
        for row in table.to_pylist():
            known[row["id"]] = (row["size"], row["mtime_ns"], tuple(row["captions"]))
    return [file for file in files if known.get(compute_id(file.path)) != file.stamp]


def find_recordings(index: OpenedIndex, files: Iterable[IndexedFile]) -> list[int | None]:
    """Return the numbers of the recordings with the paths of these files; None where the index has none."""
    return index.find_recordings([compute_id(file.path) for file in files])


def hash_file(file: IndexedFile) -> IndexedFile:
    """Return a file with the SHA-256 of its contents, which is unknown if it can't be read; decoding will report it."""
    try:
        with Path(file.path).open("rb") as opened:
            return replace(file, sha256=hashlib.file_digest(opened, "sha256").digest())
    except OSError:
        return file


def reuse_vectors(writer: IndexWriter, changed: Sequence[IndexedFile], summary: UpdateSummary) -> set[str]:
    """Add the changed files that have the contents of a recording in the index, with its vectors, and return their
    paths. Recordings that were moved to one of these paths are removed.
    """
    index = writer.index
    by_digest = find_contents(index, {file.sha256 for file in changed} - {UNKNOWN_DIGEST})
    reused = [(file, by_digest[file.sha256]) for file in changed if file.sha256 in by_digest]
    if not reused:
        return set()
    replaced = {number for number in find_recordings(index, (file for file, _ in reused)) if number is not None}
    moved = {number for _, number in reused if not Path(read_path(index, number)).exists()}
    writer.commit(iter_reused(index, reused), sorted(replaced | moved))
    summary.num_reused += len(reused)
    summary.num_removed += len(moved - replaced)
    return {file.path for file, _ in reused}


def iter_reused(index: OpenedIndex, reused: Sequence[tuple[IndexedFile, int]]) -> Iterator[IndexedRecording]:
    """Yield the recordings with these numbers, as recordings of other files that have the same contents."""
    for file, number in reused:
        part, local = index.locate(number)
        (recording,) = part.iter_recordings([local])
        yield replace(recording, file=file)


def find_contents(index: OpenedIndex, digests: set[bytes]) -> dict[bytes, int]:
    """Return the number of a recording with each of these contents, for those that the index has."""
    import pyarrow as pa
    import pyarrow.compute as pc

    numbers: dict[bytes, int] = {}
    searched = pa.array(sorted(digests), pa.binary(32))
    for part, first in zip(index.parts, index.first_recordings, strict=False):
        column = part.recordings["sha256"]
        is_match = pc.is_in(column, value_set=searched).to_numpy() & ~part.is_removed_A
        for number in np.flatnonzero(is_match):
            numbers[column[int(number)].as_py()] = int(first + number)
    return numbers


def read_path(index: OpenedIndex, number: int) -> str:
    """Return the path of a recording."""
    part, local = index.locate(number)
    path: str = part.recordings["path"][local].as_py()
    return path


def embed_part(
    writer: IndexWriter, files: Sequence[IndexedFile], models: EnsembleModels, summary: UpdateSummary
) -> None:
    """Embed files, and add them to the index in place of the recordings that have their paths."""
    embedded, problems = embed_recordings(models, [Path(file.path) for file in files])
    summary.problems.skipped.update(problems.skipped)
    summary.problems.warnings.update(problems.warnings)
    added = [build_recording(file, embedded[path]) for file in files if (path := Path(file.path)) in embedded]
    replaced = find_recordings(writer.index, files)
    writer.commit(added, sorted(number for number in replaced if number is not None))
    summary.num_embedded += len(added)


def build_recording(file: IndexedFile, vectors: RecordingVectors) -> IndexedRecording:
    """Return the recording of a file with its vectors."""
    return IndexedRecording(
        file,
        duration_s=vectors.duration_s,
        peaks=vectors.peaks.tobytes(),
        starts_s=vectors.starts_s,
        ends_s=vectors.ends_s,
        kinds=vectors.kinds,
        vectors_RD=vectors.vectors_RD,
    )


def remove_absent(writer: IndexWriter, roots: Sequence[Path], listed: set[str], summary: UpdateSummary) -> None:
    """Remove the recordings in some folders whose paths aren't listed."""
    index, numbers = writer.index, list_recordings_below(writer.index, roots)
    paths = [path for part, local in index.iter_numbers_by_part(numbers) for path in part.read_paths(local)]
    numbers = [number for number, path in zip(numbers, paths, strict=True) if path not in listed]
    if numbers:
        writer.commit([], numbers)
    summary.num_removed += len(numbers)


def list_recordings_below(index: OpenedIndex, paths: Sequence[Path]) -> list[int]:
    """Return the numbers of the recordings that have one of these paths, or are in one of these folders."""
    import pyarrow.compute as pc

    numbers = []
    for part, first in zip(index.parts, index.first_recordings, strict=False):
        column = part.recordings["path"]
        is_below = np.zeros(len(column), bool)
        for path in map(str, paths):
            is_below |= pc.starts_with(column, path.rstrip("/") + "/").to_numpy() | pc.equal(column, path).to_numpy()
        numbers += (first + np.flatnonzero(is_below & ~part.is_removed_A)).tolist()
    return numbers

"""Index of recordings by one ensemble: memory-mapped vectors, and the files' sizes and modification times.

    DIR/index.arrow     paths and vectors, with the signature of the ensemble
    DIR/files.json      size, modification time and SHA-256 of each file when it was embedded

Shapes: A recordings, Q sentences, D the size of all members' embeddings together.
"""

import hashlib
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.captions import normalise
from data.errors import UserError
from data.sources.audio_files import AudioListing, FileProblems, list_audio_files
from data.store.files import read_json, write_json
from data.store.locks import lock_folder
from ensemble.serving.bundle import EnsembleModels
from trainables.records.embeddings import Embeddings, read_embeddings, write_embeddings

logger = logging.getLogger("chorale.recordings")

VECTORS_FILE = "index.arrow"
FILES_FILE = "files.json"

MIN_PART_FILES = 256
"""Minimum number of files that are embedded before the index is written again."""

Stamp = list[Any]
"""Size of a file in bytes, its modification time in nanoseconds and its SHA-256, which older indexes lack."""

SearchHit = tuple[float, str]
"""Score and path of a recording."""


@dataclass(frozen=True)
class AudioIndex:
    """Paths of recordings, sorted, and the vectors [A, D] that an ensemble gives them."""

    paths: list[str]
    vectors_AD: NDArray[np.float32]


def open_index(folder: Path, models: EnsembleModels) -> AudioIndex:
    """Return the index of recordings in a folder. `models` is the ensemble that it must have been created with;
    otherwise, or if there is no index, UserError is raised.

    Args:
        folder: the folder of the index.
        models: the models of the ensemble.

    Raises:
        UserError: if there is no index, or it belongs to another ensemble.
    """
    path = folder / VECTORS_FILE
    if not path.exists():
        raise UserError(f"{folder} contains no index: create it with --add FOLDER")
    embeddings = read_embeddings(path)
    if embeddings.signature != models.signature:
        raise UserError(f"{folder} is the index of another ensemble ({embeddings.signature}, not {models.signature})")
    if embeddings.audio_AD.shape[1] != models.embedding_size or not np.isfinite(embeddings.audio_AD).all():
        raise UserError(f"{path} is damaged: its vectors aren't those of this ensemble; remove it, and run --add again")
    return AudioIndex(embeddings.clip_ids, embeddings.audio_AD)


def search_index(
    models: EnsembleModels, index: AudioIndex, sentences: Sequence[str], top: int
) -> list[list[SearchHit]]:
    """Return, for each sentence, the `top` recordings with the highest scores as pairs of score and path, the best
    first; ties are sorted by path. `models` is the ensemble that the index was created with.

    Args:
        models: the models of the ensemble.
        index: the index of the recordings.
        sentences: what to search for.
        top: maximum number of recordings per sentence.

    Returns:
        Pairs of score and path for each sentence.

    Raises:
        UserError: for a sentence without a word.
    """
    for sentence in sentences:
        if not normalise(sentence):
            raise UserError(f"{sentence!r} contains no word to search for")
    hits = []
    for vector_D in models.embed_text(sentences):
        scores_A = index.vectors_AD @ vector_D
        best = np.argsort(-scores_A, kind="stable")[:top]
        hits.append([(float(scores_A[row]), index.paths[row]) for row in best])
    return hits


def update_index(folder: Path, audio: Path, models: EnsembleModels) -> FileProblems:
    """Embed the new and changed audio files in the folder `audio` with an ensemble's models, and write the index in
    `folder`. Return the files that were skipped, or whose audio was changed when it was decoded, with the reasons.

    A file with the contents of a recording in the index, such as one that was moved, gets that recording's vector.
    Files of the folder that no longer exist are removed from the index, and so are recordings whose file was moved to
    the folder. A symbolic link is listed by its own path, since its target may be outside the folder. The index is
    written after each part of the files, so that an interruption loses at most one part.

    Args:
        folder: the folder of the index, which is created if it doesn't exist.
        audio: the folder of recordings, searched recursively.
        models: the models of the ensemble.

    Returns:
        The files that were skipped, or whose audio was changed when it was decoded, with the reasons.

    Raises:
        UserError: if no audio file can be decoded, the index belongs to another ensemble, or another command is writing
            to it.
    """
    audio = audio.resolve()
    listing = list_audio_files(audio)
    with lock_folder(folder):
        return update_locked_index(folder, audio, listing, models)


def update_locked_index(folder: Path, audio: Path, listing: AudioListing, models: EnsembleModels) -> FileProblems:
    """Update an index with the files of a folder, as `update_index` does, while the index is locked."""
    problems = FileProblems()
    stamps = read_stamps(listing.paths, problems)
    index, known = AudioIndex([], np.zeros((0, models.embedding_size), np.float32)), dict[str, Stamp]()
    if (folder / VECTORS_FILE).exists():
        index = open_index(folder, models)
        stored = read_known_stamps(folder / FILES_FILE)
        known = {path: stored[path] for path in index.paths if path in stored}
    changed = [path for path in stamps if known.get(path, [])[:2] != stamps[path]]
    for path, stamp in stamps.items():
        is_known = path in known and known[path][:2] == stamp and len(known[path]) > 2
        stamps[path] = known[path] if is_known else [*stamp, hash_file(path)]
    num_unchanged, previous = len(find_kept_rows(index, audio, stamps, set(changed))), set(index.paths)
    index, todo = reuse_vectors(index, audio, known, stamps, changed)
    num_reused = len(changed) - len(todo)
    known.update({path: stamp for path, stamp in stamps.items() if path not in todo})
    num_embedded = 0
    while todo:
        part, todo = split_off_part(todo, len(index.paths))
        vectors_AD, embedded, part_problems = models.embed_files([Path(path) for path in part])
        problems.skipped.update(part_problems.skipped)
        problems.warnings.update(part_problems.warnings)
        names = [*index.paths, *map(str, embedded)]
        order = sorted(range(len(names)), key=names.__getitem__)
        both_AD = np.concatenate([index.vectors_AD, vectors_AD])
        index = AudioIndex([names[row] for row in order], both_AD[order])
        known.update({str(path): stamps[str(path)] for path in embedded})
        num_embedded += len(embedded)
        if todo and index.paths:
            write_index(folder, index, known, models)
    listing.log_unusable(audio)
    if not index.paths:
        problems.log(logger)
        raise UserError(f"{audio}: none of its {len(listing.paths)} audio files can be decoded")
    write_index(folder, index, known, models)
    num_removed = len(previous - set(index.paths))
    num_skipped = len(problems.skipped) + len(listing.skipped)
    logger.info(
        "%d files embedded, %d unchanged, %d removed, %d skipped", num_embedded, num_unchanged, num_removed, num_skipped
    )
    if num_reused:
        logger.info("%d files have the contents of recordings in the index: not embedded again", num_reused)
    return problems


def read_known_stamps(path: Path) -> dict[str, Stamp]:
    """Return the stamp of each file in an index, that is, its size, modification time and SHA-256, by path; {} if the
    file `path`, which contains them, doesn't exist. Whatever isn't a stamp is left out, so that its file is embedded
    again.

    Raises UserError if the file `path` isn't a JSON object.
    """
    content = read_json(path) if path.exists() else {}
    if not isinstance(content, dict):
        raise UserError(f"{path} isn't a JSON object: remove it, and all files are embedded again")
    return {name: stamp for name, stamp in content.items() if is_stamp(stamp)}


def is_stamp(value: object) -> bool:
    """Return whether a value is a stamp: a size, a time and, except in older indexes, a SHA-256."""
    match value:
        case [int(), int()] | [int(), int(), str()]:
            return True
    return False


def read_stamps(paths: Sequence[Path], problems: FileProblems) -> dict[str, Stamp]:
    """Return the size in bytes and the modification time in nanoseconds of each file, by path. Files that can't be read
    are added to `problems`.
    """
    stamps: dict[str, Stamp] = {}
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:
            problems.skipped[path] = f"can't be read: {error.strerror}"
        else:
            stamps[str(path)] = [status.st_size, status.st_mtime_ns]
    return stamps


def hash_file(path: str) -> str:
    """Return the SHA-256 of a file's contents in hexadecimal; '' if the file can't be read. The reason is not reported
    here, but when the file is decoded.
    """
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def reuse_vectors(
    index: AudioIndex, audio: Path, known: Mapping[str, Stamp], stamps: Mapping[str, Stamp], changed: Sequence[str]
) -> tuple[AudioIndex, list[str]]:
    """Return two values: the index without the recordings that changed or no longer exist in the folder `audio`; and
    those of the `changed` paths that have to be embedded. `known` has the size, time and SHA-256 of each indexed file,
    `stamps` those of the files in the folder.

    A file in `changed` with the same contents as an indexed recording is added to the returned index with that
    recording's vector.
    """
    rows_by_digest = {known[path][2]: row for row, path in enumerate(index.paths) if len(known.get(path, [])) > 2}
    reused = {path: rows_by_digest[digest] for path in changed if (digest := str(stamps[path][2])) in rows_by_digest}
    digests = {stamps[path][2] for path in reused}
    rows = {
        index.paths[row]: row
        for row in find_kept_rows(index, audio, stamps, set(changed))
        if not is_moved(index.paths[row], known, digests)
    } | reused
    order = sorted(rows)
    return (
        AudioIndex(order, index.vectors_AD[[rows[path] for path in order]]),
        [path for path in changed if path not in reused],
    )


def is_moved(path: str, known: Mapping[str, Stamp], digests: Collection[object]) -> bool:
    """Return whether the file of an indexed recording, `path`, no longer exists, and a new or changed file has the same
    contents. `known` has the SHA-256 of each indexed file, and `digests` those of the new and changed files.
    """
    stamp = known.get(path, [])
    return len(stamp) > 2 and stamp[2] in digests and not Path(path).exists()


def split_off_part(todo: list[str], num_indexed: int) -> tuple[list[str], list[str]]:
    """Return two lists of paths: the files in `todo` to embed before the index is written again, and the remaining
    ones. `num_indexed` is the number of recordings in the index.

    The parts grow with the index, so that writing it takes a small share of the time.
    """
    size = max(MIN_PART_FILES, num_indexed // 4)
    return todo[:size], todo[size:]


def find_kept_rows(index: AudioIndex, audio: Path, current: Mapping[str, object], changed: set[str]) -> list[int]:
    """Return the rows of the index to keep: recordings outside the folder `audio`, and those in it whose file exists (a
    key of `current`) and isn't in `changed`.
    """
    return [
        row
        for row, path in enumerate(index.paths)
        if path not in changed and (path in current or not Path(path).is_relative_to(audio))
    ]


def write_index(folder: Path, index: AudioIndex, stamps: Mapping[str, Stamp], models: EnsembleModels) -> None:
    """Write an index into a folder: the vectors, then `stamps`, the size, modification time and SHA-256 of each file.
    They come last, so that an interruption causes files to be embedded again. `models` is the ensemble that gave the
    vectors.

    Recordings that lost their stamps in an earlier interruption stay in the index without one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / FILES_FILE, {})
    nothing = np.zeros((0, models.embedding_size), np.float32)
    write_embeddings(
        folder / VECTORS_FILE,
        Embeddings(models.signature, str(folder), "", index.paths, [], [], index.vectors_AD, nothing),
    )
    write_json(folder / FILES_FILE, {name: stamps[name] for name in index.paths if name in stamps})

"""Index of recordings by one ensemble: memory-mapped vectors, and the files' sizes and modification times.

    DIR/index.arrow     paths and vectors, with the signature of the ensemble
    DIR/files.json      size and modification time of each file when it was embedded

Shapes: A recordings, Q sentences, D the size of all members' embeddings together.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.captions import normalise
from data.errors import UserError
from data.sources.audio_files import list_audio_files
from data.store.files import read_json, write_json
from ensemble.serving.bundle import EnsembleModels
from trainables.records.embeddings import Embeddings, read_embeddings, write_embeddings

logger = logging.getLogger("chorale.recordings")

VECTORS_FILE = "index.arrow"
FILES_FILE = "files.json"

SearchHit = tuple[float, str]
"""Score and path of a recording."""


@dataclass(frozen=True)
class AudioIndex:
    """Recordings sorted by path, with the vectors that an ensemble gives them."""

    paths: list[str]
    vectors_AD: NDArray[np.float32]


def open_index(folder: Path, models: EnsembleModels) -> AudioIndex:
    """Return the index of recordings in a folder, which must be by this ensemble.

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
    return AudioIndex(embeddings.clip_ids, embeddings.audio_AD)


def search_index(
    models: EnsembleModels, index: AudioIndex, sentences: Sequence[str], top: int
) -> list[list[SearchHit]]:
    """Return the recordings with the highest scores for each sentence, the best first; ties are sorted by path.

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


def update_index(folder: Path, audio: Path, models: EnsembleModels) -> dict[Path, str]:
    """Embed the new and changed audio files of a folder, and write the index.

    Files of the folder that no longer exist are removed from the index. A symbolic link is listed by its own path,
    since its target may be outside the folder.

    Args:
        folder: the folder of the index, which is created if it doesn't exist.
        audio: the folder of recordings, searched recursively.
        models: the models of the ensemble.

    Returns:
        The reason, by path, why a file was skipped.

    Raises:
        UserError: if no audio file can be decoded, or the index belongs to another ensemble.
    """
    audio = audio.resolve()
    paths = list_audio_files(audio)
    stamps = {str(path): read_stamp(path) for path in paths}
    index, known = AudioIndex([], np.zeros((0, models.embedding_size), np.float32)), dict[str, list[int]]()
    if (folder / VECTORS_FILE).exists():
        index = open_index(folder, models)
        known = read_json(folder / FILES_FILE) if (folder / FILES_FILE).exists() else {}
    new = [path for path in paths if known.get(str(path)) != stamps[str(path)]]
    kept = find_kept_rows(index, audio, stamps, {str(path) for path in new})
    vectors_AD, embedded, skipped = models.embed_files(new)
    names = [index.paths[row] for row in kept] + [str(path) for path in embedded]
    if not names:
        raise UserError(f"{audio}: none of its {len(paths)} audio files can be decoded")
    both_AD = np.concatenate([index.vectors_AD[kept], vectors_AD])
    order = sorted(range(len(names)), key=names.__getitem__)
    write_index(folder, [names[row] for row in order], both_AD[order], {**known, **stamps}, models)
    num_removed = len(set(index.paths) - set(names))
    logger.info("%d files embedded, %d unchanged, %d removed", len(embedded), len(kept), num_removed)
    return skipped


def read_stamp(path: Path) -> list[int]:
    """Return a file's size in bytes and its modification time in nanoseconds, which identify its version."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def find_kept_rows(index: AudioIndex, audio: Path, current: Mapping[str, object], changed: set[str]) -> list[int]:
    """Return the rows of the index to keep: those of recordings in other folders, and of unchanged files in the folder
    `audio`.
    """
    return [
        row
        for row, path in enumerate(index.paths)
        if path not in changed and (path in current or not Path(path).is_relative_to(audio))
    ]


def write_index(
    folder: Path,
    names: Sequence[str],
    vectors_AD: NDArray[np.float32],
    stamps: Mapping[str, list[int]],
    models: EnsembleModels,
) -> None:
    """Write an index. The files' sizes and modification times (`stamps`) are written last, so that after an
    interruption the files are embedded again.

    Recordings that lost their stamps in an earlier interruption stay in the index without one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / FILES_FILE, {})
    nothing = np.zeros((0, models.embedding_size), np.float32)
    write_embeddings(
        folder / VECTORS_FILE, Embeddings(models.signature, str(folder), "", list(names), [], [], vectors_AD, nothing)
    )
    write_json(folder / FILES_FILE, {name: stamps[name] for name in names if name in stamps})

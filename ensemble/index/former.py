"""Conversion of indexes of format version 1, which had one vector per recording, of its beginning, and no moments.

DIR/index.arrow     paths and vectors, with the signature of the ensemble
DIR/files.json      size, modification time and SHA-256 of each file; not used: files are embedded again when they
                    are added, so that they have moments
"""

import os
from pathlib import Path

import numpy as np

from data.errors import UserError
from data.waveform import NUM_PEAKS
from ensemble.index.manifest import MANIFEST_FILE, Manifest, write_manifest
from ensemble.index.parts import MOMENT, PASSAGE, IndexedFile, IndexedRecording, write_part
from trainables.records.embeddings import Embeddings, read_embeddings

FORMER_FILES = ("index.arrow", "files.json")
UNKNOWN_SIZE = -1


def convert_former_index(folder: Path) -> None:
    """Convert the index in a folder if it has format version 1. Its recordings have one moment without a length, until
    their files are added again.

    Raises UserError if it is damaged.
    """
    path = folder / FORMER_FILES[0]
    if (folder / MANIFEST_FILE).exists() or not path.exists():
        return
    embeddings = read_embeddings(path)
    size = embeddings.audio_AD.shape[1]
    is_right = size and embeddings.clip_ids and all(name.startswith("/") for name in embeddings.clip_ids)
    if not is_right or not np.isfinite(embeddings.audio_AD).all():
        raise UserError(f"{path} is damaged: its paths or vectors can't be right; remove {folder}, and --add again")
    entry = write_part(folder, list_recordings(embeddings), size)
    write_manifest(folder, Manifest(embeddings.signature, size, (entry,) if entry else ()))
    for name in FORMER_FILES:
        (folder / name).unlink(missing_ok=True)


def list_recordings(embeddings: Embeddings) -> list[IndexedRecording]:
    """Return the recordings of a former index."""
    root = os.path.commonpath([str(Path(path).parent) for path in embeddings.clip_ids])
    time_s, kind = np.zeros(1, np.float32), np.array([PASSAGE | MOMENT], np.uint8)
    return [
        IndexedRecording(
            IndexedFile(path, root, UNKNOWN_SIZE, 0), 0.0, bytes(NUM_PEAKS), time_s, time_s, kind, vector_D[None]
        )
        for path, vector_D in zip(embeddings.clip_ids, embeddings.audio_AD, strict=True)
    ]

"""Find training clips that are the same sound as a held-out clip, whatever their ids.

The landmarks of all held-out clips go into one index, in which every other clip is looked up. The functions work on one
part of a split, so that parts can be processed in parallel.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from data import corpora
from data.leakage.exclusions import DUPLICATES_FILE, EXCLUDE_DUPLICATES, build_fingerprint_metadata, is_held_out
from data.leakage.landmarks import PHASES, LandmarkIndex, Landmarks, compute_landmarks
from data.schema import DUPLICATES, Samples, SplitId
from data.store.files import write_arrow_table
from data.store.storage import Store
from data.store.stored_split import StoredSplit
from data.waveform import PCM16_FULL_SCALE, decode_stored

CLIPS_PER_PART = 128

Part = tuple[StoredSplit, int]
"""Split, and the index of the first of CLIPS_PER_PART clips."""


def is_trained_on(name: str) -> bool:
    """Return whether clips of a split, 'corpus/split', may be trained on."""
    split_id = SplitId.parse(name)
    return not is_held_out(name) or split_id.split in corpora.load(split_id.corpus).PRETRAINING


def split_into_parts(splits: Iterable[StoredSplit]) -> list[Part]:
    """Divide the clips of splits into parts of CLIPS_PER_PART consecutive clips, which can be processed in
    parallel. Return each part as its split and the index of its first clip. Splits that use the clips of another
    split have no parts.
    """
    splits_with_clips = [split for split in splits if not split.manifest.clips_of]
    return [(split, first) for split in splits_with_clips for first in range(0, len(split.index), CLIPS_PER_PART)]


def compute_index_landmarks(split: StoredSplit, first: int) -> list[tuple[str, Landmarks]]:
    """Compute the landmarks (audio fingerprints) of CLIPS_PER_PART clips of a split, beginning with the clip at index
    `first`, for building an index of held-out clips. Return pairs of clip id and landmarks.
    """
    return compute_part_landmarks(split, first, PHASES)


def compute_part_landmarks(split: StoredSplit, first: int, phases: int = 1) -> list[tuple[str, Landmarks]]:
    """Compute the landmarks (audio fingerprints) of CLIPS_PER_PART clips of a split, beginning with the clip at index
    `first`. Return pairs of clip id and landmarks. With one phase, an index can be searched for these landmarks; with
    `phases=PHASES`, an index can be built from them. A phase is one analysis of the audio, shifted by a fraction of a
    frame.
    """
    clips = range(first, min(first + CLIPS_PER_PART, len(split.index)))
    return [
        (split.index["clip_id"][clip].as_py(), compute_landmarks(decode_blocks(split, clip), phases)) for clip in clips
    ]


def decode_blocks(split: StoredSplit, clip: int) -> Iterator[Samples]:
    """Decode the clip at an index of a split, and yield its samples in consecutive blocks."""
    for pcm in decode_stored(split.open_clip(clip), split.codec):
        yield pcm.astype(np.float32) / np.float32(PCM16_FULL_SCALE)


def build_index(landmarks_by_part: Iterable[Sequence[tuple[str, Landmarks]]]) -> LandmarkIndex:
    """Return an index of the landmarks of all held-out clips. `landmarks_by_part` yields the pairs of clip id and
    landmarks of each part; the order of the parts doesn't change the result.
    """
    return LandmarkIndex.build(
        sorted((clip for clips in landmarks_by_part for clip in clips), key=lambda clip: clip[0])
    )


def find_duplicates(split: StoredSplit, first: int, index: LandmarkIndex) -> list[dict[str, Any]]:
    """Search the index of held-out clips for CLIPS_PER_PART clips of a split, beginning with the clip at index
    `first`. Return a row of the table of duplicates (`data.schema.DUPLICATES`) for each clip that sounds the same
    as a held-out clip.

    Of several matches, the row names the held-out clip with the longest overlap. A clip of a held-out split that is
    also used for training isn't compared with its own corpus, whose splits are used as published.
    """
    skipped_prefix = split.manifest.corpus + "/" if is_held_out(split.name) else split.name + "/"
    rows = []
    for clip_id, clip_landmarks in compute_part_landmarks(split, first):
        matches = [
            match for match in index.find_matches(clip_landmarks) if not match.clip_id.startswith(skipped_prefix)
        ]
        if matches:
            best = min(matches, key=lambda match: (-match.overlap_s, match.clip_id))
            rows.append(
                {
                    "clip_id": clip_id,
                    "split": split.name,
                    "held_out_clip_id": best.clip_id,
                    "overlap_s": best.overlap_s,
                    "score": best.score,
                }
            )
    return rows


def write_duplicates(store: Store, rows: Sequence[dict[str, Any]], exclude: bool) -> None:
    """Write rows as the store's table of duplicates, which replaces the previous one. `exclude` is written into the
    table: it says whether the duplicates are excluded from training.
    """
    table = pa.Table.from_pylist(sorted(rows, key=lambda row: row["clip_id"]), schema=DUPLICATES)
    metadata = {EXCLUDE_DUPLICATES: b"yes" if exclude else b"no", **build_fingerprint_metadata(store)}
    write_arrow_table(store.path / DUPLICATES_FILE, table.replace_schema_metadata(metadata))

"""Vectors of audio files by an ensemble: of each passage, which is embedded as one clip, and of each moment.

Members may differ in the length of their segments and passages. An ensemble's passages have the length of its longest
member's, and its moments are the segments of the member with the shortest ones. Of every other member, a passage has
the vector of that member's passage in which it starts, and a moment that of the segment in which its centre lies. If
all members agree, as they mostly do, each vector is of exactly this passage or moment.

Shapes: P passages, S segments, R rows, D the size of vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from data.schema import SAMPLE_RATE_HZ
from data.sources.audio_files import FileProblems
from ensemble.index.parts import MOMENT, PASSAGE
from ensemble.serving.bundle import EnsembleModels, LoadedMember, concatenate_weighted

if TYPE_CHECKING:
    from data.loading.passages import PassageBatch

EDGE_S = 1e-3
"""Tolerance with which the start of a passage is found in another member's passages."""


@dataclass
class MemberVectors:
    """Vectors of one file by one member, in the order of time."""

    passage_starts_s: list[float] = field(default_factory=list)
    passages: list[NDArray[np.float32]] = field(default_factory=list)
    segment_starts_s: list[float] = field(default_factory=list)
    segment_ends_s: list[float] = field(default_factory=list)
    segments: list[NDArray[np.float32]] = field(default_factory=list)


@dataclass(frozen=True)
class RecordingVectors:
    """Vectors of one file by an ensemble, sorted by time: passages, moments, and rows that are both."""

    duration_s: float
    peaks: NDArray[np.uint8]
    starts_s: NDArray[np.float32]  # [R]
    ends_s: NDArray[np.float32]  # [R]
    kinds: NDArray[np.uint8]  # [R]
    vectors_RD: NDArray[np.float32]


def embed_recordings(
    models: EnsembleModels, paths: Sequence[Path]
) -> tuple[dict[Path, RecordingVectors], FileProblems]:
    """Return the vectors of whole audio files by an ensemble, and the files that were skipped, or whose audio was
    changed when it was decoded, with the reasons.

    Members with the same segment length and maximum length share the decoded audio.
    """
    from data.loading.passages import Waveform, load_passages
    from trainables.training.embedding import CLIPS_PER_BATCH

    problems = FileProblems()
    waveforms: dict[int, Waveform] = {}
    vectors = [[MemberVectors() for _ in models.members] for _ in paths]
    for (segment_s, longest_s), indices in models.group_by_segmentation().items():
        for loaded in load_passages(paths, segment_s, longest_s, CLIPS_PER_BATCH, problems, waveforms):
            for index in indices:
                member = models.members[index]
                add_passages([file[index] for file in vectors], member, models.ensemble.temperature, loaded)
    results = {}
    for file, path in enumerate(paths):
        if path not in problems.skipped:
            waveform = waveforms[file]
            duration_s = waveform.num_samples / SAMPLE_RATE_HZ
            results[path] = align_members(models.members, vectors[file], duration_s, waveform.compute_peaks())
    return results, problems


def add_passages(
    files: Sequence[MemberVectors], member: LoadedMember, temperature: float | None, loaded: PassageBatch
) -> None:
    """Embed a batch of passages by a member, and add the vectors to those of each file."""
    from trainables.training.embedding import embed_passages

    batch, segment_s = loaded.batch, member.trial.audio.segment_s
    passages_PD, segments_SD = (
        member.extend_audio(vectors, temperature) for vectors in embed_passages(member.model, member.trial, batch)
    )
    first = 0
    for number, (file, start, num_samples) in enumerate(
        zip(batch.clips.tolist(), loaded.starts, loaded.num_samples, strict=True)
    ):
        target, start_s = files[file], start / SAMPLE_RATE_HZ
        target.passage_starts_s.append(start_s)
        target.passages.append(passages_PD[number])
        for segment in range(int(batch.segments_per_clip[number])):
            segment_start_s = start_s + segment * segment_s
            target.segment_starts_s.append(segment_start_s)
            target.segment_ends_s.append(min(segment_start_s + segment_s, start_s + num_samples / SAMPLE_RATE_HZ))
            target.segments.append(segments_SD[first])
            first += 1


def align_members(
    members: Sequence[LoadedMember], vectors: Sequence[MemberVectors], duration_s: float, peaks: NDArray[np.uint8]
) -> RecordingVectors:
    """Return the vectors of one file by an ensemble from those by its members."""
    longest = max(range(len(members)), key=lambda index: members[index].trial.longest_audio_s)
    shortest = min(range(len(members)), key=lambda index: members[index].trial.audio.segment_s)
    passage_starts = np.array(vectors[longest].passage_starts_s)
    passage_ends = np.append(passage_starts[1:], max(vectors[longest].segment_ends_s))
    passages_PD = concatenate_weighted(
        [pick(one.passages, one.passage_starts_s, passage_starts + EDGE_S) for one in vectors], members
    )
    starts, ends = np.array(vectors[shortest].segment_starts_s), np.array(vectors[shortest].segment_ends_s)
    moments_SD = concatenate_weighted(
        [pick(one.segments, one.segment_starts_s, (starts + ends) / 2) for one in vectors], members
    )
    # A passage that is a single moment with the same vector needs one row.
    moment_of_passage = np.clip(np.searchsorted(starts, passage_starts + EDGE_S) - 1, 0, None)
    is_moment_P = (np.abs(starts[moment_of_passage] - passage_starts) < EDGE_S) & np.isclose(
        moments_SD[moment_of_passage], passages_PD, atol=1e-5
    ).all(axis=1)
    is_separate_S = ~np.isin(np.arange(len(starts)), moment_of_passage[is_moment_P])
    all_starts = np.concatenate([passage_starts, starts[is_separate_S]])
    all_ends = np.concatenate([passage_ends, ends[is_separate_S]])
    kinds = np.concatenate([np.where(is_moment_P, PASSAGE | MOMENT, PASSAGE), np.full(is_separate_S.sum(), MOMENT)])
    order = np.lexsort([kinds, all_starts])
    return RecordingVectors(
        duration_s,
        peaks,
        all_starts[order].astype(np.float32),
        all_ends[order].astype(np.float32),
        kinds[order].astype(np.uint8),
        np.concatenate([passages_PD, moments_SD[is_separate_S]])[order],
    )


def pick(
    vectors: Sequence[NDArray[np.float32]], starts_s: Sequence[float], times_s: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Return, for each time, the vector of the last interval that starts before it."""
    chosen = np.clip(np.searchsorted(np.array(starts_s), times_s, side="right") - 1, 0, None)
    picked: NDArray[np.float32] = np.stack(list(vectors))[chosen]
    return picked

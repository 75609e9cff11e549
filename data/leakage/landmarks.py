"""Audio fingerprinting by landmarks (pairs of spectrogram peaks): find recordings that are the same sound.

The method is that of A. Wang, "An industrial-strength audio search algorithm", ISMIR 2003: a pair of peaks is hashed by
its frequencies and the time between them, and a copy shows up as many equal hashes at one offset. Two things are added.
The recordings of an index are analysed PHASES times, each shifted by a fraction of a frame, because a copy cut out at
an arbitrary sample matches no single grid of frames exactly. And the decision is based on how long two recordings
agree, as a share of the sounding time of their overlap, so that a bark that occurs in two mixes doesn't make them one
recording.

Constants without a source were measured: tests/benchmarks/duplicates.py evaluates them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import chain

import numpy as np
import scipy.fft
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from data.schema import SAMPLE_RATE_HZ, Samples

FRAME_SAMPLES = 1024
WINDOW_SAMPLES = 2048
PHASES = 4
TICK_SAMPLES = FRAME_SAMPLES // PHASES
TICK_S = TICK_SAMPLES / SAMPLE_RATE_HZ
"""Unit of time: 8 ms."""
CHUNK_FRAMES = 96
"""Number of frames analysed at a time, independent of the blocks of samples; small enough for the processor's cache."""

NEAR_FRAMES, NEAR_BINS = 4, 16
"""A peak is the maximum within this many frames and bins on either side."""
MIN_BIN, MAX_BIN = NEAR_BINS, 480
"""Range of a peak's bin: 250 to 7,500 Hz, which a copy at 16 kHz retains."""
LOUD_FRAMES = 16
MIN_RELATIVE_POWER = 1e-5
"""Minimum power of a peak relative to the maximum within LOUD_FRAMES: lossy codecs change what is 50 dB below."""
MIN_POWER = 4e-6
"""Minimum power of a peak: about twenty times the power per bin of dithered 16-bit audio, 2**-30 / 4 * 768 (the
window's energy).
"""

MAX_PARTNERS = 3
"""Maximum number of partners of a peak: the next peaks that are close enough."""
MAX_PAIR_FRAMES, MAX_PAIR_BINS = 63, 127
NUM_HASHES = (MAX_BIN - MIN_BIN) * (2 * MAX_PAIR_BINS + 1) * (MAX_PAIR_FRAMES + 1)
MAX_POSITIONS_PER_HASH = 256
"""Maximum number of positions of a hash in an index; more frequent hashes carry little information."""

SPACE_TICKS = 16 * PHASES
"""Gap between clips on the time line of an index: consecutive parts of one recording keep offsets of their own."""
WINDOW_TICKS = round(600 / TICK_S)
"""Length of the part of a long recording that is looked up at a time."""
MIN_VOTES = 12
"""Minimum number of equal hashes at one offset: chance gives fewer."""
MIN_LANDMARKS_PER_S = 4
"""Minimum rate of agreeing landmarks: regular sounds of one kind, such as crickets, reach half of it."""
MAX_CANDIDATES = 64
"""Maximum number of offsets that are examined, those with the most votes."""
MAX_GAP_TICKS = round(1.2 / TICK_S)
"""Maximum gap between landmarks; a longer one counts as silence or as another sound."""
MIN_AGREEING_SHARE = 0.5
"""Minimum share of the sounding time of an overlap in which two recordings agree; mixes that share an event are below.
"""
MIN_OVERLAP_S = 4.0
"""Minimum agreement if neither recording contains the other: two mixes can share an event or two."""
MIN_CONTAINED_OVERLAP_S = 0.5
"""Minimum agreement if one recording contains at least CONTAINED_SHARE of the other."""
CONTAINED_SHARE = 0.9


@dataclass(frozen=True)
class Landmarks:
    """Landmarks of a recording: a hash and a time for each pair of nearby spectrogram peaks, in order of time.
    Times are in ticks of 8 ms (TICK_S).
    """

    hashes: NDArray[np.uint32]  # [num_landmarks]
    ticks: NDArray[np.int32]  # [num_landmarks], time of the first peak
    num_ticks: int  # length of the recording


@dataclass(frozen=True)
class Match:
    """Result of a search: a recording in the index that is the same sound as the query, contains it, or is
    contained in it.
    """

    clip_id: str
    overlap_s: float  # for how long both are the same sound, without silence
    offset_s: float  # start of the query in the recording of the index; negative if it starts earlier
    score: float  # overlap_s as a share of the sounding time of the overlap, of the recording that sounds longer


def compute_landmarks(blocks: Iterable[Samples], phases: int = 1) -> Landmarks:
    """Return the landmarks of a recording, whose samples are given in consecutive blocks of any length. `phases` is
    the number of analyses, each shifted by a fraction of a frame: PHASES for `LandmarkIndex.build`, 1 for
    `LandmarkIndex.find_matches`.

    Only some seconds are held in memory. A recording shorter than WINDOW_SAMPLES has no landmarks.
    """
    silence = np.zeros((LOUD_FRAMES, phases, MAX_BIN + NEAR_BINS), np.float32)
    power, num_frames = silence, 0
    peaks = [np.zeros((3, 0), np.int64)]
    for block in chain(_compute_spectrograms(blocks, phases), [silence]):
        power = np.concatenate([power, block])
        if len(power) > 2 * LOUD_FRAMES:
            peaks.append(_find_peaks(power) + np.array([[num_frames], [0], [0]]))
            num_frames += len(power) - 2 * LOUD_FRAMES
            power = power[-2 * LOUD_FRAMES :]
    frames, phase_of, bins = np.concatenate(peaks, axis=1)
    pairs = []
    for phase in range(phases):
        of_phase = phase_of == phase
        pairs.append(
            _pair_peaks(frames[of_phase], bins[of_phase]) * [[1], [PHASES]] + [[0], [phase * PHASES // phases]]
        )
    hashes, ticks = np.concatenate(pairs, axis=1)
    order = np.argsort(ticks, kind="stable")
    return Landmarks(hashes[order].astype(np.uint32), ticks[order].astype(np.int32), num_frames * PHASES)


def _compute_spectrograms(blocks: Iterable[Samples], phases: int) -> Iterator[NDArray[np.float32]]:
    """Yield power spectrograms [num_frames, phases, num_bins] of consecutive chunks of a recording, whose samples are
    given in blocks of any length. Each frame has `phases` windows, which begin at equal distances within it. Windows
    that would exceed the end of the recording are zero.
    """
    hop = FRAME_SAMPLES // phases
    chunk_samples = CHUNK_FRAMES * FRAME_SAMPLES
    needed_samples = chunk_samples - hop + WINDOW_SAMPLES
    samples = np.zeros(0, np.float32)
    pending_blocks: list[Samples] = []
    for block in chain(blocks, [None]):
        if block is not None:
            pending_blocks.append(block)
            if len(samples) + sum(map(len, pending_blocks)) < needed_samples:
                continue
        samples = np.concatenate([samples, *pending_blocks])
        pending_blocks = []
        while len(samples) >= needed_samples or (block is None and len(samples) >= WINDOW_SAMPLES):
            yield _compute_spectrogram(samples[:needed_samples], hop, phases)
            samples = samples[chunk_samples:]


def _compute_spectrogram(samples: Samples, hop: int, phases: int) -> NDArray[np.float32]:
    """Return the power spectrogram [num_frames, phases, num_bins] of samples. Windows begin every `hop` samples, and
    each frame consists of `phases` consecutive windows; the last frame is filled up with zeros.
    """
    windows = sliding_window_view(samples, WINDOW_SAMPLES)[::hop] * _hann_window()
    spectrum = scipy.fft.rfft(windows, axis=1)[:, : MAX_BIN + NEAR_BINS]
    power = np.zeros((-(-len(spectrum) // phases) * phases, spectrum.shape[1]), np.float32)
    power[: len(spectrum)] = spectrum.real**2 + spectrum.imag**2
    return power.reshape(-1, phases, power.shape[1])


@cache
def _hann_window() -> NDArray[np.float32]:
    return np.hanning(WINDOW_SAMPLES).astype(np.float32)


def _find_peaks(power: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the frame, the phase and the bin of each peak of a power spectrogram [num_frames, phases, num_bins], as an
    array [3, num_peaks]. In the first and the last LOUD_FRAMES frames no peaks are searched for; they are only compared
    with. Frames are counted after the first LOUD_FRAMES, and bins from MIN_BIN on.
    """
    inner = power[LOUD_FRAMES:-LOUD_FRAMES, :, MIN_BIN:MAX_BIN]
    around = slice(LOUD_FRAMES - NEAR_FRAMES, len(power) - LOUD_FRAMES + NEAR_FRAMES)
    highest = _running_max(_running_max(power[around], NEAR_FRAMES, axis=0), NEAR_BINS, axis=2)
    loudest = _running_max(power[:, :, MIN_BIN:MAX_BIN].max(axis=2, keepdims=True), LOUD_FRAMES, axis=0)
    is_peak = (inner == highest) & (inner > np.maximum(loudest * np.float32(MIN_RELATIVE_POWER), MIN_POWER))
    # Ten times as fast as np.nonzero.
    frames, phases, bins = np.unravel_index(np.flatnonzero(is_peak), is_peak.shape)
    return np.stack([frames, phases, bins])


def _running_max(values: NDArray[np.float32], radius: int, axis: int) -> NDArray[np.float32]:
    """Return the maximum of each value and its `radius` neighbours on either side along an axis. The result is
    shorter by 2 * radius along it.
    """
    values, width = np.swapaxes(values, 0, axis), 1
    while width <= radius:
        values, width = np.maximum(values[:-width], values[width:]), 2 * width
    rest = 2 * radius + 1 - width
    values = np.maximum(values[:-rest], values[rest:])
    return np.swapaxes(values, 0, axis)


def _pair_peaks(frames: NDArray[np.int64], bins: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pair each peak of a spectrogram with the next peaks near it in time and frequency. Return, as [2, num_landmarks],
    the hash of each pair and the frame of its first peak. `frames` (ascending) and `bins` have the frame and the
    frequency bin of each peak.
    """
    pairs = [np.zeros((2, 0), np.int64)]
    num_partners = np.zeros(len(frames), np.int64)
    first, step = np.arange(len(frames)), 0
    while len(first):
        step += 1
        first = first[: np.searchsorted(first, len(frames) - step)]
        later = frames[first + step] - frames[first]
        first, later = first[later <= MAX_PAIR_FRAMES], later[later <= MAX_PAIR_FRAMES]
        higher = bins[first + step] - bins[first]
        near = (later > 0) & (np.abs(higher) <= MAX_PAIR_BINS)
        pitch = (bins[first] * (2 * MAX_PAIR_BINS + 1) + higher + MAX_PAIR_BINS)[near]
        pairs.append(np.stack([pitch * (MAX_PAIR_FRAMES + 1) + later[near], frames[first[near]]]))
        num_partners[first[near]] += 1
        first = first[num_partners[first] < MAX_PARTNERS]
    return np.concatenate(pairs, axis=1)


def _slice_between(ticks: NDArray[np.int32], begin: int, end: int) -> NDArray[np.int32]:
    """Return those times in `ticks`, an ascending array, that are at least `begin` and less than `end`."""
    # Bounds of another type would convert the whole array.
    return ticks[slice(*np.searchsorted(ticks, np.array([begin, end], np.int32)))]


def _measure_sounding_ticks(ticks: NDArray[np.int32]) -> int:
    """Return the total time, in ticks, in which each landmark is followed by the next within MAX_GAP_TICKS. `ticks`
    are the times of the landmarks, ascending.
    """
    gaps = ticks[1:] - ticks[:-1]
    return int(gaps[gaps <= MAX_GAP_TICKS].sum())


@dataclass(frozen=True)
class LandmarkIndex:
    """Index of the landmarks of recordings, in which a recording that is the same sound can be found. All
    recordings lie one after the other on one time line. The index takes 30 MB, and 1.5 kB per second of audio.
    """

    clip_ids: tuple[str, ...]
    starts: NDArray[np.int64]  # [num_clips + 1] starts on the time line, SPACE_TICKS apart; in ticks, as all below
    sounding_ticks: NDArray[np.int32]  # times at which any landmark begins, ascending
    hash_starts: NDArray[np.int32]  # [NUM_HASHES + 1] start of each hash's slice of `positions`
    positions: NDArray[np.int32]  # positions on the time line, sorted by hash

    @classmethod
    def build(cls, clips: Iterable[tuple[str, Landmarks]]) -> "LandmarkIndex":
        """Return an index of recordings, given as pairs of id and landmarks. The landmarks must have been
        computed with `phases=PHASES`.
        """
        clip_ids, starts = [], [0]
        hashes, positions = [np.zeros(0, np.uint32)], [np.zeros(0, np.int32)]
        for clip_id, clip_landmarks in clips:
            clip_ids.append(clip_id)
            hashes.append(clip_landmarks.hashes)
            positions.append(clip_landmarks.ticks + np.int32(starts[-1]))
            starts.append(starts[-1] + clip_landmarks.num_ticks + SPACE_TICKS)
        hash_L, position_L = np.concatenate(hashes), np.concatenate(positions)
        counts = np.bincount(hash_L, minlength=NUM_HASHES)
        sounding_ticks = np.unique(position_L // PHASES * PHASES)
        is_informative = counts[hash_L] <= MAX_POSITIONS_PER_HASH
        by_hash = np.sort(hash_L[is_informative].astype(np.int64) << 32 | position_L[is_informative])
        counts[counts > MAX_POSITIONS_PER_HASH] = 0
        hash_starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        return cls(
            tuple(clip_ids), np.array(starts), sounding_ticks, hash_starts, (by_hash & 0xFFFFFFFF).astype(np.int32)
        )

    def find_matches(self, query: Landmarks) -> list[Match]:
        """Return the recordings in the index that are the same sound as the one with the landmarks `query`: at
        most one match for each, those with the longest overlap first.

        The landmarks of `query` must have been computed with `phases=1`. Two recordings are the same sound if they
        agree in MIN_AGREEING_SHARE of the sounding time of their overlap, for at least MIN_OVERLAP_S
        (MIN_CONTAINED_OVERLAP_S if one contains the other), by at least MIN_LANDMARKS_PER_S landmarks per second. This
        can also hold for two mixes over the same background recording.
        """
        best: dict[str, Match] = {}
        longest = int(np.diff(self.starts).max(initial=0))
        for start in range(0, query.num_ticks, WINDOW_TICKS):
            for match in self._find_between(query, start, start + WINDOW_TICKS + longest):
                if match.clip_id not in best or match.overlap_s > best[match.clip_id].overlap_s:
                    best[match.clip_id] = match
        return sorted(best.values(), key=lambda match: (-match.overlap_s, match.clip_id))

    def _find_between(self, query: Landmarks, start: int, stop: int) -> Iterator[Match]:
        """Yield the matches of a part of a recording, from the tick `start` to the tick `stop` (exclusive); `query` has
        the recording's landmarks.

        Shapes: L landmarks of the part; H hits, each a landmark of the part and an equal one in the index; K hits at
        one of the most frequent offsets in time between the two. All are in the order of the part's landmarks.
        """
        part = slice(*np.searchsorted(query.ticks, [start, stop]))
        hash_L, tick_L = query.hashes[part].astype(np.int64), query.ticks[part]
        begin_L = self.hash_starts[hash_L]
        count_L = self.hash_starts[hash_L + 1] - begin_L
        position_H = self.positions[
            np.arange(count_L.sum()) + np.repeat(begin_L - np.cumsum(count_L) + count_L, count_L)
        ]
        offset_H = position_H - np.repeat(tick_L, count_L)  # where the recording would begin on the time line
        frame_H = offset_H // PHASES
        candidates = _find_candidate_offsets(frame_H)
        at_K = np.flatnonzero(np.isin(frame_H, [candidates, candidates + 1]))
        offset_K, frame_K = offset_H[at_K], frame_H[at_K]
        clip_K = np.searchsorted(self.starts, position_H[at_K], side="right") - 1
        landmark_K = np.repeat(np.arange(len(hash_L)), count_L)[at_K]
        for candidate in candidates:
            near_K = (frame_K == candidate) | (frame_K == candidate + 1)
            for clip in np.flatnonzero(np.bincount(clip_K[near_K]) >= MIN_VOTES).tolist():
                hits = np.flatnonzero(near_K & (clip_K == clip))
                agreeing_ticks = _measure_sounding_ticks(tick_L[landmark_K[hits]])
                if agreeing_ticks * TICK_S < MIN_CONTAINED_OVERLAP_S:
                    continue
                num_agreeing = 1 + np.count_nonzero(np.diff(landmark_K[hits]))
                offset = int(np.median(offset_K[hits]))
                clip_start, clip_end = int(self.starts[clip]), int(self.starts[clip + 1]) - SPACE_TICKS
                begin, end = max(clip_start, offset + start), min(clip_end, offset + min(stop, query.num_ticks))
                is_contained = end - begin >= CONTAINED_SHARE * min(query.num_ticks, clip_end - clip_start)
                if (
                    not is_contained and agreeing_ticks * TICK_S < MIN_OVERLAP_S
                ) or num_agreeing < MIN_LANDMARKS_PER_S * agreeing_ticks * TICK_S:
                    continue
                of_query, of_clip = (
                    _slice_between(tick_L, begin - offset, end - offset),
                    _slice_between(self.sounding_ticks, begin, end),
                )
                sounding_ticks = max(_measure_sounding_ticks(of_query), _measure_sounding_ticks(of_clip))
                if agreeing_ticks >= MIN_AGREEING_SHARE * sounding_ticks:
                    offset_s = (offset - clip_start) * TICK_S
                    yield Match(self.clip_ids[clip], agreeing_ticks * TICK_S, offset_s, agreeing_ticks / sounding_ticks)


def _find_candidate_offsets(frame_H: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the offsets in time that occur most often in `frame_H`, which has the offset, in frames, of each match of
    two landmarks: those with at least MIN_VOTES matches, at most MAX_CANDIDATES, the most frequent first. Of adjacent
    offsets, only the more frequent one is returned.

    The matches at the next offset count for an offset as well, because a copy may lie between two frames.
    """
    ordered = np.sort(frame_H)
    firsts = np.flatnonzero(np.diff(ordered, prepend=ordered[:1] - 1))
    values, votes = ordered[firsts], np.diff(firsts, append=len(ordered))
    adjoin = np.diff(values) == 1
    votes[:-1] += np.where(adjoin, votes[1:], 0)
    is_dominated = np.zeros(len(votes), bool)
    is_dominated[:-1] |= adjoin & (votes[:-1] < votes[1:])
    is_dominated[1:] |= adjoin & (votes[1:] <= votes[:-1])
    votes[is_dominated] = 0
    eligible = np.flatnonzero(votes >= MIN_VOTES)
    return values[eligible[np.argsort(-votes[eligible], kind="stable")[:MAX_CANDIDATES]]]

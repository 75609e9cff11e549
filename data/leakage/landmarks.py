"""Find recordings that are the same sound under another id, by landmarks: pairs of peaks of the spectrogram.

The method is that of A. Wang, "An industrial-strength audio search algorithm", ISMIR 2003: a pair of peaks is hashed by
its frequencies and the time between them, and a copy shows by many equal hashes at one offset. Two things are added.
The recordings of an index are analysed PHASES times, each a fraction of a frame later, as a copy cut out at any sample
meets none of a single grid of frames exactly. And what decides is for how long two recordings agree, as a share of all
that is heard while they overlap, so that a bark that recurs in two mixes doesn't make them one recording.

Constants without a source were measured: tests/benchmarks/duplicates.py says how well they do.
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
"""The unit of time: 8 ms."""
CHUNK_FRAMES = 96
"""Analysed at a time, whatever the blocks that samples come in; so few that they stay in a processor's cache."""

NEAR_FRAMES, NEAR_BINS = 4, 16
"""A peak is the highest value within so many frames and bins on either side."""
LOWEST_BIN, HIGHEST_BIN = NEAR_BINS, 480
"""Of a peak: 250 to 7,500 Hz, which is what a copy at 16 kHz still has."""
LOUD_FRAMES = 16
QUIETEST = 1e-5
"""Of a peak's power, relative to the highest within LOUD_FRAMES: lossy codecs change what lies 50 dB below."""
SILENCE = 4e-6
"""Of a peak's power: some twenty times what 16 bits with dither give a bin, 2**-30 / 4 * 768 (the window's energy)."""

PARTNERS = 3
"""At most, of a peak: the next ones near enough."""
FARTHEST_FRAMES, FARTHEST_BINS = 63, 127
NUM_HASHES = (HIGHEST_BIN - LOWEST_BIN) * (2 * FARTHEST_BINS + 1) * (FARTHEST_FRAMES + 1)
MOST_PLACES = 256
"""Of a hash in an index: a commoner one tells too little for the time it takes."""

SPACE_TICKS = 16 * PHASES
"""Between clips on an index's time line: parts of one recording, one after the other, keep offsets of their own."""
WINDOW_TICKS = round(600 / TICK_S)
"""Of a long recording, looked up at a time."""
FEWEST_VOTES = 12
"""Equal hashes at one offset: what chance gives is less."""
FEWEST_A_SECOND = 4
"""Landmarks that agree, while two recordings agree: regular sounds of one kind, as of crickets, give half as many."""
MOST_CANDIDATES = 64
"""Offsets that are looked at closely, those with the most votes."""
LONGEST_GAP_TICKS = round(1.2 / TICK_S)
"""Between landmarks, without taking what lies between for silence, or for another sound."""
SMALLEST_SHARE = 0.5
"""Of what is heard while two recordings overlap: the share in which they agree. Mixes that share an event are below."""
SHORTEST_S = 4.0
"""That two recordings agree, where neither holds the other: two mixes can share an event or two."""
SHORTEST_WHOLE_S = 0.5
"""The same where one holds the other, or all but WHOLE of it."""
WHOLE = 0.9


@dataclass(frozen=True)
class Landmarks:
    """The landmarks of a recording, in order of time."""

    hashes: NDArray[np.uint32]  # [num_landmarks]
    ticks: NDArray[np.int32]  # [num_landmarks], of the first peak
    num_ticks: int  # of the recording


@dataclass(frozen=True)
class Match:
    """A recording of an index that is, or holds, or is held by, the one that was looked up."""

    clip_id: str
    overlap_s: float  # for how long both are the same sound, silence not counted
    offset_s: float  # where in the recording of the index the other one begins; below 0 where it begins earlier
    score: float  # overlap_s, as a share of what is heard in either while they overlap


def landmarks(blocks: Iterable[Samples], phases: int = 1) -> Landmarks:
    """The landmarks of a recording that comes in blocks of any length; a few seconds of it are held in memory.

    With `phases=PHASES` they are those that `Index.build` wants, with 1 those to look up. A recording shorter than
    WINDOW_SAMPLES has none.
    """
    silence = np.zeros((LOUD_FRAMES, phases, HIGHEST_BIN + NEAR_BINS), np.float32)
    power, num_frames = silence, 0
    found = [np.zeros((3, 0), np.int64)]
    for block in chain(_powers(blocks, phases), [silence]):
        power = np.concatenate([power, block])
        if len(power) > 2 * LOUD_FRAMES:
            found.append(_peaks(power) + np.array([[num_frames], [0], [0]]))
            num_frames += len(power) - 2 * LOUD_FRAMES
            power = power[-2 * LOUD_FRAMES :]
    frames, phase_of, bins = np.concatenate(found, axis=1)
    pairs = []
    for phase in range(phases):
        of_phase = phase_of == phase
        pairs.append(_pairs(frames[of_phase], bins[of_phase]) * [[1], [PHASES]] + [[0], [phase * PHASES // phases]])
    hashes, ticks = np.concatenate(pairs, axis=1)
    order = np.argsort(ticks, kind="stable")
    return Landmarks(hashes[order].astype(np.uint32), ticks[order].astype(np.int32), num_frames * PHASES)


def _powers(blocks: Iterable[Samples], phases: int) -> Iterator[NDArray[np.float32]]:
    """Spectrograms [num_frames, phases, num_bins] of consecutive chunks; a last frame without all phases has zeros."""
    hop = FRAME_SAMPLES // phases
    taken = CHUNK_FRAMES * FRAME_SAMPLES
    wanted = taken - hop + WINDOW_SAMPLES
    samples = np.zeros(0, np.float32)
    waiting: list[Samples] = []
    for block in chain(blocks, [None]):
        if block is not None:
            waiting.append(block)
            if len(samples) + sum(map(len, waiting)) < wanted:
                continue
        samples = np.concatenate([samples, *waiting])
        waiting = []
        while len(samples) >= wanted or (block is None and len(samples) >= WINDOW_SAMPLES):
            yield _power(samples[:wanted], hop, phases)
            samples = samples[taken:]


def _power(samples: Samples, hop: int, phases: int) -> NDArray[np.float32]:
    """The spectrogram [num_frames, phases, num_bins] of some samples."""
    windows = sliding_window_view(samples, WINDOW_SAMPLES)[::hop] * _taper()
    spectrum = scipy.fft.rfft(windows, axis=1)[:, : HIGHEST_BIN + NEAR_BINS]
    power = np.zeros((-(-len(spectrum) // phases) * phases, spectrum.shape[1]), np.float32)
    power[: len(spectrum)] = spectrum.real**2 + spectrum.imag**2
    return power.reshape(-1, phases, power.shape[1])


@cache
def _taper() -> NDArray[np.float32]:
    return np.hanning(WINDOW_SAMPLES).astype(np.float32)


def _peaks(power: NDArray[np.float32]) -> NDArray[np.int64]:
    """Frame, phase and bin [3, num_peaks] of the peaks of a spectrogram but its first and last LOUD_FRAMES."""
    inner = power[LOUD_FRAMES:-LOUD_FRAMES, :, LOWEST_BIN:HIGHEST_BIN]
    around = slice(LOUD_FRAMES - NEAR_FRAMES, len(power) - LOUD_FRAMES + NEAR_FRAMES)
    highest = _running_max(_running_max(power[around], NEAR_FRAMES, axis=0), NEAR_BINS, axis=2)
    loudest = _running_max(power[:, :, LOWEST_BIN:HIGHEST_BIN].max(axis=2, keepdims=True), LOUD_FRAMES, axis=0)
    is_peak = (inner == highest) & (inner > np.maximum(loudest * np.float32(QUIETEST), SILENCE))
    # Ten times as fast as np.nonzero.
    frames, phases, bins = np.unravel_index(np.flatnonzero(is_peak), is_peak.shape)
    return np.stack([frames, phases, bins])


def _running_max(values: NDArray[np.float32], radius: int, axis: int) -> NDArray[np.float32]:
    """The maximum over 2 * radius + 1 neighbours along an axis, which gets shorter by 2 * radius."""
    values, width = np.swapaxes(values, 0, axis), 1
    while width <= radius:
        values, width = np.maximum(values[:-width], values[width:]), 2 * width
    rest = 2 * radius + 1 - width
    values = np.maximum(values[:-rest], values[rest:])
    return np.swapaxes(values, 0, axis)


def _pairs(frames: NDArray[np.int64], bins: NDArray[np.int64]) -> NDArray[np.int64]:
    """Hash and first frame [2, num_landmarks] of the pairs of peaks, which come in order of time."""
    found = [np.zeros((2, 0), np.int64)]
    num_partners = np.zeros(len(frames), np.int64)
    first, step = np.arange(len(frames)), 0
    while len(first):
        step += 1
        first = first[: np.searchsorted(first, len(frames) - step)]
        later = frames[first + step] - frames[first]
        first, later = first[later <= FARTHEST_FRAMES], later[later <= FARTHEST_FRAMES]
        higher = bins[first + step] - bins[first]
        near = (later > 0) & (np.abs(higher) <= FARTHEST_BINS)
        pitch = (bins[first] * (2 * FARTHEST_BINS + 1) + higher + FARTHEST_BINS)[near]
        found.append(np.stack([pitch * (FARTHEST_FRAMES + 1) + later[near], frames[first[near]]]))
        num_partners[first[near]] += 1
        first = first[num_partners[first] < PARTNERS]
    return np.concatenate(found, axis=1)


def _between(ticks: NDArray[np.int32], begin: int, end: int) -> NDArray[np.int32]:
    """Those from `begin` on and before `end`, of ascending ones."""
    # Bounds of another type would have all of them converted.
    return ticks[slice(*np.searchsorted(ticks, np.array([begin, end], np.int32)))]


def _heard(ticks: NDArray[np.int32]) -> int:
    """For how long landmarks follow each other without a gap, in ticks."""
    gaps = ticks[1:] - ticks[:-1]
    return int(gaps[gaps <= LONGEST_GAP_TICKS].sum())


@dataclass(frozen=True)
class Index:
    """Recordings to find others in, one after another on one time line: NumPy arrays of 30 MB and 1.5 kB a second."""

    clip_ids: tuple[str, ...]
    starts: NDArray[np.int64]  # [num_clips + 1] of each clip on the time line, SPACE_TICKS apart; ticks, as all below
    sounding: NDArray[np.int32]  # when any landmark begins, ascending
    begins: NDArray[np.int32]  # [NUM_HASHES + 1] of each hash's share of `places`
    places: NDArray[np.int32]  # where a hash occurs, by hash

    @classmethod
    def build(cls, clips: Iterable[tuple[str, Landmarks]]) -> "Index":
        """An index of recordings by id, whose landmarks have all PHASES."""
        clip_ids, starts = [], [0]
        hashes, places = [np.zeros(0, np.uint32)], [np.zeros(0, np.int32)]
        for clip_id, found in clips:
            clip_ids.append(clip_id)
            hashes.append(found.hashes)
            places.append(found.ticks + np.int32(starts[-1]))
            starts.append(starts[-1] + found.num_ticks + SPACE_TICKS)
        hash_L, place_L = np.concatenate(hashes), np.concatenate(places)
        counts = np.bincount(hash_L, minlength=NUM_HASHES)
        sounding = np.unique(place_L // PHASES * PHASES)
        telling = counts[hash_L] <= MOST_PLACES
        by_hash = np.sort(hash_L[telling].astype(np.int64) << 32 | place_L[telling])
        counts[counts > MOST_PLACES] = 0
        begins = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        return cls(tuple(clip_ids), np.array(starts), sounding, begins, (by_hash & 0xFFFFFFFF).astype(np.int32))

    def find(self, query: Landmarks) -> list[Match]:
        """The recordings that a recording, whose landmarks have one phase, is the same sound as; the longest first.

        Two are the same sound where they agree in SMALLEST_SHARE of what is heard while they overlap, for at least
        SHORTEST_S, or SHORTEST_WHOLE_S where one of them holds the other as a whole, by at least FEWEST_A_SECOND
        landmarks. Two mixes over the same background recording can be that, too.
        """
        best: dict[str, Match] = {}
        longest = int(np.diff(self.starts).max(initial=0))
        for start in range(0, query.num_ticks, WINDOW_TICKS):
            for match in self._find_between(query, start, start + WINDOW_TICKS + longest):
                if match.clip_id not in best or match.overlap_s > best[match.clip_id].overlap_s:
                    best[match.clip_id] = match
        return sorted(best.values(), key=lambda match: (-match.overlap_s, match.clip_id))

    def _find_between(self, query: Landmarks, start: int, stop: int) -> Iterator[Match]:
        """What a part of a recording is the same sound as.

        Shapes: L of its landmarks, H hits in the index, K of them at the offset of a candidate; all in order of time.
        """
        part = slice(*np.searchsorted(query.ticks, [start, stop]))
        hash_L, tick_L = query.hashes[part].astype(np.int64), query.ticks[part]
        begin_L = self.begins[hash_L]
        count_L = self.begins[hash_L + 1] - begin_L
        place_H = self.places[np.arange(count_L.sum()) + np.repeat(begin_L - np.cumsum(count_L) + count_L, count_L)]
        offset_H = place_H - np.repeat(tick_L, count_L)  # where on the time line the recording would begin
        frame_H = offset_H // PHASES
        candidates = _candidates(frame_H)
        at_K = np.flatnonzero(np.isin(frame_H, [candidates, candidates + 1]))
        offset_K, frame_K = offset_H[at_K], frame_H[at_K]
        clip_K = np.searchsorted(self.starts, place_H[at_K], side="right") - 1
        landmark_K = np.repeat(np.arange(len(hash_L)), count_L)[at_K]
        for candidate in candidates:
            near_K = (frame_K == candidate) | (frame_K == candidate + 1)
            for clip in np.flatnonzero(np.bincount(clip_K[near_K]) >= FEWEST_VOTES).tolist():
                hits = np.flatnonzero(near_K & (clip_K == clip))
                agreeing = _heard(tick_L[landmark_K[hits]])
                if agreeing * TICK_S < SHORTEST_WHOLE_S:
                    continue
                num_agreeing = 1 + np.count_nonzero(np.diff(landmark_K[hits]))
                offset = int(np.median(offset_K[hits]))
                clip_start, clip_end = int(self.starts[clip]), int(self.starts[clip + 1]) - SPACE_TICKS
                begin, end = max(clip_start, offset + start), min(clip_end, offset + min(stop, query.num_ticks))
                whole = end - begin >= WHOLE * min(query.num_ticks, clip_end - clip_start)
                if (not whole and agreeing * TICK_S < SHORTEST_S) or num_agreeing < FEWEST_A_SECOND * agreeing * TICK_S:
                    continue
                of_query, of_clip = _between(tick_L, begin - offset, end - offset), _between(self.sounding, begin, end)
                heard = max(_heard(of_query), _heard(of_clip))
                if agreeing >= SMALLEST_SHARE * heard:
                    offset_s = (offset - clip_start) * TICK_S
                    yield Match(self.clip_ids[clip], agreeing * TICK_S, offset_s, agreeing / heard)


def _candidates(frame_H: NDArray[np.int32]) -> NDArray[np.int32]:
    """The offsets that most hits, and at least FEWEST_VOTES, agree on, best first; of neighbours only the best.

    A vote for the next offset counts as well: a copy falls between two.
    """
    ordered = np.sort(frame_H)
    firsts = np.flatnonzero(np.diff(ordered, prepend=ordered[:1] - 1))
    values, votes = ordered[firsts], np.diff(firsts, append=len(ordered))
    adjoin = np.diff(values) == 1
    votes[:-1] += np.where(adjoin, votes[1:], 0)
    beaten = np.zeros(len(votes), bool)
    beaten[:-1] |= adjoin & (votes[:-1] < votes[1:])
    beaten[1:] |= adjoin & (votes[1:] <= votes[:-1])
    votes[beaten] = 0
    enough = np.flatnonzero(votes >= FEWEST_VOTES)
    return values[enough[np.argsort(-votes[enough], kind="stable")[:MOST_CANDIDATES]]]

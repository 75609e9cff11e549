"""Landmarks, and finding the same sound by them."""

import io
import pickle

import numpy as np
import pytest
import soundfile
import soxr

from data.leakage import landmarks as module
from data.leakage.landmarks import PHASES, TICK_S, LandmarkIndex, Landmarks, compute_landmarks
from data.schema import SAMPLE_RATE_HZ

MATCHED_S = 2 * TICK_S
"""How exact an offset is."""


def scene(seed, duration_s=12.0, background=True):
    """Six tones that sound one after another, each for at most 1.2 s, over noise or silence."""
    rng = np.random.default_rng(seed)
    samples = np.zeros(round(duration_s * SAMPLE_RATE_HZ), np.float32)
    if background:
        samples += 0.03 * rng.standard_normal(len(samples)).astype(np.float32)
    for number in range(6):
        tone = event([seed, number])
        start = round((number + rng.uniform(0.1, 0.3)) * duration_s / 6 * SAMPLE_RATE_HZ)
        samples[start : start + len(tone)] += tone
    return samples


def event(seed):
    """A harmonic tone that glides, with a rough start."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(rng.uniform(0.6, 1.2) * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    phase = 2 * np.pi * np.cumsum(rng.uniform(300, 900) * (1 + rng.uniform(-0.5, 1) * time)) / SAMPLE_RATE_HZ
    tone = sum(np.sin(harmonic * phase) / harmonic for harmonic in range(1, 8))
    return (0.2 * (tone + rng.standard_normal(len(time)) * np.exp(-time / 0.03)) * np.exp(-time)).astype(np.float32)


def rain(seed, duration_s=12.0):
    return (0.1 * np.random.default_rng([seed, 99]).standard_normal(round(duration_s * SAMPLE_RATE_HZ))).astype(
        np.float32
    )


def through(samples, container, subtype):
    file = io.BytesIO()
    soundfile.write(file, samples, SAMPLE_RATE_HZ, format=container, subtype=subtype)
    file.seek(0)
    return soundfile.read(file, dtype="float32")[0]


def at_rate(samples, rate_hz):
    return soxr.resample(soxr.resample(samples, SAMPLE_RATE_HZ, rate_hz), rate_hz, SAMPLE_RATE_HZ)


def build(recordings):
    return LandmarkIndex.build((name, compute_landmarks([samples], PHASES)) for name, samples in recordings.items())


@pytest.fixture(scope="module")
def held_out():
    return {f"scene {seed}": scene(seed) for seed in range(6)} | {f"rain {seed}": rain(seed) for seed in range(6)}


@pytest.fixture(scope="module")
def index(held_out):
    return build(held_out)


CHANGES = {
    "nothing": lambda samples: samples,
    "16 kHz": lambda samples: at_rate(samples, 16_000),
    "8 kHz": lambda samples: at_rate(samples, 8_000),
    "44.1 kHz": lambda samples: at_rate(samples, 44_100),
    "20 dB softer": lambda samples: np.rint(samples * 3_277) / np.float32(32_768),
    "clipped": lambda samples: np.clip(samples * 2 / np.abs(samples).max(), -1, 1),
    "Ogg Vorbis": lambda samples: through(samples, "OGG", "VORBIS"),
    "MP3": lambda samples: through(samples, "MP3", "MPEG_LAYER_III"),
    "both": lambda samples: 0.3 * at_rate(through(samples, "MP3", "MPEG_LAYER_III"), 22_050),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["scene 2", "rain 3"])
def test_a_copy_is_found(change, name, held_out, index):
    [match] = index.find_matches(compute_landmarks([CHANGES[change](held_out[name]).astype(np.float32)]))
    assert match.clip_id == name
    assert match.offset_s == pytest.approx(0, abs=0.1 if change in ("MP3", "both") else MATCHED_S)  # MP3 delays
    assert match.overlap_s > 8
    assert 0.5 <= match.score <= 1


@pytest.mark.parametrize("start", [0, 1, 40_001, 123_457, 200_000])
@pytest.mark.parametrize("name", ["scene 1", "rain 5"])
def test_a_piece_of_three_seconds_is_found_where_it_was_cut_out(start, name, held_out, index):
    [match] = index.find_matches(compute_landmarks([held_out[name][start : start + 3 * SAMPLE_RATE_HZ]]))
    assert match.clip_id == name
    assert match.offset_s == pytest.approx(start / SAMPLE_RATE_HZ, abs=MATCHED_S)


def test_a_recording_is_found_within_a_longer_one(held_out, index):
    before, after = scene(100, 7.3), rain(101, 20)
    [match] = index.find_matches(compute_landmarks([before, held_out["scene 4"], after]))
    assert match.clip_id == "scene 4"
    assert match.offset_s == pytest.approx(-7.3, abs=MATCHED_S)
    assert match.overlap_s == pytest.approx(12, abs=1.5)


def test_every_recording_within_a_longer_one_is_found(held_out, index):
    matches = index.find_matches(compute_landmarks([held_out["rain 0"], scene(100), held_out["scene 3"]]))
    assert {match.clip_id for match in matches} == {"rain 0", "scene 3"}


def test_windows_of_a_long_recording_miss_nothing_between_them(held_out, index, monkeypatch):
    query = compute_landmarks([rain(100, 8), *held_out.values(), scene(101)])
    whole = index.find_matches(query)
    assert {match.clip_id for match in whole} == set(held_out)
    monkeypatch.setattr(module, "WINDOW_TICKS", round(5 / TICK_S))
    assert {match.clip_id for match in index.find_matches(query)} == set(held_out)


def test_two_pieces_of_one_recording_are_found_by_what_they_share():
    whole = scene(0, 30)
    index = build({"first": whole[: 20 * SAMPLE_RATE_HZ]})
    [match] = index.find_matches(compute_landmarks([whole[12 * SAMPLE_RATE_HZ :]]))
    assert match.offset_s == pytest.approx(12, abs=MATCHED_S)
    assert match.overlap_s == pytest.approx(8, abs=1.5)


@pytest.mark.parametrize("name", ["scene", "rain"])
def test_other_recordings_of_the_kind_are_not_found(name, index):
    make = {"scene": scene, "rain": rain}[name]
    assert not any(index.find_matches(compute_landmarks([make(seed)])) for seed in range(200, 220))


def test_another_mix_of_the_same_events_is_not_found(index):
    rng = np.random.default_rng(0)
    for seed in range(6):
        mix = rain(seed + 300) / 3
        for number, place in enumerate(rng.permutation(6)):
            tone = event([seed, number])
            start = round((2 * place + rng.uniform(0, 0.8)) * SAMPLE_RATE_HZ)
            mix[start : start + len(tone)] += tone
        assert index.find_matches(compute_landmarks([mix])) == []


def test_the_loudest_event_of_a_recording_does_not_make_another_the_same(held_out, index):
    other = rain(400) / 3
    other[40_000 : 40_000 + 2 * SAMPLE_RATE_HZ] += held_out["scene 0"][: 2 * SAMPLE_RATE_HZ]
    assert index.find_matches(compute_landmarks([other])) == []


@pytest.mark.parametrize("phases", [1, PHASES])
@pytest.mark.parametrize("size", [1_000, 7_777, 96 * 1_024, 96 * 1_024 + 1_024, 400_000])
def test_blocks_of_any_length_give_the_same_landmarks(phases, size):
    samples = scene(0, 15.3)
    whole = compute_landmarks([samples], phases)
    blocks = compute_landmarks((samples[start : start + size] for start in range(0, len(samples), size)), phases)
    np.testing.assert_array_equal(blocks.hashes, whole.hashes)
    np.testing.assert_array_equal(blocks.ticks, whole.ticks)
    assert blocks.num_ticks == whole.num_ticks
    assert len(whole.hashes) > 100


def test_landmarks_are_in_order_of_time_and_fit_their_types():
    found = compute_landmarks([rain(0)], PHASES)
    assert (found.hashes.dtype, found.ticks.dtype) == (np.uint32, np.int32)
    assert (np.diff(found.ticks) >= 0).all()
    assert found.hashes.max() < module.NUM_HASHES
    assert found.ticks.max() < found.num_ticks == pytest.approx(12 / TICK_S, rel=0.02)


def test_a_landmark_is_two_peaks_and_the_time_between_them():
    samples = np.zeros(2 * SAMPLE_RATE_HZ, np.float32)
    hann = np.hanning(2_048)
    for frame, bin_ in ((10, 100), (25, 160)):  # tones of one window, in the middle of a bin
        time = np.arange(2_048) / 2_048
        samples[frame * 1_024 :][:2_048] += (0.5 * hann * np.sin(2 * np.pi * bin_ * time)).astype(np.float32)
    found = compute_landmarks([samples])
    pitch = (100 - module.MIN_BIN) * (2 * module.MAX_PAIR_BINS + 1) + 60 + module.MAX_PAIR_BINS
    assert found.hashes.tolist() == [pitch * (module.MAX_PAIR_FRAMES + 1) + 15]
    assert found.ticks.tolist() == [10 * PHASES]


def test_peaks_are_those_of_a_loop_over_all_cells():
    rng = np.random.default_rng(0)
    power = rng.exponential(size=(60, 2, module.MAX_BIN + module.NEAR_BINS)).astype(np.float32) ** 8
    power[40:] *= 1e-5
    loud, near, beside = module.LOUD_FRAMES, module.NEAR_FRAMES, module.NEAR_BINS
    naive = []
    for frame in range(loud, 60 - loud):
        for phase in range(2):
            loudest = power[frame - loud : frame + loud + 1, phase, module.MIN_BIN : module.MAX_BIN].max()
            for place in range(module.MIN_BIN, module.MAX_BIN):
                value = power[frame, phase, place]
                around = power[frame - near : frame + near + 1, phase, place - beside : place + beside + 1]
                if value == around.max() and value > max(module.MIN_RELATIVE_POWER * loudest, module.MIN_POWER):
                    naive.append((frame - loud, phase, place - module.MIN_BIN))
    assert list(zip(*module._find_peaks(power), strict=True)) == naive
    assert len(naive) > 10


def test_pairs_are_those_of_a_loop_over_all_peaks():
    rng = np.random.default_rng(0)
    frames = np.sort(rng.integers(0, 400, 300))
    bins = rng.integers(0, module.MAX_BIN - module.MIN_BIN, 300)
    naive = []
    for first in range(300):
        partners = 0
        for second in range(first + 1, 300):
            later, higher = frames[second] - frames[first], bins[second] - bins[first]
            near = 0 < later <= module.MAX_PAIR_FRAMES and abs(higher) <= module.MAX_PAIR_BINS
            if near and partners < module.MAX_PARTNERS:
                pitch = bins[first] * (2 * module.MAX_PAIR_BINS + 1) + higher + module.MAX_PAIR_BINS
                naive.append((pitch * (module.MAX_PAIR_FRAMES + 1) + later, frames[first]))
                partners += 1
    assert sorted(map(tuple, module._pair_peaks(frames, bins).T)) == sorted(naive)


def test_candidates_are_those_of_a_naive_count():
    rng = np.random.default_rng(0)
    hits = np.concatenate([rng.integers(-500, 500, 5_000), np.repeat([-600, 7, 8, 600], [12, 30, 30, 11])])
    votes = {value: np.isin(hits, [value, value + 1]).sum() for value in np.unique(hits)}
    naive = [
        value
        for value in sorted(votes, key=lambda value: (-votes[value], value))
        if votes[value] >= module.MIN_VOTES and votes.get(value - 1, 0) < votes[value] >= votes.get(value + 1, 0)
    ]
    found = module._find_candidate_offsets(hits.astype(np.int32)).tolist()
    assert found == naive[: module.MAX_CANDIDATES]
    assert found[0] == 7
    assert module._find_candidate_offsets(np.repeat([-600, 7, 600], [12, 30, 11]).astype(np.int32)).tolist() == [
        7,
        -600,
    ]


def test_a_hash_leads_to_every_place_where_it_occurs():
    rng = np.random.default_rng(0)
    clips = {
        name: Landmarks(
            rng.integers(0, 50, 200).astype(np.uint32), np.sort(rng.integers(0, 900, 200)).astype(np.int32), 1_000
        )
        for name in "abc"
    }
    index = LandmarkIndex.build(clips.items())
    for hash_ in range(60):
        naive = [
            (1_000 + module.SPACE_TICKS) * number + tick
            for number, found in enumerate(clips.values())
            for tick in found.ticks[found.hashes == hash_]
        ]
        assert index.positions[index.hash_starts[hash_] : index.hash_starts[hash_ + 1]].tolist() == sorted(naive)


def test_a_hash_that_is_everywhere_is_left_out():
    many = module.MAX_POSITIONS_PER_HASH + 1
    index = LandmarkIndex.build([("a", Landmarks(np.full(many, 5, np.uint32), np.arange(many, dtype=np.int32), many))])
    assert len(index.positions) == 0


NOTHING = {
    "no samples": np.zeros(0, np.float32),
    "one sample": np.ones(1, np.float32),
    "silence": np.zeros(10 * SAMPLE_RATE_HZ, np.float32),
    "a constant": np.full(10 * SAMPLE_RATE_HZ, 0.5, np.float32),
    "the dither of 16 bits": np.rint(np.random.default_rng(0).uniform(-1, 1, (2, 320_000)).sum(0) / 2).astype(
        np.float32
    )
    / 32_768,
}


@pytest.mark.parametrize("what", NOTHING)
def test_what_holds_no_sound_has_no_landmarks_and_matches_nothing(what, index):
    found = compute_landmarks([NOTHING[what]])
    assert len(found.hashes) == 0
    assert index.find_matches(found) == []
    assert (
        LandmarkIndex.build([(what, compute_landmarks([NOTHING[what]], PHASES))]).find_matches(
            compute_landmarks([rain(0)])
        )
        == []
    )


@pytest.mark.parametrize("duration_s", [0.1, 0.5, 1.0])
def test_a_short_clip_matches_nothing_else(duration_s, index):
    assert index.find_matches(compute_landmarks([scene(500)[: round(duration_s * SAMPLE_RATE_HZ)]])) == []


def test_noise_at_full_scale_and_a_steady_tone_match_nothing_else(index):
    noise = np.random.default_rng(600).uniform(-1, 1, 20 * SAMPLE_RATE_HZ).astype(np.float32)
    tone = np.sin(2 * np.pi * 440 * np.arange(20 * SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ).astype(np.float32)
    assert index.find_matches(compute_landmarks([noise])) == []
    assert index.find_matches(compute_landmarks([tone])) == []


def test_a_copy_of_two_seconds_is_found():
    samples = scene(0)[: 2 * SAMPLE_RATE_HZ]
    [match] = build({"short": samples}).find_matches(compute_landmarks([samples]))
    assert match.clip_id == "short"


def test_an_empty_index_finds_nothing():
    assert LandmarkIndex.build([]).find_matches(compute_landmarks([rain(0)])) == []


def test_an_index_survives_pickling_and_finds_the_same(held_out, index):
    query = compute_landmarks([held_out["rain 1"], held_out["scene 2"]])
    found = index.find_matches(query)
    assert len(found) == 2
    assert pickle.loads(pickle.dumps(index)).find_matches(query) == found
    assert build(held_out).find_matches(query) == found

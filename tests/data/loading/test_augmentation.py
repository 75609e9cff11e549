"""Augmentation of pairs: what a mixture is made of, how often there is one, and that it depends on the pair alone."""

import numpy as np
import pytest
from loading_cases import LONGEST_S, NUM_PAIRS, SEGMENT_S, assert_same_pairs, load, pairs_of, single_pairs
from scipy import signal

from data.errors import UserError
from data.loading.augmentation import MAX_MIX_DB, NO_AUGMENTATION, Augmentation, draw_change
from data.loading.filters import draw_filter, filter_samples
from data.loading.pairs import ClipCaptionDataset
from data.schema import SAMPLE_RATE_HZ, Paraphrase


def augmented(*splits, mix=0.0, gain=0.0, filters=0.0, probability=0.0, seed=0):
    return ClipCaptionDataset(splits, SEGMENT_S, LONGEST_S, probability, seed, (), Augmentation(mix, gain, filters))


def flatten(pair):
    """The samples of a pair's clip, one segment after the other."""
    return pair.segments.numpy().reshape(-1)


@pytest.mark.parametrize("settings", [(-0.1, 0.0, 0.0), (1.1, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, -1.0)])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(UserError, match="it must be"):
        Augmentation(*settings)


def test_without_augmentation_pairs_are_as_before(split):
    plain, off = pairs_of(split), augmented(split)
    for pair in range(NUM_PAIRS):
        assert_same_pairs(single_pairs(plain[2, pair]), single_pairs(off[2, pair]))
    assert off.augmentation == NO_AUGMENTATION


def test_a_mixture_is_the_sum_of_two_clips_with_both_captions(split):
    """The clip of the other caption is added, up to a gain within 5 dB, and nothing beyond its end."""
    mixed, plain = augmented(split, mix=1.0), pairs_of(split)
    whole = ClipCaptionDataset([split], 2.5, 2.5, 0.0, 0)
    clips = {
        whole[0, pair].captions[0]: flatten(whole[0, pair])[: whole.get_num_samples(np.array([pair]))[0]]
        for pair in range(NUM_PAIRS)
    }
    num_checked, is_partner_first = 0, set()
    for epoch, pair in [(epoch, pair) for epoch in range(3) for pair in range(NUM_PAIRS)]:
        mixture, own = mixed[epoch, pair], plain[epoch, pair]
        assert mixture.segments.shape == own.segments.shape
        assert mixture.count_samples().tolist() == own.count_samples().tolist()
        captions = mixture.captions[0].split(" and ")
        if len(captions) == 1:  # the partner was another caption of the same clip
            assert_same_pairs(single_pairs(mixture), single_pairs(own))
            continue
        (partner_caption,) = set(captions) - set(own.captions)
        is_partner_first.add(captions[0] == partner_caption)
        added, partner = flatten(mixture) - flatten(own), clips[partner_caption]
        assert partner is not clips[own.captions[0]]
        length = min(int(own.count_samples().sum()), len(partner))
        np.testing.assert_array_equal(added[length:], 0)
        if len(partner) <= LONGEST_S * SAMPLE_RATE_HZ:  # of longer ones, a random window is added
            gain = np.dot(added[:length], partner[:length]) / np.sum(partner[:length] ** 2)
            np.testing.assert_allclose(added[:length], gain * partner[:length], atol=1e-6)
            assert 10 ** (-MAX_MIX_DB / 20) <= gain <= 10 ** (MAX_MIX_DB / 20)
            num_checked += 1
    assert num_checked >= 10
    assert is_partner_first == {False, True}


def test_mixtures_have_numbers_of_their_own(split):
    batches = load(augmented(split, mix=1.0))
    numbers = [clip for batch in batches for clip in batch.clips.tolist()]
    mixtures = [clip for batch in batches for _, _, caption, clip in single_pairs(batch) if " and " in caption]
    assert len(set(mixtures)) == len(mixtures) > NUM_PAIRS / 2
    assert min(mixtures) >= len(split.index)
    assert len(numbers) == NUM_PAIRS


def test_a_gain_scales_the_clip_and_nothing_else(split):
    loud, plain = augmented(split, gain=6.0), pairs_of(split)
    factors = []
    for epoch in range(3):
        for pair in range(NUM_PAIRS):
            changed, own = loud[epoch, pair], plain[epoch, pair]
            factor = np.abs(flatten(changed)).sum() / np.abs(flatten(own)).sum()
            np.testing.assert_allclose(flatten(changed), factor * flatten(own), rtol=1e-4, atol=1e-7)
            assert (changed.captions, changed.clips.tolist()) == (own.captions, own.clips.tolist())
            factors.append(20 * np.log10(factor))
    assert -6 <= min(factors) < -3
    assert 3 < max(factors) <= 6


def test_a_filter_changes_the_samples_of_the_clip_and_nothing_else(split):
    filtered, plain = augmented(split, filters=6.0), pairs_of(split)
    for pair in range(NUM_PAIRS):
        changed, unchanged = filtered[1, pair], plain[1, pair]
        length = int(unchanged.count_samples().sum())
        assert not np.allclose(flatten(changed)[:length], flatten(unchanged)[:length], rtol=1e-3)
        np.testing.assert_array_equal(flatten(changed)[length:], 0)
        assert (changed.captions, changed.clips.tolist()) == (unchanged.captions, unchanged.clips.tolist())
        assert changed.count_samples().tolist() == unchanged.count_samples().tolist()
        assert_same_pairs(single_pairs(changed), single_pairs(filtered[1, pair]))
        assert not np.array_equal(flatten(changed), flatten(filtered[2, pair]))


def test_the_gain_of_a_filter_is_linear_between_the_edges_of_its_bands():
    """The gains in dB, measured from the taps, stay in the range that is asked for, reach its ends, and bend on the mel
    scale only around the edges of bands, of which there are at most four.
    """
    frequencies_hz = 700 * np.expm1(np.linspace(2000, 3500, 120) / 1127)  # equal steps in mel, from 3.4 kHz
    responses_db = []
    for seed in range(200):
        taps = draw_filter(np.random.default_rng(seed), 6.0)
        assert taps.dtype == np.float32
        np.testing.assert_allclose(taps, taps[::-1], atol=1e-7)  # linear phase
        _, response = signal.freqz(taps, worN=frequencies_hz, fs=SAMPLE_RATE_HZ)
        responses_db.append(20 * np.log10(np.abs(response)))
    responses_db = np.array(responses_db)
    assert np.abs(responses_db).max() <= 6.05
    assert responses_db.min() < -5.5
    assert responses_db.max() > 5.5
    assert (np.abs(np.diff(responses_db, n=2)) < 0.02).mean(axis=1).min() > 0.85


@pytest.mark.parametrize("length", [1, 100, 511, 4000])
def test_filtering_is_convolution_without_delay(length):
    rng = np.random.default_rng(0)
    samples, taps = rng.normal(size=length).astype(np.float32), draw_filter(rng, 6.0)
    expected = np.convolve(samples, taps)[len(taps) // 2 :][:length]
    np.testing.assert_allclose(filter_samples(samples, taps), expected, atol=1e-5)


def test_the_share_of_mixtures_is_the_probability_and_all_partners_occur():
    changes = [draw_change(np.random.default_rng([1, pair]), Augmentation(0.3), 7) for pair in range(4000)]
    assert np.mean([change.is_mixed for change in changes]) == pytest.approx(0.3, abs=0.03)
    assert {change.partner for change in changes} == set(range(7))
    assert np.mean([change.is_partner_first for change in changes]) == pytest.approx(0.5, abs=0.03)


def test_a_higher_probability_mixes_further_pairs_and_leaves_mixtures_as_they_are(split):
    few, many = augmented(split, mix=0.3), augmented(split, mix=0.8)
    num_mixed = 0
    for epoch in range(3):
        for pair in range(NUM_PAIRS):
            one, other = few[epoch, pair], many[epoch, pair]
            if " and " in one.captions[0]:
                num_mixed += 1
                assert_same_pairs(single_pairs(one), single_pairs(other))
    assert num_mixed >= 3


@pytest.mark.parametrize("loader_workers", [1, 2])
def test_loader_processes_mix_the_same_pairs(split, loader_workers):
    def load_all(**arguments):
        batches = load(augmented(split, mix=0.7, gain=3.0, filters=3.0), epoch=1, **arguments)
        return [pair for batch in batches for pair in single_pairs(batch)]

    assert_same_pairs(load_all(), load_all(loader_workers=loader_workers))


def test_ranks_mix_the_same_pairs(split):
    pairs = augmented(split, mix=0.7, gain=3.0, filters=3.0)
    of_ranks = [pair for rank in range(2) for batch in load(pairs, epoch=1, rank=rank, world_size=2)
                for pair in single_pairs(batch)]  # fmt: skip
    for pair in (pair for batch in load(pairs, epoch=1) for pair in single_pairs(batch)):
        assert_same_pairs([pair], [next(other for other in of_ranks if other[2:] == pair[2:])])


def test_the_captions_of_a_mixture_are_paraphrased(make_clip, noise, write_split):
    clips = [make_clip(f"{number}.wav", noise(0.5, number), [f"Sound {number}."]) for number in range(4)]
    table = [
        Paraphrase(clip.clip_id, caption, (f"new {caption}",), "grammar") for clip in clips for caption in clip.captions
    ]
    pairs = augmented(write_split(clips, paraphrases=table), mix=1.0, probability=0.5)
    parts = [part for epoch in range(20) for pair in range(4) for part in pairs[epoch, pair].captions[0].split(" and ")]
    assert np.mean([part.startswith("new sound") for part in parts]) == pytest.approx(0.5, abs=0.12)
    assert all(part.startswith(("new sound", "sound")) for part in parts)

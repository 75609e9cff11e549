"""Pairs: decoded and worded the same whoever asks, with paraphrases of their own, without excluded clips."""

import pickle

import numpy as np
import pytest
import torch
from loading_cases import (
    DURATIONS_S,
    LONGEST_S,
    NUM_PAIRS,
    SEGMENT_S,
    SEGMENT_SAMPLES,
    assert_same_pairs,
    load,
    pairs_of,
    single_pairs,
)

from data.captions import choose_wording, hash_caption, normalise
from data.errors import UserError
from data.loading.batch import NUM_MASK_DRAWS
from data.loading.pairs import ClipCaptionDataset
from data.schema import Paraphrase


def test_a_batch_holds_each_clips_own_segments(split):
    for batch in load(pairs_of(split)):
        assert batch.segments.shape == (batch.segments_per_clip.sum(), SEGMENT_SAMPLES)
        assert batch.mask_draws.shape == (batch.segments_per_clip.sum(), NUM_MASK_DRAWS)
        assert {batch.segments.dtype, batch.mask_draws.dtype} == {torch.float32}
        assert ((batch.mask_draws >= 0) & (batch.mask_draws < 1)).all()
        assert batch.segments_per_clip.tolist() == [[1, 1, 1, 2, 3, 3, 3][clip] for clip in batch.clips.tolist()]


def test_the_pairs_of_several_splits_are_joined(split, make_clip, noise, write_split, tmp_path):
    other = write_split([make_clip("other.wav", noise(0.2), ["Another.", "One more."])], store=tmp_path / "other")
    pairs = pairs_of(split, other)
    assert len(pairs) == NUM_PAIRS + 2
    clips = {caption: clip for batch in load(pairs) for _, _, caption, clip in single_pairs(batch)}
    assert clips["another"] == clips["one more"] == len(DURATIONS_S)


def test_excluded_clips_are_left_out_and_nothing_else_is(split, make_clip, noise, write_split, tmp_path):
    other = write_split([make_clip("other.wav", noise(0.2), ["Another.", "One more."])], store=tmp_path / "other")
    left_out = {split.clip_ids[0], split.clip_ids[4], "nowhere/train/x.wav"}
    pairs = ClipCaptionDataset([split, other], SEGMENT_S, LONGEST_S, 0.0, 0, left_out)
    expected = [
        normalise(text)
        for clip_id, captions in zip(split.clip_ids, split.captions, strict=True)
        for text in captions
        if clip_id not in left_out
    ]
    assert sorted(text for batch in load(pairs) for text in batch.captions) == sorted(
        [*expected, "another", "one more"]
    )
    assert [normalise(text) for text in pairs.iter_captions()] == [*expected, "another", "one more"]
    whole = {
        pair[2]: pair
        for batch in load(ClipCaptionDataset([split], SEGMENT_S, 100.0, 0.0, 0))
        for pair in single_pairs(batch)
    }
    for batch in load(ClipCaptionDataset([split], SEGMENT_S, 100.0, 0.0, 0, left_out)):
        for segments, _, caption, clip in single_pairs(batch):
            torch.testing.assert_close(segments, whole[caption][0], rtol=0, atol=0)
            assert clip == whole[caption][3]


def test_pairs_travel_to_other_processes_without_their_tables(split):
    pairs = pairs_of(split)
    load(pairs)
    packed = pickle.dumps(pairs)
    assert split.captions[1][0].encode() not in packed
    for batch, other in zip(load(pickle.loads(packed)), load(pairs), strict=True):
        assert_same_pairs(single_pairs(batch), single_pairs(other))


def test_a_pair_does_not_depend_on_what_was_asked_for_before(split):
    pairs = pairs_of(split)
    forward = [pairs[3, pair] for pair in range(NUM_PAIRS)]
    backward = [pairs_of(split)[3, pair] for pair in reversed(range(NUM_PAIRS))]
    for sample, other in zip(forward, reversed(backward), strict=True):
        np.testing.assert_array_equal(sample.segments, other.segments)
        np.testing.assert_array_equal(sample.mask_draws, other.mask_draws)


def test_crops_and_mask_draws_differ_between_epochs_and_seeds(ramp):
    samples = [ClipCaptionDataset([ramp], 0.5, 0.5, 0.0, seed)[epoch, 0] for seed in (0, 1) for epoch in (0, 1, 2)]
    assert len({sample.segments[0, 0].item() for sample in samples}) == 6
    assert len({sample.mask_draws[0, 0].item() for sample in samples}) == 6


def test_crops_lie_within_the_clip_and_reach_most_of_it(ramp):
    pairs = ClipCaptionDataset([ramp], 0.25, 0.5, 0.0, seed=0)
    starts = []
    for epoch in range(200):
        places = pairs[epoch, 0].segments.numpy().ravel() * 32_768
        np.testing.assert_array_equal(np.diff(places), 1)
        starts.append(places[0])
    assert 0 <= min(starts) < 1_000
    assert 15_000 < max(starts) <= 16_000


def test_a_clip_that_is_short_enough_is_whole(ramp):
    for epoch in range(5):
        places = ClipCaptionDataset([ramp], 0.5, 0.5, 0.0, seed=0)[epoch, 1].segments.numpy().ravel() * 32_768
        np.testing.assert_array_equal(places[:9_600], np.arange(9_600))
        assert not places[9_600:].any()


def test_probability_0_does_not_open_the_paraphrases(split):
    (split.store.path / split.name / "paraphrases.arrow").write_bytes(b"not a table")
    assert {text for batch in load(pairs_of(split)) for text in batch.captions} == {
        normalise(text) for captions in split.captions for text in captions
    }


def test_probability_above_0_needs_paraphrases(split):
    with pytest.raises(UserError, match="test/train has no paraphrases"):
        pairs_of(split, probability=0.1)


@pytest.mark.parametrize("probability", [0.3, 1.0])
def test_the_share_of_swapped_captions_is_the_probability(probability, make_clip, noise, write_split):
    captions = [f"Sound {n}." for n in range(20)]
    clip = make_clip("a.wav", noise(0.01), captions)
    table = [Paraphrase(clip.clip_id, text, (f"Other {text}", f"Another {text}"), "grammar") for text in captions]
    pairs = pairs_of(write_split([clip], paraphrases=table), probability=probability)
    texts = [(pair, pairs[epoch, pair].captions[0]) for epoch in range(50) for pair in range(20)]
    assert all(text.endswith(f"sound {pair}") for pair, text in texts)
    shares = [np.mean([text.startswith(word) for _, text in texts]) for word in ("other", "another")]
    np.testing.assert_allclose(shares, probability / 2, atol=0.05)


def test_a_caption_without_paraphrases_of_its_own_stays(make_clip, noise, write_split):
    clips = [make_clip(name, noise(0.01), ["A dog.", "A cat."]) for name in ("a.wav", "b.wav")]
    split = write_split(clips, paraphrases=[Paraphrase(clips[0].clip_id, "A dog.", ("a hound",), "grammar")])
    pairs = pairs_of(split, probability=1.0)
    assert [pairs[0, pair].captions[0] for pair in range(4)] == ["a hound", "a cat", "a dog", "a cat"]
    assert pairs.without_paraphrases == 3
    assert pairs_of(split).without_paraphrases == 0


def test_paraphrases_are_those_of_the_pair_in_whatever_order_their_table_is(make_clip, noise, write_split, tmp_path):
    """Against a dictionary of them all, with two splits and a clip that is left out."""
    splits = []
    for name in ("one", "two"):
        clips = [
            make_clip(f"{name}{clip}.wav", noise(0.01, clip), [f"{name} {clip} {n}." for n in range(3)])
            for clip in range(6)
        ]
        table = [
            Paraphrase(clip.clip_id, text, tuple(f"{text} again {n}" for n in range(1 + number)), "grammar")
            for clip in clips
            for number, text in enumerate(clip.captions[:2])
        ]
        splits.append(write_split(clips, store=tmp_path / name, paraphrases=table[::-1]))
    pairs = ClipCaptionDataset(splits, SEGMENT_S, LONGEST_S, 0.7, 0, {"test/train/two3.wav"})
    known = {key: variants for split in splits for key, variants in split.read_paraphrases().items()}
    draws = np.random.default_rng(0).random((len(pairs), 2))
    expected = [
        choose_wording(caption, known.get((clip_id, hash_caption(caption)), []), 0.7, *draw)
        for caption, clip_id, draw in zip(
            pairs.iter_captions(), pairs.get_clip_ids(np.arange(len(pairs))), draws, strict=True
        )
    ]
    assert [pairs.choose_caption(pair, *draw) for pair, draw in enumerate(draws)] == expected
    assert pickle.loads(pickle.dumps(pairs)).choose_caption(0, 0.0, 0.5) == pairs.choose_caption(0, 0.0, 0.5)
    assert pairs.without_paraphrases == 11


def test_paraphrases_of_other_captions_are_as_good_as_none(make_clip, noise, write_split):
    table = [Paraphrase("test/train/a.wav", "What it said before.", ("a hound",), "grammar")]
    split = write_split([make_clip("a.wav", noise(0.01), ["A dog."])], paraphrases=table)
    with pytest.raises(UserError, match="none of test/train's paraphrases matches one of its captions"):
        pairs_of(split, probability=0.3)

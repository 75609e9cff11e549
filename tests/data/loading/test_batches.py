"""Batches: every pair once an epoch, and the same for any number of ranks and loader processes."""

import pickle
from dataclasses import fields

import numpy as np
import pytest
import torch

from data.captions import caption_hash, choose, normalise
from data.errors import UserError
from data.loading.batches import MASK_DRAWS, Pairs, load_clips, share_out
from data.schema import SAMPLE_RATE_HZ, Paraphrase

SEGMENT_S, LONGEST_S = 0.5, 1.5
SEGMENT_SAMPLES = round(SEGMENT_S * SAMPLE_RATE_HZ)
DURATIONS_S = (0.1, 0.5, 0.7, 1.0, 1.5, 2.0, 2.5)
NUM_PAIRS = 13  # with batches of 4, the last one has a single pair


@pytest.fixture
def split(make_clip, noise, write_split):
    """Seven clips with one to three captions each, no caption twice."""
    clips = [
        make_clip(f"{clip}.wav", noise(duration_s, clip), [f"Sound {clip}, said {n}." for n in range(1 + clip % 3)])
        for clip, duration_s in enumerate(DURATIONS_S)
    ]
    return write_split(clips)


@pytest.fixture
def ramp(make_clip, write_split):
    """A split of one clip of a second, whose n-th sample is n / 32768, and one of 0.3 s."""
    samples = np.arange(SAMPLE_RATE_HZ, dtype=np.float32) / 32_768
    return write_split([make_clip("ramp.wav", samples), make_clip("short.wav", samples[: round(0.3 * SAMPLE_RATE_HZ)])])


def pairs_of(*splits, probability=0.0, seed=0):
    return Pairs(splits, SEGMENT_S, LONGEST_S, probability, seed)


def load(pairs, epoch=0, rank=0, world_size=1, loader_workers=0, first_batch=0):
    return list(pairs.load_epoch(epoch, 4, rank, world_size, loader_workers, first_batch))


def single_pairs(batch):
    """A batch's pairs one by one."""
    sizes = batch.segments_per_clip.tolist()
    columns = (batch.segments.split(sizes), batch.mask_draws.split(sizes), batch.captions, batch.clips.tolist())
    return list(zip(*columns, strict=True))


def assert_same_pairs(pairs, others):
    for (segments, draws, caption, clip), (*other_tensors, other_caption, other_clip) in zip(
        pairs, others, strict=True
    ):
        assert (caption, clip) == (other_caption, other_clip)
        torch.testing.assert_close((segments, draws), tuple(other_tensors), rtol=0, atol=0)


def test_every_pair_comes_once_an_epoch(split):
    pairs = pairs_of(split)
    assert len(pairs) == NUM_PAIRS
    batches = load(pairs)
    assert [len(batch.captions) for batch in batches] == [4, 4, 4, 1]
    expected = [(normalise(text), clip) for clip, captions in enumerate(split.captions) for text in captions]
    seen = [(text, clip) for batch in batches for text, clip in zip(batch.captions, batch.clips.tolist(), strict=True)]
    assert sorted(seen) == sorted(expected)


def test_a_batch_holds_each_clips_own_segments(split):
    for batch in load(pairs_of(split)):
        assert batch.segments.shape == (batch.segments_per_clip.sum(), SEGMENT_SAMPLES)
        assert batch.mask_draws.shape == (batch.segments_per_clip.sum(), MASK_DRAWS)
        assert {batch.segments.dtype, batch.mask_draws.dtype} == {torch.float32}
        assert ((batch.mask_draws >= 0) & (batch.mask_draws < 1)).all()
        assert batch.segments_per_clip.tolist() == [[1, 1, 1, 2, 3, 3, 3][clip] for clip in batch.clips.tolist()]


def test_the_pairs_of_several_splits_are_joined(split, make_clip, noise, write_split, tmp_path):
    other = write_split([make_clip("other.wav", noise(0.2), ["Another.", "One more."])], store=tmp_path / "other")
    pairs = pairs_of(split, other)
    assert len(pairs) == NUM_PAIRS + 2
    clips = {caption: clip for batch in load(pairs) for _, _, caption, clip in single_pairs(batch)}
    assert clips["another"] == clips["one more"] == len(DURATIONS_S)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_ranks_shares_together_are_the_batch(world_size, split):
    pairs = pairs_of(split)
    ranks = [load(pairs, 1, rank, world_size) for rank in range(world_size)]
    for step, whole in enumerate(load(pairs, 1)):
        whole_pairs = single_pairs(whole)
        batch = pairs.epoch_batches(1, 4)[step].tolist()
        shares = [share.tolist() for share in pairs.shares(np.array(batch), world_size)]
        assert sorted(pair for share in shares for pair in share) == sorted(batch)
        for rank, share in enumerate(shares):
            own = single_pairs(ranks[rank][step])
            assert_same_pairs(own, [whole_pairs[batch.index(pair)] for pair in share or batch[:1]])


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("number", [1, 2, 5, 8, 9, 64])
def test_what_is_shared_out_is_there_once_and_leaves_no_rank_much_more_than_another(number, world_size):
    sizes = np.random.default_rng(number).integers(1, 4, number).tolist()
    shares = share_out(sizes, world_size)
    assert sorted(place for share in shares for place in share) == list(range(number))
    assert all(share == sorted(share) for share in shares)
    loads = [sum(sizes[place] for place in share) for share in shares]
    assert max(loads) - min(loads) <= max(sizes)
    if number >= world_size:
        assert min(loads) > 0
    naive = [sum(sizes[rank::world_size]) for rank in range(world_size)]
    assert max(loads) <= max(naive)


@pytest.mark.parametrize("most", [1, 2, 3, 10])
def test_parts_of_a_batch_are_its_pairs_in_order_without_a_copy(most, split):
    for batch in load(pairs_of(split)):
        parts = batch.split(most)
        assert [len(part.captions) for part in parts[:-1]] == [most] * (len(parts) - 1)
        assert_same_pairs([pair for part in parts for pair in single_pairs(part)], single_pairs(batch))
        assert parts[0].segments.data_ptr() == batch.segments.data_ptr()


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on a machine with one core
def test_loader_workers_change_nothing(split):
    alone, in_two_processes = (load(pairs_of(split), 2, loader_workers=workers) for workers in (0, 2))
    assert len(alone) == len(in_two_processes)
    for batch, other in zip(alone, in_two_processes, strict=True):
        assert_same_pairs(single_pairs(batch), single_pairs(other))


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("loader_workers", [0, 2])
@pytest.mark.parametrize("first_batch", [1, 3, 4])
def test_an_epoch_goes_on_in_its_middle(first_batch, loader_workers, split):
    rest = load(pairs_of(split), 2, 1, 2, loader_workers, first_batch)
    whole = load(pairs_of(split), 2, 1, 2)[first_batch:]
    assert len(rest) == len(whole) == 4 - first_batch
    for batch, other in zip(rest, whole, strict=True):
        assert_same_pairs(single_pairs(batch), single_pairs(other))


def test_excluded_clips_are_left_out_and_nothing_else_is(split, make_clip, noise, write_split, tmp_path):
    other = write_split([make_clip("other.wav", noise(0.2), ["Another.", "One more."])], store=tmp_path / "other")
    left_out = {split.clip_ids[0], split.clip_ids[4], "nowhere/train/x.wav"}
    pairs = Pairs([split, other], SEGMENT_S, LONGEST_S, 0.0, 0, left_out)
    expected = [
        normalise(text)
        for clip_id, captions in zip(split.clip_ids, split.captions, strict=True)
        for text in captions
        if clip_id not in left_out
    ]
    assert sorted(text for batch in load(pairs) for text in batch.captions) == sorted(
        [*expected, "another", "one more"]
    )
    assert [normalise(text) for text in pairs.captions()] == [*expected, "another", "one more"]
    whole = {pair[2]: pair for batch in load(Pairs([split], SEGMENT_S, 100.0, 0.0, 0)) for pair in single_pairs(batch)}
    for batch in load(Pairs([split], SEGMENT_S, 100.0, 0.0, 0, left_out)):
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


def test_the_order_differs_between_epochs_and_seeds(split):
    epochs = [pairs_of(split, seed=seed).epoch_batches(epoch, NUM_PAIRS) for seed in (0, 1) for epoch in (0, 1, 2)]
    assert len({tuple(order) for (order,) in epochs}) == 6
    again = [pairs_of(split, seed=seed).epoch_batches(epoch, NUM_PAIRS) for seed in (0, 1) for epoch in (0, 1, 2)]
    np.testing.assert_array_equal(epochs, again)


def test_the_batch_size_cuts_an_order_that_stays(split):
    pairs = pairs_of(split)
    for batch_size in (1, 4, 13, 50):
        np.testing.assert_array_equal(
            np.concatenate(pairs.epoch_batches(0, batch_size)), np.concatenate(pairs.epoch_batches(0, 7))
        )


def test_crops_and_mask_draws_differ_between_epochs_and_seeds(ramp):
    samples = [Pairs([ramp], 0.5, 0.5, 0.0, seed)[epoch, 0] for seed in (0, 1) for epoch in (0, 1, 2)]
    assert len({sample.segments[0, 0].item() for sample in samples}) == 6
    assert len({sample.mask_draws[0, 0].item() for sample in samples}) == 6


def test_crops_lie_within_the_clip_and_reach_most_of_it(ramp):
    pairs = Pairs([ramp], 0.25, 0.5, 0.0, seed=0)
    starts = []
    for epoch in range(200):
        places = pairs[epoch, 0].segments.numpy().ravel() * 32_768
        np.testing.assert_array_equal(np.diff(places), 1)
        starts.append(places[0])
    assert 0 <= min(starts) < 1_000
    assert 15_000 < max(starts) <= 16_000


def test_a_clip_that_is_short_enough_is_whole(ramp):
    for epoch in range(5):
        places = Pairs([ramp], 0.5, 0.5, 0.0, seed=0)[epoch, 1].segments.numpy().ravel() * 32_768
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
    pairs = Pairs(splits, SEGMENT_S, LONGEST_S, 0.7, 0, {"test/train/two3.wav"})
    known = {key: variants for split in splits for key, variants in split.paraphrases().items()}
    draws = np.random.default_rng(0).random((len(pairs), 2))
    expected = [
        choose(caption, known.get((clip_id, caption_hash(caption)), []), 0.7, *draw)
        for caption, clip_id, draw in zip(pairs.captions(), pairs.clip_ids(np.arange(len(pairs))), draws, strict=True)
    ]
    assert [pairs.wording(pair, *draw) for pair, draw in enumerate(draws)] == expected
    assert pickle.loads(pickle.dumps(pairs)).wording(0, 0.0, 0.5) == pairs.wording(0, 0.0, 0.5)
    assert pairs.without_paraphrases == 11


def test_paraphrases_of_other_captions_are_as_good_as_none(make_clip, noise, write_split):
    table = [Paraphrase("test/train/a.wav", "What it said before.", ("a hound",), "grammar")]
    split = write_split([make_clip("a.wav", noise(0.01), ["A dog."])], paraphrases=table)
    with pytest.raises(UserError, match="none of test/train's paraphrases is about a caption that it has now"):
        pairs_of(split, probability=0.3)


def test_clips_for_embedding_come_in_order_and_from_their_start(split):
    batches = list(load_clips(split, SEGMENT_S, LONGEST_S, batch_size=3))
    assert [batch.clips.tolist() for batch in batches] == [[0, 1, 2], [3, 4, 5], [6]]
    for segments, draws, caption, clip in (pair for batch in batches for pair in single_pairs(batch)):
        samples = split.window(clip, 0, split.num_samples[clip])[: len(segments) * SEGMENT_SAMPLES]
        heard = segments.ravel()[: len(samples)].numpy()
        np.testing.assert_array_equal(heard, samples)
        assert len(segments) == [1, 1, 1, 2, 3, 3, 3][clip]
        assert (caption, draws.any().item()) == ("", False)


def test_a_batch_moves_as_a_whole(split):
    batch = load(pairs_of(split))[0]
    moved = batch.to(torch.device("meta"))
    tensors = {field.name for field in fields(batch) if isinstance(getattr(batch, field.name), torch.Tensor)}
    assert {name for name in tensors if getattr(moved, name).device.type == "meta"} == tensors
    assert moved.captions == batch.captions

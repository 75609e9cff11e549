"""Batches: their parts, and their way to a device."""

from dataclasses import fields

import pytest
import soundfile
import torch
from loading_cases import LONGEST_S, SEGMENT_S, assert_same_pairs, load, pairs_of, single_pairs

from data.loading.batch import Batch
from data.loading.clips import load_clips, load_files
from data.schema import SAMPLE_RATE_HZ
from data.sources.audio_files import FileProblems


@pytest.mark.parametrize("most", [1, 2, 3, 10])
def test_parts_of_a_batch_are_its_pairs_in_order_without_a_copy(most, split):
    for batch in load(pairs_of(split)):
        parts = batch.split(most)
        assert [len(part.captions) for part in parts[:-1]] == [most] * (len(parts) - 1)
        assert_same_pairs([pair for part in parts for pair in single_pairs(part)], single_pairs(batch))
        assert parts[0].segments.data_ptr() == batch.segments.data_ptr()


def test_a_batch_moves_as_a_whole(split):
    batch = load(pairs_of(split))[0]
    moved = batch.to(torch.device("meta"))
    assert batch.num_samples is not None
    tensors = {field.name for field in fields(batch) if isinstance(getattr(batch, field.name), torch.Tensor)}
    assert {name for name in tensors if getattr(moved, name).device.type == "meta"} == tensors
    assert moved.captions == batch.captions


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on a machine with one core
@pytest.mark.parametrize("loader_workers", [0, 2])
def test_a_batch_counts_the_samples_of_each_segment_that_are_the_clips(loader_workers, split):
    """Noise has no zero, and padding is zero. Loader processes pass the counts on; a part has those of its segments."""
    for batch in load(pairs_of(split), loader_workers=loader_workers):
        assert batch.num_samples.tolist() == count_until_padding(batch.segments)
        for part in batch.split(1):
            assert part.num_samples.tolist() == count_until_padding(part.segments)


def test_clips_and_files_for_embedding_are_counted_too(split, noise, tmp_path):
    lengths = [0.2, 1.0, 1.3]
    paths = [tmp_path / f"{length}.wav" for length in lengths]
    for path, length in zip(paths, lengths, strict=True):
        soundfile.write(path, noise(length), SAMPLE_RATE_HZ, subtype="FLOAT")
    files = load_files(paths, SEGMENT_S, LONGEST_S, batch_size=2, problems=FileProblems())
    for batch in [*load_clips(split, SEGMENT_S, LONGEST_S, batch_size=3), *files]:
        assert batch.num_samples.tolist() == count_until_padding(batch.segments)


def test_a_batch_without_counts_has_no_padding():
    batch = Batch.without_captions(torch.ones(3, 5), [1, 2], [0, 1])
    assert batch.count_samples().tolist() == [5, 5, 5]
    assert [part.count_samples().tolist() for part in batch.split(1)] == [[5], [5, 5]]


def count_until_padding(segments):
    """The number of samples in each segment up to the last that isn't zero, give or take noise that is."""
    return [int(row.nonzero().max()) + 1 for row in segments]

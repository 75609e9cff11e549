"""The pairs of a split, an epoch of them, and the comparison of two batches pair by pair."""

import torch

from data.loading.loader import load_epoch
from data.loading.pairs import ClipCaptionDataset
from data.loading.sampler import order_epoch
from data.schema import SAMPLE_RATE_HZ

SEGMENT_S, LONGEST_S = 0.5, 1.5
SEGMENT_SAMPLES = round(SEGMENT_S * SAMPLE_RATE_HZ)
DURATIONS_S = (0.1, 0.5, 0.7, 1.0, 1.5, 2.0, 2.5)
NUM_PAIRS = 13  # with batches of 4, the last one has a single pair


def pairs_of(*splits, probability=0.0, seed=0):
    return ClipCaptionDataset(splits, SEGMENT_S, LONGEST_S, probability, seed)


def load(pairs, epoch=0, rank=0, world_size=1, loader_workers=0, first_batch=0):
    batches = order_epoch(pairs, epoch, 4)[first_batch:]
    return list(load_epoch(pairs, epoch, batches, rank, world_size, loader_workers))


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

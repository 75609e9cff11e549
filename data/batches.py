"""Shards -> batches of (clip, caption) pairs.

What a batch holds depends on the seed, the epoch and the step alone: not on ranks, on loader processes, or on where an
interrupted training went on.

Shapes: S segments, B pairs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data.captions import caption_hash, choose, normalise
from data.schema import SAMPLE_RATE_HZ
from data.shards import StoredSplit
from data.waveform import crop_start, cut_segments

MASK_DRAWS = 4
"""Uniform numbers a segment brings along for SpecAugment: width and place, in frequency and in time."""

ORDER_STREAM, SAMPLE_STREAM = 0, 1
"""Keep the order of an epoch and what is drawn for each of its samples apart."""


@dataclass(frozen=True)
class Batch:
    """Clips in segments, and a caption for each clip."""

    segments: Tensor  # [S, segment_samples] float32
    segments_per_clip: Tensor  # [B] int64
    mask_draws: Tensor  # [S, MASK_DRAWS] float32, uniform on [0, 1)
    captions: list[str]  # B, normalised
    clips: Tensor  # [B] int64; equal numbers are the same clip

    def to(self, device: torch.device) -> "Batch":
        """The same batch with its tensors on `device`."""
        move = {name: getattr(self, name).to(device, non_blocking=True) for name in TENSORS}
        return Batch(captions=self.captions, **move)


TENSORS = ("segments", "segments_per_clip", "mask_draws", "clips")


@dataclass(frozen=True)
class Sample:
    """One (clip, caption) pair."""

    segments: NDArray[np.float32]  # [segments of this clip, segment_samples]
    mask_draws: NDArray[np.float32]
    caption: str
    clip: int


def collate(samples: Sequence[Sample]) -> Batch:
    """Join samples into a batch."""
    return Batch(
        segments=torch.from_numpy(np.concatenate([sample.segments for sample in samples])),
        segments_per_clip=torch.tensor([len(sample.segments) for sample in samples]),
        mask_draws=torch.from_numpy(np.concatenate([sample.mask_draws for sample in samples])),
        captions=[sample.caption for sample in samples],
        clips=torch.tensor([sample.clip for sample in samples]),
    )


class Pairs(Dataset[Sample]):
    """Every (clip, caption) pair of the splits, in the order of splits, clip ids and captions.

    An item is asked for by (epoch, pair), so that its crop and its paraphrase don't depend on who asks or when. With
    `paraphrase_probability` 0 the tables of paraphrases aren't opened; else each split needs one (UserError), and a
    caption that it lacks stands for itself.
    """

    def __init__(
        self,
        splits: Sequence[StoredSplit],
        segment_s: float,
        longest_s: float,
        paraphrase_probability: float,
        seed: int,
    ) -> None:
        self.splits = splits
        self.segment_samples = round(segment_s * SAMPLE_RATE_HZ)
        self.longest_samples = round(longest_s * SAMPLE_RATE_HZ)
        self.paraphrase_probability = paraphrase_probability
        self.seed = seed
        self.clips = [(split, index) for split in splits for index in np.argsort(split.clip_ids).tolist()]
        self.pairs = [
            (clip, caption) for clip, (split, index) in enumerate(self.clips) for caption in split.captions[index]
        ]
        self.paraphrases = (
            {key: variants for split in splits for key, variants in split.paraphrases().items()}
            if paraphrase_probability > 0
            else {}
        )

    def __len__(self) -> int:
        """The number of pairs."""
        return len(self.pairs)

    def __getitem__(self, epoch_and_pair: tuple[int, int]) -> Sample:
        """The pair as this epoch sees it."""
        epoch, pair = epoch_and_pair
        clip, caption = self.pairs[pair]
        split, index = self.clips[clip]
        rng = np.random.default_rng([self.seed, SAMPLE_STREAM, epoch, pair])
        crop_draw, swap_draw, variant_draw = rng.random(3)
        num_samples = split.num_samples[index]
        start = crop_start(num_samples, self.longest_samples, crop_draw)
        samples = split.window(index, start, min(num_samples, self.longest_samples))
        segments = cut_segments(samples, self.segment_samples)
        variants = self.paraphrases.get((split.clip_ids[index], caption_hash(caption)), [])
        text = choose(caption, variants, self.paraphrase_probability, swap_draw, variant_draw)
        mask_draws = rng.random((len(segments), MASK_DRAWS), dtype=np.float32)
        return Sample(segments, mask_draws, normalise(text), clip)

    def epoch_batches(self, epoch: int, batch_size: int) -> list[NDArray[np.int64]]:
        """The pairs of each global batch of an epoch: every pair once; the last batch may be smaller."""
        order = np.random.default_rng([self.seed, ORDER_STREAM, epoch]).permutation(len(self.pairs))
        return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]

    def load_epoch(
        self, epoch: int, batch_size: int, rank: int, world_size: int, loader_workers: int
    ) -> Iterator[Batch]:
        """This rank's share of each global batch of an epoch.

        A rank that a small last batch leaves without a pair gets a copy of the batch's first one, so that it can take
        part in the step; `share_sizes` says how many of its pairs count.
        """
        shares = [share_of(batch, rank, world_size) for batch in self.epoch_batches(epoch, batch_size)]
        keys = [[(epoch, int(pair)) for pair in pairs] for pairs in shares]
        return iter(DataLoader(self, batch_sampler=keys, collate_fn=collate, num_workers=loader_workers))


def share_of(batch: NDArray[np.int64], rank: int, world_size: int) -> NDArray[np.int64]:
    """The pairs of a global batch that a rank computes; where none is left for it, a copy of the first one."""
    return batch[rank::world_size] if rank < len(batch) else batch[:1]


def share_sizes(batch_size: int, world_size: int) -> list[int]:
    """How many of each rank's pairs count in a global batch of `batch_size` pairs."""
    return [len(range(rank, batch_size, world_size)) for rank in range(world_size)]


def load_clips(split: StoredSplit, segment_s: float, longest_s: float, batch_size: int) -> Iterator[Batch]:
    """A split's clips in their order, without captions, each cut to its first `longest_s`: for embedding."""
    segment_samples, longest_samples = round(segment_s * SAMPLE_RATE_HZ), round(longest_s * SAMPLE_RATE_HZ)
    for first in range(0, len(split.clip_ids), batch_size):
        samples = []
        for index in range(first, min(first + batch_size, len(split.clip_ids))):
            window = split.window(index, 0, min(split.num_samples[index], longest_samples))
            segments = cut_segments(window, segment_samples)
            samples.append(Sample(segments, np.zeros((len(segments), MASK_DRAWS), np.float32), "", index))
        yield collate(samples)

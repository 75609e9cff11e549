"""Batch of clips and captions, and decoding of clips into its segments.

Shapes: S segments, B pairs, W an encoder's width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.store.stored_split import StoredSplit

NUM_MASK_DRAWS = 4
"""Uniform numbers per segment for SpecAugment: width and position of the masks in frequency and in time."""

TENSOR_FIELDS = (
    "segments", "segments_per_clip", "mask_draws", "clips", "num_samples", "audio_features", "text_features"
)  # fmt: skip


@dataclass(frozen=True)
class Batch:
    """Batch of pairs: clips cut into segments, and a caption for each clip."""

    segments: Tensor  # [S, segment_samples] float32
    segments_per_clip: Tensor  # [B] int64
    mask_draws: Tensor  # [S, NUM_MASK_DRAWS] float32, uniform on [0, 1)
    captions: list[str]  # [B], normalised
    clips: Tensor  # [B] int64; equal numbers are the same clip
    num_samples: Tensor | None = None  # [S] int64, samples of the clip in each segment; None: segments aren't padded
    audio_features: Tensor | None = None  # [S, W], outputs of a frozen audio encoder, in place of the samples
    text_features: Tensor | None = None  # [B, W], outputs of a frozen text encoder for the captions

    @classmethod
    def without_captions(
        cls, segments: Tensor, sizes: Sequence[int], clips: Sequence[int], num_samples: Tensor | None = None
    ) -> Self:
        """Return a batch for embedding clips, with empty captions. `sizes` has the number of segments of each clip,
        `clips` the index of each clip in its split or list of files, and `num_samples` the number of the clip's samples
        in each segment, which zeros follow; None means that no segment is padded with zeros.
        """
        draws = torch.zeros(len(segments), NUM_MASK_DRAWS)
        return cls(segments, torch.tensor(sizes), draws, [""] * len(clips), torch.tensor(clips), num_samples)

    def count_samples(self) -> Tensor:
        """Return the number of samples of each segment that are the clip's [S], int64; zeros fill the rest."""
        if self.num_samples is not None:
            return self.num_samples
        return torch.full((len(self.segments),), self.segments.shape[1], device=self.segments.device)

    def to(self, device: torch.device) -> "Batch":
        """Return the same batch with its tensors on `device`."""
        tensors = {name: tensor for name in TENSOR_FIELDS if (tensor := getattr(self, name)) is not None}
        moved = {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}
        return Batch(captions=self.captions, **moved)

    def split(self, max_pairs: int) -> list["Batch"]:
        """Return the batch as consecutive smaller ones of at most `max_pairs` pairs each. Their tensors share
        the memory of this batch.
        """
        sizes = self.segments_per_clip.split(max_pairs)
        segments = [int(part.sum()) for part in sizes]
        captions = [self.captions[first : first + max_pairs] for first in range(0, len(self.captions), max_pairs)]
        draws, clips = self.mask_draws.split(segments), self.clips.split(max_pairs)
        num_samples = self.count_samples().split(segments)
        none = [None] * len(sizes)
        audio = none if self.audio_features is None else self.audio_features.split(segments)
        text = none if self.text_features is None else self.text_features.split(max_pairs)
        parts = zip(self.segments.split(segments), sizes, draws, captions, clips, num_samples, audio, text, strict=True)
        return [Batch(*part) for part in parts]


def count_samples_by_segment(counts: Sequence[int], sizes: Sequence[int], segment_samples: int) -> Tensor:
    """Return how many samples of each segment are a clip's [S], int64. `counts` are the numbers of samples of the
    clips, and `sizes` their numbers of segments. There is at least one sample in each.

    Example:
        >>> count_samples_by_segment(counts=[25, 7], sizes=[3, 1], segment_samples=10).tolist()
        [10, 10, 5, 7]
    """
    rests = [
        max(1, min(segment_samples, count - segment * segment_samples))
        for count, size in zip(counts, sizes, strict=True)
        for segment in range(size)
    ]
    return torch.tensor(rests, dtype=torch.int64)


def fill_segments(split: StoredSplit, clip: int, start: int, count: int, segments: NDArray[np.float32]) -> None:
    """Decode `count` samples of the split's clip with the index `clip`, from sample `start` on, into `segments`
    [num_segments, segment_samples], one segment after the other, and set the rest to zero.

    Samples for which `segments` has no space aren't decoded.
    """
    flat = segments.reshape(-1)
    num_decoded = min(count, len(flat))
    split.decode_window(clip, start, flat[:num_decoded])
    flat[num_decoded:] = 0

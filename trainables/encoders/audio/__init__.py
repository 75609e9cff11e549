"""Audio encoders: each maps segments of audio to one vector per segment.

`trainables.networks.audio` has a module for each family. Its `build(config, weights)` returns an encoder with initial
weights; published ones are read from the directory `weights`, or downloaded without a directory. `restore(config)`
returns an encoder whose weights are loaded later. An encoder that needs more files for that has a method
`save_extractor(folder)`, which writes them beside a model's weights, and its family's function is
`restore(config, folder)`. Both return an `nn.Module` that is an `AudioEncoder`. A family's
`flops(config)` returns the floating-point operations of one segment's forward pass in training, for estimates, or None
if they are unknown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


@runtime_checkable
class AudioConfig(Protocol):
    """Interface that the Config of every audio encoder has; training, reports and submissions rely on it."""

    def __hash__(self) -> int:
        """Return a hash of the fields, so that a Config can be the key of a dictionary."""

    @property
    def segment_s(self) -> float:
        """Length of a segment in seconds."""

    @property
    def augmentations(self) -> tuple[str, ...]:
        """Names of the augmentations used in training, such as 'SpecAugment' and 'patchout', for reports."""

    @property
    def patch_overlap(self) -> tuple[int, int] | None:
        """Overlap of neighbouring spectrogram patches as (mel bands, frames); None for an encoder without patches."""

    @property
    def is_published(self) -> bool:
        """Whether training starts from published weights."""


class AudioEncoder(Protocol):
    """Interface that the dual encoder expects of an audio encoder's network."""

    width: int

    @property
    def blocks(self) -> list[nn.Module]:
        """Layers that account for nearly all compute time; activation checkpointing and torch.compile apply to each of
        them.
        """

    def __call__(
        self, segments_SN: Tensor, mask_draws: Tensor, generator: torch.Generator, **optional: Tensor
    ) -> Tensor:
        """Return the embeddings [S, width] of S segments of N samples. `mask_draws` and `generator` are the random
        numbers and the generator for augmentation in training.

        `mask_draws` [S, data.loading.batch.NUM_MASK_DRAWS] are uniform numbers for SpecAugment; `generator` draws
        the jitter and the dropped patches that a global batch shares. Both are used in training only.

        An encoder with the attribute `reads_num_samples = True` has a further parameter `num_samples_S` [S], int64:
        the first samples of a segment, 1 to N, are the recording's, and zeros fill the rest.
        """

"""Audio encoders: segments of audio -> one vector each.

`trainables.networks.audio` has a module for each family: its `build(config, weights)` makes an encoder with its initial
weights, published ones from the directory `weights` or downloaded; `restore(config)` makes one whose weights are loaded
later. Both return an `nn.Module` that is an `AudioEncoder`.
`Config.segment_s` says how long a segment is. `flops(config)` gives the floating-point operations of one segment's
forward pass in training, for estimates; None where they aren't known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


@runtime_checkable
class AudioConfig(Protocol):
    """What training, reports and submissions ask of an audio encoder's Config."""

    def __hash__(self) -> int:
        """Configs are frozen."""

    @property
    def segment_s(self) -> float:
        """How long a segment is."""

    @property
    def augmentations(self) -> tuple[str, ...]:
        """What the encoder varies in training, in words: 'SpecAugment', 'patchout' ..."""

    @property
    def patch_overlap(self) -> tuple[int, int] | None:
        """How much patches of a spectrogram overlap, in mel bands and frames; None where there are no patches."""

    @property
    def is_published(self) -> bool:
        """Whether it starts from published weights."""


class AudioEncoder(Protocol):
    """What the dual encoder asks of an audio encoder."""

    width: int

    @property
    def blocks(self) -> list[nn.Module]:
        """The layers in which nearly all of the time goes."""

    def __call__(self, segments_SN: Tensor, mask_draws: Tensor, generator: torch.Generator) -> Tensor:
        """S segments of N samples -> [S, width].

        `mask_draws` [S, data.loading.batch.MASK_DRAWS] are for SpecAugment; `generator` draws what one global batch
        shares (jitter, dropped patches). Both matter in training only.
        """

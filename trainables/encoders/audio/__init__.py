"""Audio encoders: segments of audio -> one vector each.

`trainables.networks.audio` has a module for each family: its `build(config, weights)` makes an encoder with its initial
weights, published ones from the directory `weights` or downloaded; `restore(config)` makes one whose weights are loaded
later. Both return an `nn.Module` that is an `AudioEncoder`.
`Config.segment_s` says how long a segment is. `flops(config)` gives the floating-point operations of one segment's
forward pass in training, for estimates; None where they aren't known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class AudioEncoder(Protocol):
    """What the dual encoder asks of an audio encoder."""

    width: int

    @property
    def blocks(self) -> list[nn.Module]:
        """The layers in which nearly all of the time goes."""

    def __call__(self, segments_SN: Tensor, mask_draws: Tensor, generator: torch.Generator) -> Tensor:
        """S segments of N samples -> [S, width].

        `mask_draws` [S, data.loading.batches.MASK_DRAWS] are for SpecAugment; `generator` draws what one global batch
        shares (jitter, dropped patches). Both matter in training only.
        """

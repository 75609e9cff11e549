"""Text encoders: normalised captions -> one vector each.

`trainables.networks.text` has a module for each family: its `build(config, captions, weights)` makes an encoder with
its initial weights, published ones from the directory `weights` or downloaded; `restore(config, folder)` makes one of
the same shape from what `save_tokenizer(folder)` left there. Both return an `nn.Module` that is a `TextEncoder`.
`flops(config, num_tokens)` gives the floating-point operations of a forward pass of one caption that is padded to so
many tokens, for estimates; None where they aren't known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


@dataclass(frozen=True)
class Tokens:
    """Captions as a model reads them: both [B, longest caption of the batch], int64."""

    ids: Tensor
    mask: Tensor  # 1 for a token, 0 for padding

    def to(self, device: torch.device) -> Tokens:
        """The same tokens on `device`."""
        return Tokens(self.ids.to(device), self.mask.to(device))


@runtime_checkable
class TextConfig(Protocol):
    """What training, reports and submissions ask of a text encoder's Config."""

    def __hash__(self) -> int:
        """Configs are frozen."""

    @property
    def max_tokens(self) -> int:
        """Tokens of a caption that are read, its ends included."""

    @property
    def is_published(self) -> bool:
        """Whether it starts from published weights."""


class TextEncoder(Protocol):
    """What the dual encoder asks of a text encoder."""

    width: int

    @property
    def blocks(self) -> list[nn.Module]:
        """The layers in which nearly all of the time goes."""

    def tokenize(self, captions: Sequence[str]) -> Tokens:
        """B captions as token ids."""

    def __call__(self, tokens: Tokens) -> Tensor:
        """[B, width]."""

    def save_tokenizer(self, folder: Path) -> None:
        """Write what `restore` needs."""

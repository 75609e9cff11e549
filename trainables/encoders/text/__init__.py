"""Text encoders: each maps normalised captions to one vector per caption.

`trainables.networks.text` has a module for each family. Its `build(config, captions, weights)` returns an encoder with
initial weights; published ones are read from the directory `weights`, or downloaded without a directory.
`restore(config, folder)` returns an encoder of the same shape from the files that `save_tokenizer(folder)` wrote. Both
return an `nn.Module` that is a `TextEncoder`. A family's `flops(config, num_tokens)` returns the floating-point
operations of a caption's forward pass, for estimates, or None if they are unknown.
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
    """Tokenized captions: ids and mask, both int64 [B, longest caption of the batch]."""

    ids: Tensor
    mask: Tensor  # 1 for a token, 0 for padding

    def to(self, device: torch.device) -> Tokens:
        """Return the same tokens on `device`."""
        return Tokens(self.ids.to(device), self.mask.to(device))


@runtime_checkable
class TextConfig(Protocol):
    """Interface of a text encoder's Config, as training, reports and submissions use it."""

    def __hash__(self) -> int:
        """Return the hash; configs are frozen."""

    @property
    def max_tokens(self) -> int:
        """Maximum number of tokens read per caption, including start and end tokens."""

    @property
    def is_published(self) -> bool:
        """Whether training starts from published weights."""


class TextEncoder(Protocol):
    """Interface of a text encoder's network, as the dual encoder uses it."""

    width: int

    @property
    def blocks(self) -> list[nn.Module]:
        """Layers that account for nearly all compute time."""

    def tokenize(self, captions: Sequence[str]) -> Tokens:
        """Return the tokens of B captions."""

    def __call__(self, tokens: Tokens) -> Tensor:
        """Return the embeddings [B, width] of B tokenized captions."""

    def save_tokenizer(self, folder: Path) -> None:
        """Write the files that `restore` reads."""

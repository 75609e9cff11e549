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
    """Tokenized captions: token ids and padding mask, both int64 [B, tokens of the longest caption in the batch]."""

    ids: Tensor
    mask: Tensor  # 1 for a token, 0 for padding

    def to(self, device: torch.device) -> Tokens:
        """Return the same tokens on `device`."""
        return Tokens(self.ids.to(device), self.mask.to(device))

    def split(self) -> list[Tokens]:
        """Return the tokens of each caption alone, without the padding at its end."""
        lengths = self.mask.sum(dim=1).tolist()
        return [Tokens(self.ids[row : row + 1, :length], self.mask[row : row + 1, :length])
                for row, length in enumerate(lengths)]  # fmt: skip


@runtime_checkable
class TextConfig(Protocol):
    """Interface that the Config of every text encoder has; training, reports and submissions rely on it."""

    def __hash__(self) -> int:
        """Return a hash of the fields, so that a Config can be the key of a dictionary."""

    @property
    def max_tokens(self) -> int:
        """Maximum number of tokens read per caption, including start and end tokens."""

    @property
    def is_published(self) -> bool:
        """Whether training starts from published weights."""


class TextEncoder(Protocol):
    """Interface that the dual encoder expects of a text encoder's network."""

    width: int

    @property
    def blocks(self) -> list[nn.Module]:
        """Layers that account for nearly all compute time; activation checkpointing and torch.compile apply to each of
        them.
        """

    def tokenize(self, captions: Sequence[str]) -> Tokens:
        """Return B captions as token ids, truncated to the config's `max_tokens` and padded to the longest caption."""

    def __call__(self, tokens: Tokens) -> Tensor:
        """Return the embeddings [B, width] of B tokenized captions."""

    def save_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer's files to a folder, from which the family's `restore` reads them."""

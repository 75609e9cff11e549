"""Text encoders: normalised captions -> one vector each.

`build(config, captions)` makes one with its initial weights, `restore(config, folder)` makes one of the same shape from
what `save_tokenizer(folder)` left there. Both return an `nn.Module` with `width`, `tokenize(captions) -> Tokens` and
`forward(tokens) -> [B, width]`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tokens:
    """Captions as a model reads them: both [B, longest caption of the batch], int64."""

    ids: Tensor
    mask: Tensor  # 1 for a token, 0 for padding

    def to(self, device: torch.device) -> "Tokens":
        """The same tokens on `device`."""
        return Tokens(self.ids.to(device), self.mask.to(device))

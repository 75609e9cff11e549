"""A small transformer trained from random weights, with a WordPiece vocabulary learned from the training captions.

The family needs no download. A sentence's vector is the mean plus the maximum of the last layer's outputs over its
tokens or, as in the paper's BERT, the output for the first token, which learns much slower from random weights
(docs/training.md).
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

from data.errors import UserError
from trainables.encoders import ADDED, operations

Pooling = Literal["first", "tokens"]


@dataclass(frozen=True)
class Config:
    """Shape of the transformer and size of its vocabulary."""

    width: int
    layers: int
    heads: int
    dropout: float = 0.1
    vocabulary: int = 4000  # maximum size; a small set of captions has fewer pieces
    max_tokens: int = 32
    # Output for the first token, or mean plus maximum over all tokens.
    pooling: Pooling = field(default="first", metadata=ADDED)

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise UserError(f"width is {self.width}: it must be a multiple of heads ({self.heads})")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout is {self.dropout}: it must be at least 0 and below 1")
        if self.pooling not in get_args(Pooling):
            raise UserError(f"pooling is {self.pooling!r}: it must be {' or '.join(get_args(Pooling))}")

    @property
    def is_published(self) -> bool:
        """Whether training starts from published weights: False, since the initial weights are random."""
        return False


VARIANTS = {
    "small": Config(width=192, layers=2, heads=4, pooling="tokens"),
    "shallow": Config(width=192, layers=1, heads=4, pooling="tokens"),
}
VARIANTS |= {f"{name}64": replace(config, max_tokens=64) for name, config in VARIANTS.items()}  # for joined captions


def weights_fingerprint(config: Config, weights: Path | None = None) -> str:
    """Return 'random', which stands for initial weights drawn from the trial's seed. The arguments are not used."""
    return "random"


def flops(config: Config, num_tokens: float) -> float:
    """Return the number of floating-point operations of the forward pass of a caption of `num_tokens` tokens."""
    return operations.count_transformer(min(num_tokens, config.max_tokens), config.layers, config.width)

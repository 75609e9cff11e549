"""The learning rate over a training."""

import math
from dataclasses import dataclass

from data.errors import UserError


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, cosine decay, then the final rate.

    The authors' pretraining runs 16 epochs: it warms up over [0, 1), decays over [1, 15) and ends with an epoch at the
    final rate. Their fine-tuning is assumed to have the same shape over 5 epochs.
    """

    peak_rate: float
    final_rate: float
    epochs: int
    warmup_epochs: float = 1.0
    final_epochs: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.final_rate <= self.peak_rate:
            raise UserError(f"final_rate is {self.final_rate}: it must be from 0 to peak_rate ({self.peak_rate})")
        if self.epochs < 1:
            raise UserError(f"epochs is {self.epochs}: at least 1 is needed")
        if min(self.warmup_epochs, self.final_epochs) < 0 or self.warmup_epochs + self.final_epochs > self.epochs:
            raise UserError(
                f"{self.warmup_epochs} warm-up and {self.final_epochs} final epochs don't fit into {self.epochs}: "
                f"shorten them or train longer"
            )

    def rate(self, epoch: float) -> float:
        """The learning rate after `epoch` epochs, a real number."""
        if epoch < self.warmup_epochs:
            return self.peak_rate * epoch / self.warmup_epochs
        decay_end = self.epochs - self.final_epochs
        if epoch >= decay_end:
            return self.final_rate
        progress = (epoch - self.warmup_epochs) / (decay_end - self.warmup_epochs)
        return self.final_rate + (self.peak_rate - self.final_rate) * (1 + math.cos(math.pi * progress)) / 2

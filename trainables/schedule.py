"""Learning-rate schedules: warm-up with cosine decay, and reduction on plateaus."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from data.errors import UserError


def list_cycle_ends(epochs: int, cycles: int) -> tuple[int, ...]:
    """Return the numbers of epochs after which each of several equal cycles ends, `epochs` in all; () for a single
    cycle.
    """
    length = epochs // cycles
    return tuple(range(length, epochs + 1, length)) if cycles > 1 else ()


@dataclass(frozen=True)
class Schedule:
    """Learning-rate schedule with linear warm-up, cosine decay, then a constant final rate; with several cycles, this
    schedule is repeated (warm restarts, Loshchilov and Hutter 2017).

    The pretraining of the paper's authors takes 16 epochs: the rate warms up over [0, 1) and decays over [1, 15); the
    last epoch has the final rate. Their fine-tuning is assumed to have the same shape over 5 epochs.
    """

    peak_rate: float
    final_rate: float
    epochs: int  # of all cycles together
    warmup_epochs: float = 1.0  # in each cycle
    final_epochs: float = 1.0  # in each cycle
    cycles: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.final_rate <= self.peak_rate:
            raise UserError(f"final_rate is {self.final_rate}: it must be from 0 to peak_rate ({self.peak_rate})")
        if self.epochs < 0:
            raise UserError(f"epochs is {self.epochs}: at least 0 are needed, and 1 to train")
        if self.cycles < 1 or self.epochs % self.cycles:
            raise UserError(
                f"{self.cycles} cycles don't divide {self.epochs} epochs: a cycle has the same whole number of epochs "
                "as the others; change cycles or epochs"
            )
        if min(self.warmup_epochs, self.final_epochs) < 0 or self.warmup_epochs + self.final_epochs > self.cycle_epochs:
            raise UserError(
                f"{self.warmup_epochs} warm-up and {self.final_epochs} final epochs don't fit into "
                f"{self.cycle_epochs}: lower them or raise epochs"
            )

    @property
    def cycle_epochs(self) -> int:
        """Number of epochs of a cycle."""
        return self.epochs // self.cycles

    @property
    def cycle_ends(self) -> tuple[int, ...]:
        """Number of epochs after which each cycle ends; () for a single cycle."""
        return list_cycle_ends(self.epochs, self.cycles)

    def rate(self, epoch: float, validation_losses: Sequence[float] = ()) -> float:
        """Return the learning rate after `epoch` epochs, which may be a fraction; `validation_losses` is ignored."""
        if epoch >= self.epochs:
            return self.final_rate
        epoch %= self.cycle_epochs
        if epoch < self.warmup_epochs:
            return self.peak_rate * epoch / self.warmup_epochs
        decay_end = self.cycle_epochs - self.final_epochs
        if epoch >= decay_end:
            return self.final_rate
        progress = (epoch - self.warmup_epochs) / (decay_end - self.warmup_epochs)
        return self.final_rate + (self.peak_rate - self.final_rate) * (1 + math.cos(math.pi * progress)) / 2

    def is_over(self, epoch: int, validation_losses: Sequence[float] = ()) -> bool:
        """Return whether training ends after `epoch` epochs, that is, whether all epochs are done; `validation_losses`
        is ignored.
        """
        return epoch >= self.epochs


UNTRAINED = Schedule(peak_rate=0.0, final_rate=0.0, epochs=0, warmup_epochs=0.0, final_epochs=0.0)
"""Schedule of a trial without training, which evaluates a published dual encoder."""


@dataclass(frozen=True)
class Plateau:
    """Learning-rate schedule that lowers the rate each time the validation loss stops falling, and ends training once
    the loss hardly changes.

    The rate is that of torch's ReduceLROnPlateau with `mode="min"` and `threshold_mode="abs"`, computed from all
    losses so far, so that an interrupted training resumes with the same rate and needs no further state.
    """

    peak_rate: float
    final_rate: float  # minimum rate
    epochs: int  # maximum number of epochs
    factor: float  # by which a cut multiplies the rate
    patience: int  # maximum number of epochs in a row without a better loss; one more cuts the rate
    threshold: float  # a loss is better if it is lower than the best one by more than this
    settled_std: float  # training ends when the standard deviation of the last losses is below this
    settled_epochs: int  # number of these losses
    first_end: int  # epochs before a settled loss can end training
    cycle_ends: ClassVar[tuple[int, ...]] = ()  # it has no cycles

    def __post_init__(self) -> None:
        if not 0 <= self.final_rate <= self.peak_rate:
            raise UserError(f"final_rate is {self.final_rate}: it must be from 0 to peak_rate ({self.peak_rate})")
        if not 0 < self.factor < 1:
            raise UserError(f"factor is {self.factor}: it must be above 0 and below 1")
        for name in ("patience", "threshold", "settled_std"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}: it must be 0 or more")
        for name in ("epochs", "settled_epochs", "first_end"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must be 1 or more")

    def rate(self, epoch: float, validation_losses: Sequence[float] = ()) -> float:
        """Return the learning rate of the next epoch, given the validation loss of each epoch so far
        (`validation_losses`). `epoch` is ignored, since the rate is constant within an epoch.
        """
        rate, best, epochs_without = self.peak_rate, math.inf, 0
        for loss in validation_losses:
            if loss < best - self.threshold:
                best, epochs_without = loss, 0
            else:
                epochs_without += 1
            if epochs_without > self.patience:
                rate, epochs_without = max(rate * self.factor, self.final_rate), 0
        return rate

    def is_over(self, epoch: int, validation_losses: Sequence[float] = ()) -> bool:
        """Return whether training ends after `epoch` epochs: at the maximum number, or because the last losses hardly
        differ. `validation_losses` has the loss of each epoch so far.
        """
        if epoch < max(self.first_end, self.settled_epochs):
            return epoch >= self.epochs
        spread = np.std(validation_losses[-self.settled_epochs :])
        return epoch >= self.epochs or bool(spread < self.settled_std)

"""Execution settings of a training, which change its cost but not its result."""

from dataclasses import dataclass

from data.errors import UserError


@dataclass(frozen=True)
class Execution:
    """Execution settings of a training; they are not part of a trial.

    They don't change what is computed, with two exceptions, which also depend on the number of ranks: the order in
    which numbers are added, and the units that dropout drops.
    """

    loader_workers: int = 0  # processes that load batches, for each rank; 0: the training process loads them
    micro_batch: int | None = None  # pairs of a rank whose activations are held at a time; None: all of them
    checkpoint_activations: bool = False  # recompute each block's activations in the backward pass
    compile: bool = False  # compile each block with torch.compile
    checkpoint_every_s: float = 900.0  # between checkpoints within an epoch; each epoch ends with one, too

    def __post_init__(self) -> None:
        if self.micro_batch is not None and self.micro_batch < 1:
            raise UserError(f"micro_batch is {self.micro_batch}: it must be at least 1, or None for all pairs at once")
        if self.checkpoint_every_s < 0:
            raise UserError(f"checkpoint_every_s is {self.checkpoint_every_s}: it must be 0 or more")


DEFAULT = Execution()

"""Execution settings of a training, which change its cost but not its result."""

from dataclasses import dataclass

from data.errors import UserError


@dataclass(frozen=True)
class Execution:
    """Execution settings of a training; they are not part of a trial.

    What is computed stays the same, but for the order in which numbers are added and, as with the number of ranks, for
    which units dropout drops.
    """

    loader_workers: int = 0  # processes that load batches, for each rank; 0: the training process loads them
    micro_batch: int | None = None  # pairs of a rank whose activations are held at a time; None: all of them
    checkpoint_activations: bool = False  # compute the activations of each block again in the backward pass
    compile: bool = False  # compile each block with torch.compile
    checkpoint_every_s: float = 900.0  # between checkpoints in the midst of an epoch; one is written after each, too

    def __post_init__(self) -> None:
        if self.micro_batch is not None and self.micro_batch < 1:
            raise UserError(f"micro_batch is {self.micro_batch}: it must be at least 1, or left out")
        if self.checkpoint_every_s < 0:
            raise UserError(f"checkpoint_every_s is {self.checkpoint_every_s}: it must be 0 or more")


DEFAULT = Execution()

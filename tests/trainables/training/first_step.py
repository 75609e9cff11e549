"""The gradients of a training's first step."""

import pytest
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from trainables.training.compute import DEFAULT, Execution
from trainables.training.train import Callbacks, TrainingStart, train
from trainables.trial import Trial


class EnoughError(Exception):
    """Ends a training before its first update."""


def compute_first_gradients(trial: Trial, store, start: TrainingStart, execution: Execution = DEFAULT) -> list[Tensor]:
    """What the optimizer is given in a training's first step; the training ends with it."""
    gradients = []

    def note(optimizer, *_):
        gradients.extend(parameter.grad.clone() for parameter in optimizer.param_groups[0]["params"])
        raise EnoughError

    hook = register_optimizer_step_pre_hook(note)
    with pytest.raises(EnoughError):
        train(trial, store, Callbacks(lambda *_: None), start, execution=execution)
    hook.remove()
    return gradients

"""Checkpoints: models that load anywhere, and the state that an interrupted training resumes from.

    FOLDER/trial.json              the config
    FOLDER/model.safetensors       the weights
    FOLDER/tokenizer.json etc.     tokenizer of the text encoder
    FOLDER/audio_config.json etc.  shape and feature extractor of an audio encoder that has such files

A checkpoint of an unfinished training contains, in addition:

    FOLDER/optimizer.safetensors   Adam's moments
    FOLDER/best.safetensors        the weights of the best epoch so far, if they differ from model.safetensors
    FOLDER/progress.json           steps, epochs, losses and metrics so far
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dacite
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from data.errors import UserError
from data.sources.json_text import parse_json
from data.store.files import write_json
from data.store.scratch import create_scratch_folder
from trainables import trial as trials
from trainables.networks.dual_encoder import DualEncoder, restore
from trainables.records.timing import Metrics
from trainables.trial import MODEL_FILE, TRIAL_FILE, Trial, load_trial

OPTIMIZER_FILE = "optimizer.safetensors"
BEST_FILE = "best.safetensors"
PROGRESS_FILE = "progress.json"

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""Keys of Adam's state of a parameter."""

REMEDY = "to train again from the start, remove the trial's checkpoints (trials/SIGNATURE-* in the run storage)"
"""End of the errors about a damaged checkpoint of an unfinished training."""

Weights = dict[str, Tensor]


@dataclass
class TrainingProgress:
    """Progress of a training: its steps, epochs, losses and best epoch."""

    epochs_done: int = 0
    batches_done: int = 0  # batches done in the current epoch
    loss_sum: float = 0.0  # sum of the losses of these batches
    steps_done: int = 0
    best_epoch: int = 0  # from 1; 0: no epoch is finished
    best_map10: float = -1.0
    validation_losses: tuple[float, ...] = ()  # validation loss of each epoch
    history: tuple[Metrics, ...] = ()  # metrics of each epoch; only rank 0 has them

    def __post_init__(self) -> None:
        self.validation_losses = tuple(self.validation_losses)  # JSON has lists instead of tuples
        self.history = tuple(self.history)


@contextlib.contextmanager
def refuse_damage(what: str, remedy: str) -> Iterator[None]:
    """Raise UserError for each error in the `with` block, other than a UserError or a lack of GPU memory: `what` can't
    be loaded, the reason, and the `remedy`.
    """
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # what a damaged file raises depends on the parser: JSON, safetensors, tokenizer
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{what} can't be loaded: {reason}; {remedy}") from error


def copy_weights(model: DualEncoder) -> Weights:
    """Return a copy of the model's weights in host memory, by name."""
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in model.state_dict().items()}


def save_model(folder: Path, trial: Trial, model: DualEncoder, weights: Weights) -> None:
    """Write a `model` to a folder, which is created if it doesn't exist: its `weights`, the config of its trial, its
    tokenizer and its feature extractor, if it has one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.save_inputs(folder)
    save_weights(folder, trial, weights)


def save_weights(folder: Path, trial: Trial, weights: Weights) -> None:
    """Write a model's weights and the config of its trial to an existing folder, without the tokenizer."""
    save_file(weights, folder / MODEL_FILE)
    write_json(folder / TRIAL_FILE, trials.to_json(trial))


def load_model(folder: Path, trial: Trial | None = None) -> DualEncoder:
    """Return the model in a folder, on the CPU. Its config is the one in the folder or, if `trial` is given, that
    trial, which must have the same encoders.

    Raises UserError if a file of the model is missing or damaged, or doesn't fit the config.
    """
    with refuse_damage(f"the model in {folder}", "copy or export it again, or train it again"):
        model = restore(trial or load_trial(folder), folder)
        model.load_state_dict(model.convert_temperature(load_file(folder / MODEL_FILE)))
        return model


@dataclass(frozen=True)
class Snapshot:
    """Copy of a training's state, from which a checkpoint can be written while training continues."""

    trial: Trial
    inputs: dict[str, bytes]  # files of the tokenizer and of the feature extractor, by name
    weights: Weights
    moments: Weights  # Adam's state, by 'parameter/key'
    progress: TrainingProgress
    best: Weights  # weights of the best epoch; empty before the first one

    def write(self, folder: Path) -> None:
        """Write the state to a folder as a checkpoint, which `load_training` reads."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, contents in self.inputs.items():
            (folder / name).write_bytes(contents)
        save_weights(folder, self.trial, self.weights)
        if self.best and (self.progress.best_epoch != self.progress.epochs_done or self.progress.batches_done):
            save_file(self.best, folder / BEST_FILE)
        save_file(self.moments, folder / OPTIMIZER_FILE)
        write_json(folder / PROGRESS_FILE, dataclasses.asdict(self.progress))


def take_snapshot(
    trial: Trial, model: DualEncoder, optimizer: torch.optim.Optimizer, progress: TrainingProgress, best: Weights
) -> Snapshot:
    """Return a copy of the state of a training: the model's weights, its tokenizer, the optimizer's state and the
    progress. `best`, the weights of the best epoch, isn't copied, since training never changes it in place.
    """
    moments = {
        f"{name}/{key}": tensor.detach().cpu().clone()
        for name, parameter in model.named_parameters()
        for key, tensor in optimizer.state.get(parameter, {}).items()
    }
    with create_scratch_folder() as folder:  # a tokenizer cannot be saved while it is in use
        model.save_inputs(folder)
        inputs = {path.name: path.read_bytes() for path in folder.iterdir()}
    return Snapshot(trial, inputs, copy_weights(model), moments, dataclasses.replace(progress), best)


def load_progress(folder: Path) -> TrainingProgress:
    """Return the training's progress at the checkpoint in a folder. Raises UserError if its file is damaged."""
    path = folder / PROGRESS_FILE
    with refuse_damage(str(path), REMEDY):
        content = parse_json(path.read_text(encoding="utf-8"))
        progress = dacite.from_dict(TrainingProgress, content, dacite.Config(strict=True, cast=[tuple]))
        if not all("epoch" in metrics for metrics in progress.history):
            raise ValueError("an epoch in its history has no number")
        return progress


def load_training(
    folder: Path, model: DualEncoder, optimizer: torch.optim.Optimizer
) -> tuple[TrainingProgress, Weights]:
    """Restore model and optimizer in place from the checkpoint in a folder. Return the training's progress, and the
    weights of the best epoch by name, {} before the first epoch has ended.

    Raises UserError if a file of the checkpoint is missing or damaged, or doesn't fit the model.
    """
    progress, best_path = load_progress(folder), folder / BEST_FILE
    with refuse_damage(f"the checkpoint in {folder}", REMEDY):
        weights = load_file(folder / MODEL_FILE)
        best = load_file(best_path) if best_path.exists() else weights if progress.best_epoch else {}
        if best:
            model.load_state_dict(best)  # refuses those of another model now, not at the end of training
        model.load_state_dict(weights)
        moments = load_moments(folder / OPTIMIZER_FILE, model, optimizer)
        optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
    return progress, best


def load_moments(path: Path, model: DualEncoder, optimizer: torch.optim.Optimizer) -> dict[int, Weights]:
    """Return Adam's state of the model's trained parameters, by their index in the optimizer's groups, from a file of a
    checkpoint; that of a parameter is empty before its first gradient. Raises ValueError if the file is another
    model's.
    """
    state = load_file(path)
    parameters = itertools.chain.from_iterable(group["params"] for group in optimizer.param_groups)
    index_of = {id(parameter): index for index, parameter in enumerate(parameters)}
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    moments = {}
    for name, parameter in trained.items():
        tensors = {key: state.pop(f"{name}/{key}") for key in MOMENTS if f"{name}/{key}" in state}
        expected = {key: torch.Size() if key == "step" else parameter.shape for key in MOMENTS}
        if tensors and {key: tensor.shape for key, tensor in tensors.items()} != expected:
            raise ValueError(f"{path.name}: the state of {name!r} is incomplete or misshapen")
        moments[index_of[id(parameter)]] = tensors
    if state:
        raise ValueError(f"{path.name}: the state {min(state)!r} belongs to no parameter")
    return moments

"""What a training leaves on disk: models that load anywhere, and the state that an interrupted one goes on from.

    FOLDER/trial.json              the config
    FOLDER/model.safetensors       the weights
    FOLDER/tokenizer.json, ...     what the text encoder needs to read sentences

and besides, in a checkpoint of a training that is under way:

    FOLDER/optimizer.safetensors   Adam's moments
    FOLDER/best.safetensors        the weights of the best epoch so far, where that isn't the last one
    FOLDER/progress.json           how far it has come
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from data.errors import UserError
from data.shards import write_json
from trainables import trial as trials
from trainables.model import DualEncoder, restore
from trainables.trial import Trial

TRIAL_FILE = "trial.json"
MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
BEST_FILE = "best.safetensors"
PROGRESS_FILE = "progress.json"

Weights = dict[str, Tensor]


@dataclass
class Progress:
    """How far a training has come."""

    epochs_done: int = 0
    steps_done: int = 0
    best_epoch: int = 0  # from 1; 0: none yet
    best_map10: float = -1.0


def weights_of(model: DualEncoder) -> Weights:
    """A copy of the model's weights in this machine's memory."""
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in model.state_dict().items()}


def save_model(folder: Path, trial: Trial, model: DualEncoder, weights: Weights) -> None:
    """Write a model: `weights` with the shape and tokenizer of `model`."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / MODEL_FILE)
    model.text.save_tokenizer(folder)
    write_json(folder / TRIAL_FILE, trials.to_json(trial))


def load_trial(folder: Path) -> Trial:
    """The config beside a model. Raises UserError where there is none."""
    try:
        return trials.from_json(json.loads((folder / TRIAL_FILE).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"{folder} holds no trained model ({TRIAL_FILE} is absent)") from None


def load_model(folder: Path) -> DualEncoder:
    """The model in a folder, on the CPU."""
    model = restore(load_trial(folder), folder)
    model.load_state_dict(load_file(folder / MODEL_FILE))
    return model


def save_training(
    folder: Path, trial: Trial, model: DualEncoder, optimizer: torch.optim.Optimizer, progress: Progress, best: Weights
) -> None:
    """Write a checkpoint that `load_training` goes on from."""
    save_model(folder, trial, model, weights_of(model))
    if progress.best_epoch != progress.epochs_done:
        save_file(best, folder / BEST_FILE)
    moments = {
        f"{name}/{key}": tensor
        for name, parameter in model.named_parameters()
        for key, tensor in optimizer.state.get(parameter, {}).items()
    }
    save_file(moments, folder / OPTIMIZER_FILE)
    write_json(folder / PROGRESS_FILE, dataclasses.asdict(progress))


def load_training(folder: Path, model: DualEncoder, optimizer: torch.optim.Optimizer) -> tuple[Progress, Weights]:
    """Set model and optimizer to where a training was; its progress and the best epoch's weights are returned."""
    weights = load_file(folder / MODEL_FILE)
    model.load_state_dict(weights)
    state = load_file(folder / OPTIMIZER_FILE)
    moments = {
        index: {key.rpartition("/")[2]: tensor for key, tensor in state.items() if key.rpartition("/")[0] == name}
        for index, (name, _) in enumerate(model.named_parameters())
    }
    optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
    progress = Progress(**json.loads((folder / PROGRESS_FILE).read_text(encoding="utf-8")))
    best = folder / BEST_FILE
    return progress, load_file(best) if best.exists() else weights

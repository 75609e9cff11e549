"""Model soups: the mean of the weights of several models (Wortsman et al. 2022)."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from data.store.stored_split import StoredSplit
from trainables.networks.dual_encoder import DualEncoder
from trainables.records import checkpoint
from trainables.records.checkpoint import Snapshot, TrainingProgress, Weights
from trainables.training.train import Callbacks, validate
from trainables.trial import Trial


def evaluate_once(trial: Trial, network: DualEncoder, validation: StoredSplit, callbacks: Callbacks) -> None:
    """Evaluate the model of a trial without training on the validation split, on rank 0, and call `callbacks` as after
    the only epoch of a training.
    """
    rank = dist.get_rank() if dist.is_initialized() else 0
    if rank != 0:
        callbacks.on_checkpoint({}, None)
        return
    metrics = validate(network, trial, validation, 0, callbacks.on_embeddings)
    metrics |= {
        "epoch": 1,
        "epochs": 1,
        "best_epoch": 1,
        "best_map10": metrics["map10"],
        "temperature": float(network.temperature.detach()),
    }
    progress = TrainingProgress(1, best_epoch=1, best_map10=metrics["map10"], history=(dict(metrics),))
    callbacks.on_checkpoint(metrics, take_snapshot(trial, network, progress))


def load_average(folders: Sequence[Path], trial: Trial) -> DualEncoder:
    """Return the model, on the CPU, whose weights are the mean of those of the models in `folders`. `trial` is its
    config: that of a soup or, for a single folder, that of the model. Statistics of batch normalisation are averaged
    like weights, not computed again.
    """
    network = checkpoint.load_model(folders[0], trial)
    if len(folders) > 1:
        network.load_state_dict(compute_mean(load_weights(folder, trial) for folder in folders))
    return network


def take_snapshot(trial: Trial, network: DualEncoder, progress: TrainingProgress) -> Snapshot:
    """Return a checkpoint's content for a model, `network`, which no optimizer has trained."""
    optimizer = torch.optim.Adam(network.parameters())
    return checkpoint.take_snapshot(trial, network, optimizer, progress, {})


def load_weights(folder: Path, trial: Trial) -> Weights:
    """Return the weights, by name, of a model in a folder that has the encoders of `trial`."""
    return checkpoint.copy_weights(checkpoint.load_model(folder, trial))


def compute_mean(models: Iterable[Weights]) -> Weights:
    """Return the mean of the weights of models, by name, summed in float64 so that their order hardly matters. Tensors
    of integers are those of the first model.
    """
    remaining = iter(models)
    first, count = next(remaining), 1
    sums = {name: tensor.double() for name, tensor in first.items() if tensor.is_floating_point()}
    for weights in remaining:
        count += 1
        for name, total in sums.items():
            total += weights[name]
    return first | {name: (total / count).to(first[name].dtype) for name, total in sums.items()}

"""The training loop, for pretraining and fine-tuning alike, on one rank or many.

Nothing here knows of Ray: `report` is what the caller wants to be told after each epoch, `watch` after each step.
"""

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from data.captions import normalise
from data.errors import UserError
from data.leakage.exclusions import excluded
from data.loading.batch import MASK_DRAWS, Batch
from data.loading.loader import load_epoch
from data.loading.pairs import ClipCaptionDataset
from data.loading.sampler import order_epoch, split_among_ranks
from data.schema import SAMPLE_RATE_HZ
from data.store.storage import Location
from data.store.stored_split import StoredSplit, open_split
from trainables import retrieval
from trainables.networks import dual_encoder
from trainables.networks.dual_encoder import DualEncoder
from trainables.records import checkpoint
from trainables.records.checkpoint import Progress, Snapshot, Weights
from trainables.records.embeddings import Embeddings
from trainables.records.timing import Clock, Metrics, Step, from_rank_0, reset_peak_memory
from trainables.training import gradient_cache
from trainables.training.compute import DEFAULT, Execution
from trainables.training.embedding import embed
from trainables.training.gradient_cache import Outputs
from trainables.training.loss import gather, nt_xent
from trainables.trial import Trial

Report = Callable[[Metrics, Snapshot | None], None]
"""Takes an epoch's metrics, or none in the midst of one, and what a checkpoint holds. Every rank calls it, only rank 0
with either."""

Keep = Callable[[int, Embeddings], None]
"""Takes an epoch's number, from 1, and its embeddings of the validation split; only rank 0 calls it."""


class OutOfMemoryError(UserError):
    """A rank has no memory left."""


Watch = Callable[[Step], None]
"""Is told of every step."""


def train(
    trial: Trial,
    store: Location,
    report: Report,
    pretrained: Path | None = None,
    resume_from: Path | None = None,
    device: torch.device | None = None,
    execution: Execution = DEFAULT,
    weights: Path | None = None,
    watch: Watch = lambda step: None,
    keep: Keep = lambda epoch, embeddings: None,
) -> DualEncoder:
    """Train a trial to its end; the model of the best epoch by validation mAP@10, or of its final one, is returned.

    `pretrained` is the folder of the model that a fine-tuning starts from, `resume_from` a checkpoint of this very
    training, `weights` a folder of published checkpoints; `watch` and `keep` are told of steps and epochs. With several
    ranks every rank calls this; each computes its share of every batch. Raises UserError for a loss that isn't finite,
    and where memory runs out.
    """
    if trial.pretraining and not (pretrained or resume_from):
        raise ValueError("a fine-tuning needs the folder of its pretrained model")
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    device = device or torch.device("cpu")
    pairs = open_pairs(trial, store)
    validation = open_split(store, trial.validation)

    network = initial_model(trial, resume_from or pretrained, pairs, weights).to(device)
    prepare(network, device, execution)
    refuse_shared_statistics(network.train(), world_size, execution)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, fused=device.type == "cuda")
    progress, best = Progress(), Weights()
    if resume_from:
        progress, best = checkpoint.load_training(resume_from, network, optimizer)
    distributed = on_several_ranks(network, trial, device) if world_size > 1 else network
    reset_peak_memory(device)
    clock = Clock(execution.checkpoint_every_s, device)

    while not trial.is_over(progress.epochs_done, progress.validation_losses):
        epoch = progress.epochs_done
        network.train()
        batches = order_epoch(pairs, epoch, trial.batch_size)
        remaining = batches[progress.batches_done :]
        loader = load_epoch(pairs, epoch, remaining, rank, world_size, execution.loader_workers)
        for pair_numbers, own in zip(remaining, clock.waiting_for(loader), strict=True):
            rate = trial.schedule.rate(epoch + progress.batches_done / len(batches), progress.validation_losses)
            set_rate(optimizer, rate)
            counts = [len(share) for share in split_among_ranks(pairs, pair_numbers, world_size)]
            optimizer.zero_grad(set_to_none=True)
            loss = backward(trial, distributed, own, counts, progress.steps_done, device, execution)
            if not np.isfinite(loss):
                raise not_finite(loss, progress.steps_done, pairs.clip_ids(pair_numbers))
            clip(trained, trial.clip_norm)
            optimizer.step()
            progress.steps_done += 1
            progress.batches_done += 1
            progress.loss_sum += loss
            done = epoch + progress.batches_done / len(batches)
            watch(clock.step(progress.steps_done, done, loss, len(pair_numbers)))
            if progress.batches_done < len(batches) and clock.is_time_for_a_checkpoint():
                report({}, snapshot(rank, trial, network, optimizer, progress, best))

        took, metrics = clock.epoch(), Metrics()
        if rank == 0:
            began = time.monotonic()
            metrics = validate(network, trial, validation, epoch, keep)
            if trial.final_epoch or metrics["map10"] > progress.best_map10:
                progress.best_map10, progress.best_epoch = metrics.get("map10", -1.0), epoch + 1
                best = checkpoint.weights_of(network)
            metrics |= took | {"validation_s": time.monotonic() - began}
            metrics |= describe_epoch(trial, progress, network, optimizer, len(batches))
            metrics["pairs_without_paraphrases"] = pairs.without_paraphrases
        progress.validation_losses += (from_rank_0(metrics.get("validation_loss", 0.0), device),)
        progress.epochs_done, progress.batches_done, progress.loss_sum = epoch + 1, 0, 0.0
        report(metrics, snapshot(rank, trial, network, optimizer, progress, best))

    if rank == 0:
        network.load_state_dict(best)
    return network


def describe_epoch(
    trial: Trial, progress: Progress, network: DualEncoder, optimizer: torch.optim.Optimizer, num_batches: int
) -> Metrics:
    """Return what is logged of an epoch besides its validation and its times."""
    best = {} if trial.final_epoch else {"best_map10": progress.best_map10}
    return best | {
        "epoch": progress.epochs_done + 1,
        "epochs": trial.epochs,
        "best_epoch": progress.best_epoch,
        "train_loss": progress.loss_sum / num_batches,
        "temperature": float(network.temperature.detach()),
        "learning_rate": optimizer.param_groups[0]["lr"],
    }


def open_pairs(trial: Trial, store: Location) -> ClipCaptionDataset:
    """What a trial is trained on: without what the store excludes."""
    splits = [open_split(store, name) for name in trial.train]
    left_out = excluded(store, trial.train)
    return ClipCaptionDataset(
        splits, trial.audio.segment_s, trial.longest_audio_s, trial.paraphrase_probability, trial.seed, left_out
    )


def initial_model(trial: Trial, folder: Path | None, pairs: ClipCaptionDataset, weights: Path | None) -> DualEncoder:
    """The model that training starts from: that of a checkpoint or a pretraining, tokenizer included, or a new one."""
    if folder is not None:
        return checkpoint.load_model(folder, trial)
    captions = [normalise(caption) for caption in pairs.captions()]
    return dual_encoder.build(trial, captions, weights)


def prepare(network: DualEncoder, device: torch.device, execution: Execution) -> None:
    """Set a model up for how it is to be computed."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32: what float32 means on tensor cores
    if execution.checkpoint_activations:
        dual_encoder.checkpoint_activations(network)
    if execution.compile:
        dual_encoder.compile_blocks(network)


def on_several_ranks(network: DualEncoder, trial: Trial, device: torch.device) -> DistributedDataParallel:
    """The model with gradients that are exchanged between ranks, always in the same order.

    DDP arranges its buckets by the order in which the first gradients come, and so adds three ranks' or more in another
    order from its second step on. A first step on silence, thrown away, makes that the same in a training that goes on.
    """
    distributed = DistributedDataParallel(network, forward_sync_buffers=False)
    silence = torch.zeros(1, round(trial.audio.segment_s * SAMPLE_RATE_HZ))
    one = torch.tensor([1])
    batch = Batch(silence, one, torch.zeros(1, MASK_DRAWS), ["silence"], one).to(device)
    outputs = distributed(batch, network.text.tokenize(batch.captions).to(device), torch.Generator())
    torch.autograd.backward([output.sum() for output in outputs if output.requires_grad])
    network.zero_grad(set_to_none=True)
    return distributed


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the next step."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def clip(parameters: Iterable[Tensor], norm: float | None) -> None:
    """Scale all gradients together down to a norm, if there is one."""
    if norm is not None:
        nn.utils.clip_grad_norm_(parameters, norm)


def refuse_shared_statistics(network: DualEncoder, world_size: int, execution: Execution) -> None:
    """Raise UserError where batch statistics would differ between ranks or micro-batches."""
    learned = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d) and layer.training]
    if learned and (world_size > 1 or execution.micro_batch):
        raise UserError(
            "batch statistics are those of one rank's whole batch: freeze them (frozen_statistics=True), or train with "
            "one worker and without a micro-batch"
        )


def backward(
    trial: Trial,
    network: DualEncoder | DistributedDataParallel,
    own: Batch,
    counts: list[int],
    step: int,
    device: torch.device,
    execution: Execution,
) -> float:
    """Compute the gradients of one step's loss over the global batch; the loss is returned.

    `own` is this rank's share, `counts` says how many pairs of each rank's count.
    """
    rank = dist.get_rank() if dist.is_initialized() else 0
    clips_B = gather(own.clips.to(device), counts)
    model = cast(DualEncoder, network.module if isinstance(network, DistributedDataParallel) else network)

    def forward(number: int, part: Batch) -> Outputs:
        shared = seed_step(trial.seed, step, rank, number)
        with torch.autocast(device.type, torch.bfloat16, enabled=trial.precision == "bfloat16"):
            outputs: Outputs = network(part.to(device), model.text.tokenize(part.captions).to(device), shared)
        return outputs

    def loss_of(outputs: Outputs) -> Tensor:
        audio_LD, text_LD, temperature = outputs
        return nt_xent(gather(audio_LD, counts), gather(text_LD, counts), clips_B, temperature)

    parts = own.split(execution.micro_batch or len(own.captions))
    try:
        return float(gradient_cache.backward(forward, parts, loss_of, network))
    except torch.OutOfMemoryError as error:
        held = f"{len(parts[0].captions)} pairs at a time ({max(len(part.segments) for part in parts)} segments)"
        raise OutOfMemoryError(
            f"out of memory in step {step + 1}, with the activations of {held}: lower micro_batch, or set "
            f"checkpoint_activations ({error})"
        ) from error


def seed_step(seed: int, step: int, rank: int, part: int = 0) -> torch.Generator:
    """The generator of what a global batch shares; what a part draws for itself, dropout, is seeded on the way."""
    shared, own = (
        int(np.random.SeedSequence(entropy).generate_state(1)[0])
        for entropy in ([seed, step], [seed, step, rank, 1, part])
    )
    torch.manual_seed(own)
    return torch.Generator().manual_seed(shared)


def not_finite(loss: float, step: int, clip_ids: Iterable[str]) -> UserError:
    """What is said of a loss that isn't a number."""
    return UserError(
        f"the loss of step {step + 1} is {loss}: the training ends here, its last checkpoint stays. Lower the learning "
        f"rate, or look at the batch's clips: {', '.join(sorted(set(clip_ids)))}"
    )


def snapshot(
    rank: int, trial: Trial, network: DualEncoder, optimizer: torch.optim.Optimizer, progress: Progress, best: Weights
) -> Snapshot | None:
    """What a checkpoint holds, copied, so that it can be written while training goes on; rank 0's counts."""
    return checkpoint.snapshot(trial, network, optimizer, progress, best) if rank == 0 else None


def validate(network: DualEncoder, trial: Trial, split: StoredSplit, epoch: int, keep: Keep) -> Metrics:
    """Retrieval metrics on the validation split, and the loss of the whole split as one batch.

    There are none of a trial that ends at a given epoch: it may have been trained on that split.
    """
    if trial.final_epoch:
        return {}
    embeddings = embed(network, trial, "", split)
    keep(epoch + 1, embeddings)
    relevant = retrieval.relevance(embeddings.relevant_clip_ids, embeddings.clip_ids)
    metrics = retrieval.evaluate(embeddings.scores(), relevant, retrieval.METRICS)
    audio_PD = torch.from_numpy(embeddings.audio_AD[relevant.clip_P])
    text_PD = torch.from_numpy(embeddings.text_QD[relevant.query_P])
    clips_P: Tensor = torch.from_numpy(relevant.clip_P)
    loss = nt_xent(audio_PD, text_PD, clips_P, network.temperature.detach().cpu())
    return metrics | {"validation_loss": float(loss)}

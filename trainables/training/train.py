"""The training loop, for pretraining and fine-tuning alike, on one rank or many. It does not depend on Ray.

Shapes: B pairs of all ranks together, L pairs of one rank, P pairs of the validation split, D dimensions.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from data.captions import normalise
from data.errors import UserError
from data.leakage.exclusions import read_excluded_ids
from data.loading.augmentation import Augmentation
from data.loading.batch import NUM_MASK_DRAWS, Batch
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
from trainables.records.checkpoint import Snapshot, TrainingProgress, Weights
from trainables.records.embeddings import Embeddings
from trainables.records.timing import Metrics, StepTimer, TrainingStep, broadcast_from_rank_0, reset_peak_memory
from trainables.training.compute import DEFAULT, Execution
from trainables.training.distillation import TeacherTargets
from trainables.training.embedding import embed_split
from trainables.training.features import FeatureStorage, use_features
from trainables.training.gradient_cache import Outputs, backward_by_parts, embed_by_parts
from trainables.training.learning_rates import group_by_rate, set_learning_rate
from trainables.training.loss import gather_rows, nt_xent, soft_cross_entropy
from trainables.trial import Trial

OnCheckpoint = Callable[[Metrics, Snapshot | None], None]
OnEmbeddings = Callable[[int, Embeddings], None]
OnModel = Callable[[DualEncoder, Sequence[Metrics]], None]


@dataclass(frozen=True)
class Callbacks:
    """Functions that a training calls after each step, after each epoch, and when a checkpoint is due."""

    on_checkpoint: OnCheckpoint
    """Called after each epoch, and within an epoch if a checkpoint is due, with the epoch's metrics and the content of
    a checkpoint. Within an epoch the metrics are empty; on ranks other than 0 they are empty and the content is None.
    """
    on_step: Callable[[TrainingStep], None] = lambda step: None
    on_embeddings: OnEmbeddings = lambda epoch, embeddings: None
    """Called on rank 0 with an epoch's number, from 1, and its embeddings of the validation split."""
    on_model: OnModel = lambda network, history: None
    """Called on rank 0 after each epoch, before `on_checkpoint`, with the model and the metrics of the epochs so far. A
    training that is interrupted in between repeats the epoch, and calls the function again.
    """


@dataclass(frozen=True)
class TrainingStart:
    """Folders and files that a training starts from: a checkpoint, a pretrained model, published weights, and what its
    teachers have computed. A new training has no checkpoint, and a pretraining no pretrained model.
    """

    pretrained: Path | None = None  # the model that a fine-tuning starts from
    resume_from: Path | None = None  # a checkpoint of the same training
    weights: Path | None = None  # published checkpoints; None: download them
    teachers: tuple[tuple[Path, ...], ...] = ()  # of each teacher, a file of embeddings or scores per training split
    features: FeatureStorage | None = None  # of outputs of frozen encoders; None: they are computed in each step


NEW, CPU = TrainingStart(), torch.device("cpu")


class OutOfMemoryError(UserError):
    """Error raised when a rank has run out of memory."""


def train(
    trial: Trial,
    store: Location,
    callbacks: Callbacks,
    start: TrainingStart = NEW,
    device: torch.device = CPU,
    execution: Execution = DEFAULT,
) -> DualEncoder:
    """Train a trial to its end, and return the model. On rank 0 it has the weights of the best epoch by validation
    mAP@10, or of the last epoch if the trial has a final or a snapshot epoch. `start` says where training starts,
    `execution` how it is computed; `callbacks` are called after steps and epochs.

    With several ranks, every rank calls this function, and computes its share of every batch. Raises UserError if the
    loss isn't finite, and OutOfMemoryError if memory runs out.
    """
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    pairs, validation = open_pairs(trial, store), open_split(store, trial.validation)
    targets = TeacherTargets(trial, pairs, start.teachers) if trial.teachers else None
    network = load_initial_model(trial, start, pairs).to(device)
    prepare_network(network, device, execution)
    refuse_shared_statistics(network.train(), world_size, execution)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(group_by_rate(network, trial), fused=device.type == "cuda")
    progress, best = TrainingProgress(), Weights()
    if start.resume_from:
        progress, best = checkpoint.load_training(start.resume_from, network, optimizer)
    features = use_features(network, trial, start.features, pairs)
    distributed = wrap_in_ddp(network, trial, device) if world_size > 1 else network
    reset_peak_memory(device)
    clock = StepTimer(execution.checkpoint_every_s, device)

    while not trial.is_over(progress.epochs_done, progress.validation_losses):
        epoch = progress.epochs_done
        network.train()
        batches = order_epoch(pairs, epoch, trial.batch_size)
        remaining = batches[progress.batches_done :]
        loader = load_epoch(pairs, epoch, remaining, rank, world_size, execution.loader_workers)
        loader = map(features.attach, loader) if features else loader
        for pair_numbers, batch_of_rank in zip(remaining, clock.time_waiting(loader), strict=True):
            done = epoch + progress.batches_done / len(batches)
            set_learning_rate(optimizer, trial.schedule.rate(done, progress.validation_losses))
            counts = [len(share) for share in split_among_ranks(pairs, pair_numbers, world_size)]
            clips_B = gather_rows(batch_of_rank.clips.to(device), counts)
            targets_BB = compute_targets(targets, batch_of_rank, clips_B, counts)
            forward = partial(embed_part, distributed, trial, rank, progress.steps_done)
            parts = batch_of_rank.split(execution.micro_batch or len(batch_of_rank.captions))
            optimizer.zero_grad(set_to_none=True)
            with explain_out_of_memory(progress.steps_done, parts):
                outputs = forward(0, batch_of_rank) if len(parts) == 1 else embed_by_parts(forward, parts)
                audio_LD, text_LD, temperature = outputs
                audio_BD, text_BD = gather_rows(audio_LD, counts), gather_rows(text_LD, counts)
                loss = compute_loss(trial, audio_BD, text_BD, clips_B, temperature, targets_BB)
                loss.backward()
                if len(parts) > 1:
                    backward_by_parts(forward, parts, outputs, distributed)
            loss_value = loss.item()
            if not np.isfinite(loss_value):
                raise format_loss_error(loss_value, progress.steps_done, pairs.get_clip_ids(pair_numbers))
            clip_gradients(trained, trial.clip_norm)
            optimizer.step()
            progress.steps_done += 1
            progress.batches_done += 1
            progress.loss_sum += loss_value
            done = epoch + progress.batches_done / len(batches)
            callbacks.on_step(clock.record_step(progress.steps_done, done, loss_value, len(pair_numbers)))
            if progress.batches_done < len(batches) and clock.is_checkpoint_due():
                callbacks.on_checkpoint({}, take_snapshot(rank, trial, network, optimizer, progress, best))

        timings, metrics = clock.summarise_epoch(), Metrics()
        if rank == 0:
            validation_began = time.monotonic()
            metrics = validate(network, trial, validation, epoch, callbacks.on_embeddings)
            if trial.final_epoch or trial.snapshot_epoch or metrics["map10"] > progress.best_map10:
                progress.best_map10, progress.best_epoch = metrics.get("map10", -1.0), epoch + 1
                best = checkpoint.copy_weights(network)
            metrics |= timings | {"validation_s": time.monotonic() - validation_began}
            metrics |= epoch_metrics(trial, progress, network, optimizer, len(batches))
            metrics["pairs_without_paraphrases"] = pairs.without_paraphrases
            progress.history += (dict(metrics),)
            callbacks.on_model(network, progress.history)
        progress.validation_losses += (broadcast_from_rank_0(metrics.get("validation_loss", 0.0), device),)
        progress.epochs_done, progress.batches_done, progress.loss_sum = epoch + 1, 0, 0.0
        callbacks.on_checkpoint(metrics, take_snapshot(rank, trial, network, optimizer, progress, best))

    if rank == 0:
        network.load_state_dict(best)
    return network


def compute_targets(
    targets: TeacherTargets | None, batch_of_rank: Batch, clips_B: Tensor, counts: Sequence[int]
) -> Tensor | None:
    """Return the teachers' logits for the batch of all ranks [B, B], None without teachers. `batch_of_rank` is this
    rank's share of the batch, `counts` the numbers of pairs of all ranks and `clips_B` all clips.
    """
    if targets is None:
        return None
    texts_L = targets.find_texts(batch_of_rank.captions).to(clips_B.device)
    return targets.compute_logits(clips_B, gather_rows(texts_L, counts))


def compute_loss(
    trial: Trial, audio_BD: Tensor, text_BD: Tensor, clips_B: Tensor, temperature: Tensor, targets_BB: Tensor | None
) -> Tensor:
    """Return the loss of a batch: NT-Xent or, for a student, the cross entropy with its teachers' logits `targets_BB`
    and the trial's share of NT-Xent. `audio_BD` and `text_BD` are the embeddings of B pairs, `clips_B` their clips.
    """
    if targets_BB is None:
        return nt_xent(audio_BD, text_BD, clips_B, temperature)
    soft = soft_cross_entropy(audio_BD, text_BD, targets_BB, temperature)
    if not trial.hard_share:
        return soft
    return trial.hard_share * nt_xent(audio_BD, text_BD, clips_B, temperature) + (1 - trial.hard_share) * soft


def epoch_metrics(
    trial: Trial, progress: TrainingProgress, network: DualEncoder, optimizer: torch.optim.Optimizer, num_batches: int
) -> Metrics:
    """Return the metrics of the epoch that has ended, by name: mean loss over its `num_batches` batches, temperature,
    learning rate and best epoch so far, taken from the progress, the network and the optimizer. Validation metrics and
    times are not among them.
    """
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
    """Return the training pairs of a trial, without the pairs of clips that the store excludes from training."""
    splits = [open_split(store, name) for name in trial.train]
    excluded_ids = read_excluded_ids(store, trial.train)
    augmentation = Augmentation(trial.mix_probability, trial.gain_db, trial.filter_db)
    return ClipCaptionDataset(
        splits, trial.audio.segment_s, trial.longest_audio_s, trial.paraphrase_probability, trial.seed, excluded_ids,
        augmentation,
    )  # fmt: skip


def load_initial_model(trial: Trial, start: TrainingStart, pairs: ClipCaptionDataset) -> DualEncoder:
    """Return the model that a trial's training starts with: that of the checkpoint or of the pretrained model in
    `start`, otherwise one with initial weights, whose vocabulary may be learned from the captions of `pairs`.
    """
    if folder := start.resume_from or start.pretrained:
        network = checkpoint.load_model(folder, trial)
        if trial.reset_temperature and not start.resume_from:
            network.set_temperature(trial.temperature)
        return network
    if trial.pretraining:
        raise ValueError("a fine-tuning needs the folder of its pretrained model")
    captions = [normalise(caption) for caption in pairs.iter_captions()]
    return dual_encoder.build(trial, captions, start.weights)


def prepare_network(network: DualEncoder, device: torch.device, execution: Execution) -> None:
    """Apply the execution settings to the model `network` in place: activation checkpointing and compilation. On a GPU,
    also let torch multiply float32 matrices in TF32.
    """
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 on tensor cores
    if execution.checkpoint_activations:
        dual_encoder.checkpoint_activations(network)
    if execution.compile:
        dual_encoder.compile_blocks(network)


def wrap_in_ddp(network: DualEncoder, trial: Trial, device: torch.device) -> DistributedDataParallel:
    """Return the model `network` of a trial wrapped in DDP (DistributedDataParallel), which exchanges gradients between
    ranks in a fixed order.

    DDP orders its buckets by the arrival of the first step's gradients, so from the second step, gradients of three or
    more ranks are summed in another order. A first step on silence, whose gradients are discarded, makes the order the
    same in a resumed training.
    """
    distributed = DistributedDataParallel(network, forward_sync_buffers=False)
    silence = torch.zeros(1, round(trial.audio.segment_s * SAMPLE_RATE_HZ))
    batch = Batch.without_captions(silence, sizes=[1], clips=[1]).to(device)
    outputs = distributed(batch, network.text.tokenize(["silence"]).to(device), torch.Generator())
    torch.autograd.backward([output.sum() for output in outputs if output.requires_grad])
    network.zero_grad(set_to_none=True)
    return distributed


def clip_gradients(parameters: Iterable[Tensor], norm: float | None) -> None:
    """Scale all parameters' gradients in place so that their total norm is at most `norm`; do nothing if it is None."""
    if norm is not None:
        nn.utils.clip_grad_norm_(parameters, norm)


def refuse_shared_statistics(network: DualEncoder, world_size: int, execution: Execution) -> None:
    """Raise UserError if the network trains batch normalisation and `world_size`, the number of ranks, is above 1 or
    `execution` has micro-batches, since each of them would have statistics of its own.
    """
    learned = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d) and layer.training]
    if learned and (world_size > 1 or execution.micro_batch):
        raise UserError(
            "batch statistics need all pairs of a batch on one rank at a time: freeze them (frozen_statistics=True), "
            "or train with one worker and without a micro-batch"
        )


def embed_part(
    network: DualEncoder | DistributedDataParallel, trial: Trial, rank: int, step: int, number: int, part: Batch
) -> Outputs:
    """Return the outputs of the network for a part of this rank's share of a batch: embeddings of clips and of
    captions, and the temperature. `step` and `number`, the part's number, seed the random numbers, so that repeated
    calls return the same values, dropout included.
    """
    model = cast(DualEncoder, network.module if isinstance(network, DistributedDataParallel) else network)
    device, generator = model.temperature_parameter.device, seed_step(trial.seed, step, rank, number)
    if trial.shared_mask:
        shared_draws = torch.rand(NUM_MASK_DRAWS, generator=generator)
        part = replace(part, mask_draws=shared_draws.expand(len(part.segments), -1))
    with torch.autocast(device.type, torch.bfloat16, enabled=trial.precision == "bfloat16"):
        tokens = model.text.tokenize(part.captions).to(device) if part.text_features is None else None
        outputs: Outputs = network(part.to(device), tokens, generator)
    return outputs


@contextlib.contextmanager
def explain_out_of_memory(step: int, parts: Sequence[Batch]) -> Iterator[None]:
    """Turn a GPU's out-of-memory error in the `with` block into OutOfMemoryError, whose message names the step, the
    size of the batch's parts, and the settings to lower.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        part_size = f"{len(parts[0].captions)} pairs at a time ({max(len(part.segments) for part in parts)} segments)"
        raise OutOfMemoryError(
            f"out of memory in step {step + 1}, with the activations of {part_size}: lower micro_batch, or set "
            f"checkpoint_activations ({error})"
        ) from error


def seed_step(seed: int, step: int, rank: int, part: int = 0) -> torch.Generator:
    """Return a generator for random numbers that all ranks share in a step. Also seed torch's global generator, from
    which dropout draws, for a part of this rank's share of the batch.
    """
    shared_seed, part_seed = (
        int(np.random.SeedSequence(entropy).generate_state(1)[0])
        for entropy in ([seed, step], [seed, step, rank, 1, part])
    )
    torch.default_generator.manual_seed(part_seed)
    if torch.cuda.is_initialized():  # otherwise torch.manual_seed would store a call with its stack trace, each step
        torch.cuda.manual_seed_all(part_seed)
    return torch.Generator().manual_seed(shared_seed)


def format_loss_error(loss: float, step: int, clip_ids: Iterable[str]) -> UserError:
    """Return the error to raise for a loss that is not finite; its message names the step and the clips of the batch,
    `clip_ids`.
    """
    return UserError(
        f"the loss of step {step + 1} is {loss}: training has ended, and its last checkpoint is kept. Lower the "
        f"learning rate, or check the clips of the batch: {', '.join(sorted(set(clip_ids)))}"
    )


def take_snapshot(
    rank: int,
    trial: Trial,
    network: DualEncoder,
    optimizer: torch.optim.Optimizer,
    progress: TrainingProgress,
    best: Weights,
) -> Snapshot | None:
    """Return a copy of the state of a training that a checkpoint holds (its network, optimizer and progress), so that
    it can be written while training continues; None on ranks other than 0. `best` are the weights of the best epoch.
    """
    return checkpoint.take_snapshot(trial, network, optimizer, progress, best) if rank == 0 else None


def validate(
    network: DualEncoder, trial: Trial, split: StoredSplit, epoch: int, on_embeddings: OnEmbeddings
) -> Metrics:
    """Return the network's retrieval metrics on the validation split by name, and under 'validation_loss' the loss of
    the split as one batch. `on_embeddings` is called with the number of the epoch, from 1, and the embeddings.

    A trial with a final epoch is not validated, since it may have been trained on the validation split.
    """
    if trial.final_epoch:
        return {}
    embeddings = embed_split(network, trial, "", split)
    on_embeddings(epoch + 1, embeddings)
    relevant = retrieval.build_relevance(embeddings.relevant_clip_ids, embeddings.clip_ids)
    metrics = retrieval.compute_metrics(embeddings.compute_scores(), relevant, retrieval.METRICS)
    audio_PD = torch.from_numpy(embeddings.audio_AD[relevant.clip_P])
    text_PD = torch.from_numpy(embeddings.text_QD[relevant.query_P])
    clips_P: Tensor = torch.from_numpy(relevant.clip_P)
    loss = nt_xent(audio_PD, text_PD, clips_P, network.temperature.detach().cpu())
    return metrics | {"validation_loss": float(loss)}

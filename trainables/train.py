"""The training loop, for pretraining and fine-tuning alike, on one rank or many.

Nothing here knows of Ray: `report` is what the caller wants to be told after each epoch.
"""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from data.batches import Pairs
from data.captions import normalise
from data.exclusions import excluded
from data.shards import StoredSplit, open_split
from data.storage import Location
from trainables import checkpoint, model, retrieval
from trainables.checkpoint import Progress, Weights
from trainables.embed import embed
from trainables.loss import gather, nt_xent
from trainables.model import DualEncoder
from trainables.trial import Trial

METRICS = ("map10", "r1", "r5", "r10")

Metrics = dict[str, float]
Report = Callable[[Metrics, Callable[[Path], None]], None]
"""Takes an epoch's metrics, and what writes the checkpoint into a folder. Every rank calls it; rank 0's counts."""


def train(
    trial: Trial,
    store: Location,
    report: Report,
    pretrained: Path | None = None,
    resume_from: Path | None = None,
    device: torch.device | None = None,
    loader_workers: int = 0,
) -> DualEncoder:
    """Train a trial to its last epoch; the model of the best epoch by validation mAP@10 is returned.

    `pretrained` is the folder of the model that a fine-tuning starts from, `resume_from` a checkpoint of this very
    training. With several ranks every rank calls this; each computes its share of every batch.
    """
    if trial.pretraining and not (pretrained or resume_from):
        raise ValueError("a fine-tuning needs the folder of its pretrained model")
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    device = device or torch.device("cpu")
    splits = [open_split(store, name) for name in trial.train]
    validation = open_split(store, trial.validation)
    segment_s, longest_s = trial.audio.segment_s, trial.longest_audio_s
    left_out = excluded(store, trial.train)
    pairs = Pairs(splits, segment_s, longest_s, trial.paraphrase_probability, trial.seed, left_out)

    network = initial_model(trial, resume_from or pretrained, pairs).to(device)
    optimizer = torch.optim.Adam(network.parameters(), fused=device.type == "cuda")
    progress, best = Progress(), Weights()
    if resume_from:
        progress, best = checkpoint.load_training(resume_from, network, optimizer)
    distributed = DistributedDataParallel(network, forward_sync_buffers=False) if world_size > 1 else network

    for epoch in range(progress.epochs_done, trial.schedule.epochs):
        network.train()
        started, losses = time.monotonic(), []
        batches = pairs.epoch_batches(epoch, trial.batch_size)
        shares = pairs.load_epoch(epoch, trial.batch_size, rank, world_size, loader_workers)
        for index, (global_batch, batch) in enumerate(zip(batches, shares, strict=True)):
            for group in optimizer.param_groups:
                group["lr"] = trial.schedule.rate(epoch + index / len(batches))
            batch, tokens = batch.to(device), network.text.tokenize(batch.captions).to(device)
            shared = seed_step(trial.seed, progress.steps_done, rank)
            with torch.autocast(device.type, torch.bfloat16, enabled=trial.precision == "bfloat16"):
                audio_LD, text_LD, temperature = distributed(batch, tokens, shared)
            size = len(global_batch)
            loss = nt_xent(gather(audio_LD, size), gather(text_LD, size), gather(batch.clips, size), temperature)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
            progress.steps_done += 1
        progress.epochs_done = epoch + 1
        trained_s = time.monotonic() - started

        metrics: Metrics = {}
        if rank == 0:
            metrics = validate(network, trial, validation)
            if metrics["map10"] > progress.best_map10:
                progress.best_map10, progress.best_epoch = metrics["map10"], epoch + 1
                best = checkpoint.weights_of(network)
            metrics |= {
                "epoch": epoch + 1,
                "epochs": trial.schedule.epochs,
                "best_epoch": progress.best_epoch,
                "best_map10": progress.best_map10,
                "train_loss": float(torch.stack(losses).mean()),
                "temperature": float(network.temperature.detach()),
                "learning_rate": optimizer.param_groups[0]["lr"],
                "pairs_per_second": len(pairs) / trained_s,
            }
        report(metrics, checkpoint_writer(trial, network, optimizer, progress, best))

    if rank == 0:
        network.load_state_dict(best)
    return network


def initial_model(trial: Trial, folder: Path | None, pairs: Pairs) -> DualEncoder:
    """The model that training starts from: that of a checkpoint or a pretraining, tokenizer included, or a new one."""
    if folder is not None:
        return checkpoint.load_model(folder)
    captions = [normalise(caption) for caption in pairs.captions()]
    return model.build(trial, captions)


def seed_step(seed: int, step: int, rank: int) -> torch.Generator:
    """The generator of what a global batch shares; what a rank draws for itself, dropout, is seeded on the way."""
    shared, own = (
        int(np.random.SeedSequence(entropy).generate_state(1)[0]) for entropy in ([seed, step], [seed, step, rank, 1])
    )
    torch.manual_seed(own)
    return torch.Generator().manual_seed(shared)


def checkpoint_writer(
    trial: Trial, network: DualEncoder, optimizer: torch.optim.Optimizer, progress: Progress, best: Weights
) -> Callable[[Path], None]:
    """What writes a checkpoint into a folder."""
    return lambda folder: checkpoint.save_training(folder, trial, network, optimizer, progress, best)


def validate(network: DualEncoder, trial: Trial, split: StoredSplit) -> Metrics:
    """Retrieval metrics on the validation split, and the loss of the whole split as one batch."""
    embeddings = embed(network, trial, "", split)
    relevant = retrieval.relevance(embeddings.relevant_clip_ids, embeddings.clip_ids)
    metrics = retrieval.evaluate(embeddings.scores(), relevant, METRICS)
    audio_PD = torch.from_numpy(embeddings.audio_AD[relevant.clip_P])
    text_PD = torch.from_numpy(embeddings.text_QD[relevant.query_P])
    clips_P: Tensor = torch.from_numpy(relevant.clip_P)
    loss = nt_xent(audio_PD, text_PD, clips_P, network.temperature.detach().cpu())
    return metrics | {"validation_loss": float(loss)}

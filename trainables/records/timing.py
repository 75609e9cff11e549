"""Timing of a training's steps, memory use, and when a checkpoint is due."""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from data.loading.batch import Batch

Metrics = dict[str, float]

PROCESS_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class TrainingStep:
    """Measurements of one training step on this rank."""

    number: int  # from 1
    epoch: float
    loss: float
    num_pairs: int  # pairs of all ranks together
    duration_s: float  # including the wait for data
    waited_s: float  # time spent waiting for data
    memory_bytes: int  # peak memory so far, of the GPU or of the process


class StepTimer:
    """Timer of a training: measures its steps, and tells when a checkpoint is due."""

    def __init__(self, checkpoint_every_s: float, device: torch.device) -> None:
        self.checkpoint_every_s = checkpoint_every_s
        self.device = device
        self.checkpointed_at = self.step_started_at = time.monotonic()
        self.waited_s = 0.0
        self.steps: list[TrainingStep] = []

    def time_waiting(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield the batches, and measure how long each step waits for its batch."""
        while True:
            requested_at = self.step_started_at = time.monotonic()
            batch = next(batches, None)
            self.waited_s = time.monotonic() - requested_at
            if batch is None:
                return
            yield batch

    def record_step(self, number: int, epoch: float, loss: float, num_pairs: int) -> TrainingStep:
        """Record that the step with this number has finished, and return its measurements. `epoch` is the number of
        epochs done so far, with a fraction; `loss` is the loss of the step's batch, and `num_pairs` its size.
        """
        duration_s = time.monotonic() - self.step_started_at
        self.steps.append(
            TrainingStep(number, epoch, loss, num_pairs, duration_s, self.waited_s, measure_peak_memory(self.device))
        )
        return self.steps[-1]

    def summarise_epoch(self) -> Metrics:
        """Return, by name, the metrics of the steps since the last call: seconds per step, pairs per second, the
        fraction of time spent waiting for data, peak memory in GB, and the steps' total duration in seconds,
        'training_s'.
        """
        steps, self.steps = self.steps, []
        return summarise_steps(steps) | {"training_s": sum(step.duration_s for step in steps)}

    def is_checkpoint_due(self) -> bool:
        """Return whether `checkpoint_every_s` seconds have passed since the method last returned True, or since the
        start. Rank 0's clock decides for all ranks, so every rank must call this method.
        """
        is_due = bool(
            broadcast_from_rank_0(time.monotonic() - self.checkpointed_at >= self.checkpoint_every_s, self.device)
        )
        if is_due:
            self.checkpointed_at = time.monotonic()
        return is_due


def summarise_steps(steps: Sequence[TrainingStep]) -> Metrics:
    """Return, by name, seconds per step, pairs per second, the fraction of time spent waiting for data, and peak memory
    in GB; {} for no steps.
    """
    if not steps:
        return {}
    duration_s = sum(step.duration_s for step in steps)
    return {
        "step_s": duration_s / len(steps),
        "pairs_per_second": sum(step.num_pairs for step in steps) / duration_s,
        "waiting_share": sum(step.waited_s for step in steps) / duration_s,
        "memory_gb": steps[-1].memory_bytes / 1e9,
    }


def measure_peak_memory(device: torch.device) -> int:
    """Return the peak memory in bytes since `reset_peak_memory`: of the GPU, or of this process."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    if PROCESS_STATUS.exists():
        return int(PROCESS_STATUS.read_text().partition("VmHWM:")[2].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # not on Linux: the peak since the process started


def reset_peak_memory(device: torch.device) -> None:
    """Start measuring peak memory anew, since a process may train one trial after another."""
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
    elif PROCESS_STATUS.exists():
        with contextlib.suppress(OSError):  # not every container allows writing this file
            Path("/proc/self/clear_refs").write_text("5")  # proc(5): reset VmHWM


def broadcast_from_rank_0(value: float, device: torch.device) -> float:
    """Return the `value` of rank 0 on every rank. Every rank must call this function."""
    import torch
    import torch.distributed as dist

    shared = torch.tensor(value, dtype=torch.float64, device=device)
    if dist.is_initialized():
        dist.broadcast(shared, 0)
    return float(shared)

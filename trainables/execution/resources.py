"""Resources of a cluster, and their allocation to the workers of each trial."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from data.errors import UserError, parse_positive_int
from data.runtime.options import option
from trainables.training.compute import Execution

MAX_LOADERS = 4
"""Maximum number of loader processes per GPU: enough to decode 16-bit PCM for GPUs of 2023."""

DRIVER_CPUS = 0.01
"""CPUs reserved for a trial's driver, which only waits for its workers; if each driver reserved a CPU, too few would be
left for workers.
"""


@dataclass(frozen=True)
class Bundle:
    """Numbers of CPUs and GPUs on one node: those that a worker requests, or those that the node has.

    `gpus` below 1 is a fraction of one GPU.
    """

    cpus: float
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise UserError(f"gpus is {self.gpus}: more than one GPU must be a whole number of them")


@dataclass(frozen=True)
class Allocation:
    """Number of workers of a trial, and the resources allocated to each of them."""

    workers: int = 1
    cpus_per_worker: float = 1.0
    gpus_per_worker: float = 0.0
    threads: int = 1  # torch threads in each worker
    restarts: int = 3  # maximum number of restarts after lost workers, each from the last checkpoint

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise UserError(f"workers is {self.workers}: it must be at least 1")
        if self.cpus_per_worker <= 0:
            raise UserError(f"cpus_per_worker is {self.cpus_per_worker}: it must be above 0")
        if self.gpus_per_worker < 0:
            raise UserError(f"gpus_per_worker is {self.gpus_per_worker}: it must be 0 or more")
        _ = self.worker  # raises UserError for a fraction above 1
        if self.workers > 1 and 0 < self.gpus_per_worker < 1:
            raise UserError(
                f"{self.workers} workers with {self.gpus_per_worker:g} GPUs each: NCCL refuses two ranks on one GPU; "
                "set --gpus-per-worker to 1, or train with one worker"
            )

    @property
    def worker(self) -> Bundle:
        """CPUs and GPUs of one worker."""
        return Bundle(self.cpus_per_worker, self.gpus_per_worker)


@dataclass(frozen=True)
class ResourceRequest:
    """Number of workers of a trial and resources of each, as requested on the command line. `allocate` chooses the
    values that are None.
    """

    workers: int | None = None
    gpus_per_worker: float | None = None
    cpus_per_worker: float | None = None


def allocate(
    nodes: Sequence[Bundle], request: ResourceRequest, trials: int = 1, concurrent: int | None = None
) -> Allocation:
    """Return the number of workers of each trial and the resources of each worker on the cluster's nodes, as `request`
    says, with defaults for what it leaves open. `trials` is the number of trials, of which `concurrent` run at the same
    time; None: all of them.

    A worker gets a GPU if there are any, and an equal share of its node's CPUs; a trial of a sweep gets one worker
    unless more are requested. Raises UserError that names what is missing if the request cannot be placed.
    """
    gpus = sum(node.gpus for node in nodes)
    gpus_per_worker = float(gpus > 0) if request.gpus_per_worker is None else request.gpus_per_worker
    workers = request.workers or 1
    requested_workers = workers * min(trials, concurrent or trials)
    if gpus_per_worker:
        eligible_nodes = [node for node in nodes if node.gpus >= gpus_per_worker]
        shares = [node.cpus / (node.gpus // gpus_per_worker) for node in eligible_nodes]
    else:
        eligible_nodes = [node for node in nodes if node.cpus >= 1]
        concurrent_workers = min(requested_workers, sum(int(node.cpus) for node in eligible_nodes))
        shares = [node.cpus / math.ceil(concurrent_workers / len(eligible_nodes)) for node in eligible_nodes]
    threads = max(1, int(request.cpus_per_worker or min(shares, default=1)))
    # The remaining fraction of a CPU is for drivers.
    cpus = request.cpus_per_worker or threads - 2 * DRIVER_CPUS
    resources = Allocation(workers, cpus, gpus_per_worker, threads)
    require_placeable(resources, nodes)
    return resources


def count_placeable_workers(resources: Allocation, nodes: Sequence[Bundle]) -> int:
    """Return the number of workers with these resources that the nodes can run at the same time."""
    return sum(
        int(min(node.cpus / resources.cpus_per_worker, count_workers_on_gpus(node, resources))) for node in nodes
    )


def count_workers_on_gpus(node: Bundle, resources: Allocation) -> float:
    """Return the number of workers with these resources that a node's GPUs can run at the same time; infinity if the
    workers need no GPU.
    """
    gpus_per_worker = resources.gpus_per_worker
    if not gpus_per_worker:
        return math.inf
    return node.gpus // gpus_per_worker if gpus_per_worker >= 1 else int(node.gpus) * int(1 / gpus_per_worker)


def require_placeable(resources: Allocation, nodes: Sequence[Bundle]) -> None:
    """Raise UserError if the workers of one trial, which need `resources`, don't fit on the nodes, even if nothing else
    runs there.
    """
    placeable = count_placeable_workers(resources, nodes)
    if placeable >= resources.workers:
        return
    gpu = f" and {resources.gpus_per_worker:g} GPUs" if resources.gpus_per_worker else ""
    node_resources = ", ".join(f"{node.cpus:g} CPUs and {node.gpus:g} GPUs" for node in nodes)
    raise UserError(
        f"{resources.workers} workers need {resources.cpus_per_worker:g} CPUs{gpu} each, each worker on one node: "
        f"the cluster can place {placeable} (nodes: {node_resources}); lower --workers, --cpus-per-worker or "
        "--gpus-per-worker, or add nodes"
    )


@dataclass(frozen=True, kw_only=True)
class ComputeOptions:
    """Command-line options for the resources of trainings and the way in which they are computed; none of them is part
    of a trial.
    """

    workers: int | None = option(
        "workers per trial, each with a GPU or a share of the CPUs", None, type=parse_positive_int
    )
    gpus_per_worker: float | None = option("GPUs per worker, or a fraction (default: 1 if the cluster has any)", None)
    cpus_per_worker: float | None = option("CPUs per worker (default: an equal share of the node's)", None)
    loader_workers: int | None = option("processes that load data, per worker", None)
    micro_batch: int | None = option(
        "pairs per worker whose activations are in memory at a time", None, type=parse_positive_int
    )
    checkpoint_activations: bool = option("recompute activations in the backward pass to save memory", False)
    compile: bool = option("compile the encoders' blocks with torch.compile", False)
    checkpoint_every_s: float = option("seconds between checkpoints", Execution.checkpoint_every_s, metavar="SECONDS")
    keep_epochs: bool = option(
        "keep each epoch's validation embeddings, to cross-validate its choice, and its model (a model's size per "
        "epoch), for soups",
        False,
    )

    @property
    def request(self) -> ResourceRequest:
        """Workers and resources requested on the command line, as `allocate` takes them."""
        return ResourceRequest(self.workers, self.gpus_per_worker, self.cpus_per_worker)

    def execution_on(self, resources: Allocation) -> Execution:
        """Return the execution settings of trainings on these resources. Unless the command line gives a number of
        loader processes, a worker with a GPU gets up to MAX_LOADERS of them, and a worker without one gets none.
        """
        spare = min(MAX_LOADERS, resources.threads - 1) if resources.gpus_per_worker else 0
        return Execution(
            loader_workers=spare if self.loader_workers is None else self.loader_workers,
            micro_batch=self.micro_batch,
            checkpoint_activations=self.checkpoint_activations,
            compile=self.compile,
            checkpoint_every_s=self.checkpoint_every_s,
        )

"""Job queue: which trial starts next, given finished pretrainings and the cluster's free resources.

Fine-tunings do not wait for all pretrainings: when a pretraining has finished, its fine-tunings join the same queue as
all other jobs, the longest chain of trials first. Only the first job of the queue may start. Jobs behind it wait even
if they would fit, since small trials that overtake a large one could keep the large one waiting for ever.
"""

import math
from bisect import insort
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from trainables.execution.resources import Bundle

UNIT = 10_000
"""Units per CPU or GPU: Ray counts resources in ten-thousandths. Sums of integers have no rounding errors."""


@dataclass(frozen=True)
class Job:
    """Trial in the job queue: its key, the resources of its processes, its expected duration, and the jobs that must
    succeed first.
    """

    key: str
    bundles: tuple[Bundle, ...]  # resources of each process; Ray may place processes on different nodes
    cost: float = 1.0  # expected duration, in a unit shared by all jobs
    requires: tuple[str, ...] = ()  # jobs that must succeed first; one that isn't in the queue has succeeded already


@dataclass(frozen=True)
class Placement:
    """Resources reserved on one node for a bundle, which is the request of one process: units of its CPUs, and the
    same share of each of some GPUs.
    """

    node: int
    cpus: int
    gpus: tuple[int, ...]
    share: int  # units of each GPU


class FreeResources:
    """Free CPUs and GPUs of each node of a cluster, in ten-thousandths (UNIT)."""

    def __init__(self, nodes: Sequence[Bundle]) -> None:
        self.cpus = [round(node.cpus * UNIT) for node in nodes]
        self.gpus = [[UNIT] * int(node.gpus) for node in nodes]

    def take(self, bundles: Sequence[Bundle]) -> list[Placement] | None:
        """Reserve the resources of all bundles, the largest first, and return their placements. If a bundle
        does not fit on any node, reserve nothing and return None.
        """
        placements: list[Placement] = []
        for bundle in sorted(bundles, key=lambda bundle: (bundle.gpus, bundle.cpus), reverse=True):
            placement = self.find_placement(bundle)
            if placement is None:
                self.release(placements)
                return None
            self._change(placement, -1)
            placements.append(placement)
        return placements

    def release(self, placements: Sequence[Placement]) -> None:
        """Free the resources of placements, so that they can be reserved again."""
        for placement in placements:
            self._change(placement, 1)

    def _change(self, placement: Placement, sign: int) -> None:
        """Reserve (`sign` -1) or free (`sign` 1) the resources of one placement."""
        self.cpus[placement.node] += sign * placement.cpus
        for gpu in placement.gpus:
            self.gpus[placement.node][gpu] += sign * placement.share

    def find_placement(self, bundle: Bundle) -> Placement | None:
        """Return the placement of a bundle on the node that has the least to spare, like Ray, so that whole
        GPUs and idle nodes stay free. Return None if no node can hold the bundle; nothing is reserved.
        """
        cpus, count, share = round(bundle.cpus * UNIT), math.ceil(bundle.gpus), round(min(bundle.gpus, 1) * UNIT)
        best: tuple[tuple[int, int, int], Placement] | None = None
        for node, (free_cpus, free_gpus) in enumerate(zip(self.cpus, self.gpus, strict=True)):
            fitting = sorted((free, gpu) for gpu, free in enumerate(free_gpus) if free >= share)[:count]
            if free_cpus < cpus or len(fitting) < count:
                continue
            free_units = (sum(free for free, _ in fitting), sum(free_gpus), free_cpus)
            if best is None or free_units < best[0]:
                best = free_units, Placement(node, cpus, tuple(gpu for _, gpu in fitting), share)
        return best[1] if best else None


class JobQueue:
    """Queue of the jobs to run on a cluster. A job starts after the jobs that it depends on have succeeded; of the
    jobs that are ready, the one with the longest chain of dependent jobs starts first.

    A job's chain is its own cost plus that of the longest chain of jobs that depend on it. Of equal chains, the one
    with the larger total cost of dependent jobs goes first. So pretrainings start first, and fine-tunings use the
    remaining resources. Only the order of costs matters: no job is delayed because another job is expected to end. A
    job that does not fit on the empty cluster waits for nodes, and does not block others.
    """

    def __init__(self, jobs: Iterable[Job], nodes: Sequence[Bundle], max_concurrent: int | None = None) -> None:
        self.jobs = {job.key: job for job in jobs}
        self.nodes = tuple(nodes)
        self.max_concurrent = max_concurrent
        self.dropped: dict[str, str] = {}  # failed job that each dropped job depends on; a dropped job never runs
        self.free_resources = FreeResources(nodes)
        # The placements of a job are None if its nodes were lost and it waits for new placements.
        self.running: dict[str, list[Placement] | None] = {}
        self.children: defaultdict[str, list[str]] = defaultdict(list)
        self.chain_costs: dict[str, float] = {}
        for job in self.jobs.values():
            for required in dict.fromkeys(job.requires):
                if required in self.jobs:
                    self.children[required].append(job.key)
        order = sorted(self.jobs, key=self.chain_and_total_cost, reverse=True)
        self.positions = {key: position for position, key in enumerate(order)}
        # The jobs that each waiting job still waits for.
        self.waiting = {job.key: unmet for job in self.jobs.values() if (unmet := self.jobs.keys() & set(job.requires))}
        self.ready = [key for key in order if key not in self.waiting]

    def chain_and_total_cost(self, key: str) -> tuple[float, float]:
        """Return two costs for the job with this key: the total cost of the costliest chain of jobs that depend on each
        other and begin with it, and the cost of this job and all jobs that depend on it.
        """
        total = self.jobs[key].cost + sum(self.jobs[dependent].cost for dependent in self.find_dependents(key))
        return self.chain_cost(key), total

    def chain_cost(self, key: str) -> float:
        """Return the total cost of the costliest chain of jobs that depend on each other and begin with this one."""
        if key not in self.chain_costs:
            chains = [self.chain_cost(child) for child in self.children.get(key, [])]
            self.chain_costs[key] = self.jobs[key].cost + max(chains, default=0.0)
        return self.chain_costs[key]

    @property
    def is_exhausted(self) -> bool:
        """True if every job has started or been dropped."""
        return not self.ready and not self.waiting

    def resize(self, nodes: Sequence[Bundle]) -> None:
        """Set the nodes of the cluster, and place the running jobs on them again. Running jobs that don't fit
        get new placements before any other job starts.
        """
        if tuple(nodes) == self.nodes:
            return
        self.nodes, self.free_resources = tuple(nodes), FreeResources(nodes)
        for key in self.running:
            self.running[key] = self.free_resources.take(self.jobs[key].bundles)

    def pop(self) -> str | None:
        """Take the next job out of the queue, reserve its resources until `done` is called, and return its key.
        Return None if no job can start now.
        """
        for key in [key for key, placements in self.running.items() if placements is None] + self.ready:
            if key not in self.running and self.max_concurrent and len(self.running) >= self.max_concurrent:
                return None
            bundles = self.jobs[key].bundles
            placements = self.free_resources.take(bundles)
            if placements is not None:
                is_running = key in self.running
                self.running[key] = placements
                if not is_running:
                    self.ready.remove(key)
                    return key
            elif FreeResources(self.nodes).take(bundles) is not None:
                return None
        return None

    def done(self, key: str, succeeded: bool) -> None:
        """Free the resources of the job with this key, which has ended. The jobs that depend on it become ready if it
        `succeeded`, and are dropped otherwise.
        """
        self.free_resources.release(self.running.pop(key) or [])
        if not succeeded:
            self.dropped |= dict.fromkeys(self.find_dependents(key), key)
            self.waiting = {waiting: unmet for waiting, unmet in self.waiting.items() if waiting not in self.dropped}
            return
        for child in self.children.get(key, []):
            if child in self.waiting:
                self.waiting[child].remove(key)
                if not self.waiting[child]:
                    del self.waiting[child]
                    insort(self.ready, child, key=self.positions.__getitem__)

    def find_dependents(self, key: str) -> set[str]:
        """Return the keys of all jobs that depend on a job, directly or through other jobs."""
        dependents: set[str] = set()
        remaining = list(self.children.get(key, []))
        while remaining:
            child = remaining.pop()
            if child not in dependents:
                dependents.add(child)
                remaining += self.children.get(child, [])
        return dependents

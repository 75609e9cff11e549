"""How long a sweep takes with sweeps/scheduling/job_queue.py, on simulated durations: against bounds, with a barrier.

python tests/benchmarks/makespan.py [--seeds 5]

100 pairs are pretrained and then fine-tuned 12 times each, one slot a trial. The line sees estimates; durations are
log-normal about them. Times are in units of a typical fine-tuning. Everything is seeded, and computed in a minute.
"""

import argparse
import heapq
import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from measure import machine, say, told

from sweeps.scheduling.job_queue import Job, JobQueue
from trainables.execution.resources import Bundle

PAIRS, FINE_TUNINGS = 100, 12
RATIOS = (3, 10, 40)
"""How many times as long as a fine-tuning a pretraining takes."""

SLOTS = (8, 16, 32, 64, 128, 256)
SPREADS = (0.3, 0.6)
"""Standard deviations of the durations' logarithms."""

KNOWN_ERROR = 0.2
"""The same of durations about estimates that know how slow each pair is."""

BOUND, CLAIRVOYANT, BLIND, BARRIER = "bound", "clairvoyant", "blind", "beyond ours"
MOST_BOUND, MOST_CLAIRVOYANT = 10, 5
"""Percent that are asked for."""


@dataclass(frozen=True)
class Case:
    """One way that a sweep may turn out: `jobs` have the estimates, `durations` are what they really take."""

    jobs: list[Job]
    durations: dict[str, float]


@dataclass(frozen=True)
class Outcome:
    """What a simulated sweep did."""

    makespan: float
    busy: float  # share of all slots, until the last job had started
    longest_wait: float  # as the first of the line, of a job that asks for several bundles


def make_case(ratio: float, spread: float, pairs_are_known: bool, seed: int) -> Case:
    """Durations of all trials. Either all pairs look the same to the estimates, or estimates know how slow each is."""
    rng = np.random.default_rng(seed)
    jobs, durations = [], {}
    for pair in range(PAIRS):
        pace = math.exp(spread * rng.normal()) if pairs_are_known else 1.0
        pretraining = Job(f"{pair}", (Bundle(1),), ratio * pace)
        jobs += [pretraining]
        jobs += [Job(f"{pair}-{number}", (Bundle(1),), pace, pretraining.key) for number in range(FINE_TUNINGS)]
    for job in jobs:
        durations[job.key] = job.cost * math.exp((KNOWN_ERROR if pairs_are_known else spread) * rng.normal())
    return Case(jobs, durations)


def simulate(queue: JobQueue, durations: Mapping[str, float], slots: int) -> Outcome:
    """Run all jobs of a queue."""
    now = last_start = longest_wait = 0.0
    ends: list[tuple[float, str]] = []
    headed: dict[str, float] = {}  # since when a job has been the first of the line
    starts: dict[str, float] = {}
    while not queue.is_exhausted or ends:
        while (key := queue.pop()) is not None:
            starts[key] = last_start = now
            heapq.heappush(ends, (now + durations[key], key))
            if len(queue.jobs[key].bundles) > 1:
                longest_wait = max(longest_wait, now - headed.get(key, now))
        if queue.ready:
            headed.setdefault(queue.ready[0], now)
        now, key = heapq.heappop(ends)
        queue.done(key, succeeded=True)
    busy = sum(
        len(queue.jobs[key].bundles) * (min(start + durations[key], last_start) - start)
        for key, start in starts.items()
    )
    return Outcome(now, busy / (slots * last_start) if last_start else 1.0, longest_wait)


def lower_bound(case: Case, slots: int) -> float:
    """No order can be faster: the largest of work / slots, the critical path, and what of the work is left when the
    first pretraining ends / slots, until when no more slots than there are pretrainings can work.
    """
    durations = case.durations
    gpus = {job.key: len(job.bundles) for job in case.jobs}
    pretrainings = [job.key for job in case.jobs if job.parent is None]
    critical = max(durations[job.key] + durations.get(job.parent or "", 0.0) for job in case.jobs)
    work = sum(durations[key] * gpus[key] for key in durations)
    first_end = min(durations[key] for key in pretrainings)
    at_first = min(slots, sum(gpus[key] for key in pretrainings))
    return max(work / slots, critical, first_end + (work - at_first * first_end) / slots)


def with_barrier(case: Case, nodes: Sequence[Bundle], slots: int) -> float:
    """All pretrainings, then all fine-tunings."""
    stages: tuple[list[Job], list[Job]] = ([], [])
    for job in case.jobs:
        stages[job.parent is not None].append(job)
    return sum(simulate(JobQueue(stage, nodes), case.durations, slots).makespan for stage in stages)


def beyond(case: Case, slots: int) -> dict[str, float]:
    """By how many percent our makespan is above others, and that of a barrier above ours.

    The clairvoyant scheduler is the same line with the true durations for estimates. The blind one knows no more than
    ours, but its fine-tunings needn't wait for their pretrainings; it is held to the lower bound too. That is all to
    hope for where trials of the same estimate can't be told apart and run through once started: which of them comes
    last is chance, and with few waves of long ones, the last one decides.
    """
    nodes = [Bundle(slots)]

    def makespan(jobs: Iterable[Job]) -> float:
        return simulate(JobQueue(jobs, nodes), case.durations, slots).makespan

    ours, bound = makespan(case.jobs), lower_bound(case, slots)
    clairvoyant = makespan(replace(job, cost=case.durations[job.key]) for job in case.jobs)
    blind = max(bound, makespan(replace(job, parent=None) for job in case.jobs))
    barrier = with_barrier(case, nodes, slots)
    shares = {BOUND: ours / bound, CLAIRVOYANT: ours / clairvoyant, BLIND: ours / blind, BARRIER: barrier / ours}
    return {what: 100 * (share - 1) for what, share in shares.items()}


def compare(pairs_are_known: bool, seeds: int) -> None:
    """The table of all cases, means over seeds."""
    say("    makespan beyond, in %:                                       a barrier's")
    say(f"{'spread':>6} {'ratio':>5} {'slots':>5} {BOUND:>13} {CLAIRVOYANT:>13} {BLIND:>13} {BARRIER:>13}")
    means: dict[tuple[float, int, int], dict[str, float]] = {}
    for spread, ratio, slots in itertools.product(SPREADS, RATIOS, SLOTS):
        all_ = [beyond(make_case(ratio, spread, pairs_are_known, seed), slots) for seed in range(seeds)]
        mean = {what: statistics.mean(one[what] for one in all_) for what in all_[0]}
        means[spread, ratio, slots] = mean
        missed = "" if meets(mean, slots) else "  MISSED"
        say(f"{spread:6.1f} {ratio:5} {slots:5} " + " ".join(f"{figure:z13.1f}" for figure in mean.values()) + missed)
    few = [mean for (_, _, slots), mean in means.items() if slots < PAIRS]
    told("most beyond the lower bound, slots fewer than pairs", max(mean[BOUND] for mean in few), "%", most=MOST_BOUND)
    for what, name in ((CLAIRVOYANT, "the clairvoyant scheduler"), (BLIND, "the blind one that needn't wait")):
        told(f"most beyond {name}", max(mean[what] for mean in means.values()), "%", most=MOST_CLAIRVOYANT)
    say()


def meets(mean: Mapping[str, float], slots: int) -> bool:
    """Whether a case is as near to the bound and to the clairvoyant scheduler as asked for."""
    return (slots >= PAIRS or mean[BOUND] <= MOST_BOUND) and mean[CLAIRVOYANT] <= MOST_CLAIRVOYANT


class Overtaking(JobQueue):
    """What the line would be if whatever has room could start."""

    def next(self) -> str | None:
        """The first job that has room."""
        for key in self.ready:
            places = self.free_resources.take(self.jobs[key].bundles)
            if places is not None:
                self.running[key] = places
                self.ready.remove(key)
                return key
        return None


def mixed_case(every: int, seed: int) -> Case:
    """One in `every` of 24 pairs pretrains on 4 GPUs, in less time than the others; fine-tunings take one GPU."""
    rng = np.random.default_rng(seed)
    gpu = Bundle(1, 1)
    jobs = []
    for pair in range(24):
        wide = pair % every == 0
        pretraining = Job(f"{pair}", (gpu,) * (4 if wide else 1), 6.0 if wide else 10.0)
        jobs += [pretraining]
        jobs += [Job(f"{pair}-{number}", (gpu,), 1.0, pretraining.key) for number in range(FINE_TUNINGS)]
    return Case(jobs, {job.key: job.cost * math.exp(SPREADS[0] * rng.normal()) for job in jobs})


def compare_mixed(every: int, seeds: int) -> None:
    """Sweeps with pretrainings on 4 GPUs, on nodes of 8: our line, and one where what has room needn't wait."""
    cases = [mixed_case(every, seed) for seed in range(seeds)]
    for gpus in (8, 16):
        nodes = [Bundle(8, 8)] * (gpus // 8)
        for what, kind in (("the line", JobQueue), ("overtaking", Overtaking)):
            outcomes = [simulate(kind(case.jobs, nodes), case.durations, gpus) for case in cases]
            shares = [out.makespan / lower_bound(case, gpus) - 1 for out, case in zip(outcomes, cases, strict=True)]
            busy = 100 * statistics.mean(out.busy for out in outcomes)
            wait = max(out.longest_wait for out in outcomes)
            wide = f"one in {every}" if every > 1 else "all"
            say(f"{wide:8} {gpus:4} {what:12} {100 * statistics.mean(shares):13.1f} {busy:13.1f} {wait:13.1f}")


def main() -> None:
    """Simulate and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    say(f"{machine()}, {arguments.seeds} seeds")
    say(f"\nPairs differ, and the estimates know by how much; each trial is off by a factor of e^{KNOWN_ERROR} or so")
    compare(True, arguments.seeds)
    say("Estimates know only the stage: all pretrainings look the same, and all fine-tunings")
    compare(False, arguments.seeds)
    say(
        "Pretrainings on 4 GPUs: makespan beyond the bound and GPUs busy until the last trial starts, in %; the longest"
    )
    say("that one was the first of the line")
    say(f"{'on 4':8} {'GPUs':>4} {'':12} {BOUND:>13} {'busy':>13} {'waited':>13}")
    for every in (3, 1):
        compare_mixed(every, arguments.seeds)


if __name__ == "__main__":
    main()

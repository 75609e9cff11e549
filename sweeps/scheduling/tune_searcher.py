"""Searcher for Ray Tune that starts trials in the order of the job queue."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray.tune.search import Searcher

from sweeps.scheduling.job_queue import JobQueue
from trainables.execution.resources import Bundle

SEARCHER_ENVIRONMENT = {"TUNE_MAX_PENDING_TRIALS_PG": "100"}
"""Environment that lets several trial drivers start at the same time; otherwise, with a searcher, Tune starts them one
by one.

The job queue limits the number of running trials; TuneConfig(max_concurrent_trials=...) isn't used.
"""


class QueueSearcher(Searcher):
    """Searcher for Ray Tune that starts trials in the order of a job queue. Use it with TuneConfig(search_alg=...,
    num_samples=-1).

    `configs` are the trials' configs by key. `succeeded` returns whether a trial that ended without an error has
    finished: Tune does not distinguish finished trials from those that a scheduler has stopped. `nodes` returns the
    cluster's nodes, including those that an autoscaler may start, since a job that does not fit is never started; it is
    called for each suggestion. Tune asks for a suggestion after every event: at least ten times a second while trials
    run, and once a second otherwise.
    """

    def __init__(
        self,
        queue: JobQueue,
        configs: Mapping[str, dict[str, Any]],
        succeeded: Callable[[str], bool],
        nodes: Callable[[], Sequence[Bundle]],
    ) -> None:
        super().__init__()
        self.queue = queue
        self.configs = configs
        self.succeeded = succeeded
        self.nodes = nodes
        self.keys: dict[str, str] = {}  # keys of the running trials by Tune's ids

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles a sweep to restore it; here a sweep resumes from the ledger

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the config of the next trial to start; None if no trial can start now; FINISHED if none is
        left to start.
        """
        if self.queue.is_exhausted:
            return str(Searcher.FINISHED)
        self.queue.resize(self.nodes())
        key = self.queue.pop()
        if key is None:
            return None
        self.keys[trial_id] = key
        return self.configs[key]

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Report the end of the trial with Tune's id `trial_id` to the job queue, which frees its resources and, unless
        there was an `error` or it was stopped, makes the trials that depend on it ready. `result` is not used.
        """
        succeeded = not error and self.succeeded(self.keys[trial_id])
        self.queue.done(self.keys.pop(trial_id), succeeded)

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: a sweep resumes from the ledger."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: a sweep resumes from the ledger."""

"""Searcher for Ray Tune that starts trials in the order of the job queue."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray.tune.search import Searcher

from sweeps.scheduling.job_queue import JobQueue
from trainables.execution.resources import Bundle

SEARCHER_ENVIRONMENT = {"TUNE_MAX_PENDING_TRIALS_PG": "100"}
"""Environment that lets several trial drivers start at the same time; with a searcher, Tune starts them one by one
otherwise.

How many run is the queue's to say, not that of TuneConfig(max_concurrent_trials=...).
"""


class QueueSearcher(Searcher):
    """Searcher that starts trials in the order of a queue, for TuneConfig(search_alg=..., num_samples=-1).

    `configs` are the trials' configs by key. `succeeded` says whether a trial that came to its end without an error is
    finished: one that a scheduler has stopped isn't, and Tune doesn't tell them apart. `nodes` says what the cluster
    consists of, and is asked each time; where an autoscaler starts nodes only on demand, those that it may start belong
    to it, as nothing is asked for that has no room.

    Tune asks again whenever something has happened, at least ten times a second while trials run, and once a second
    while none does.
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
        self.keys: dict[str, str] = {}  # of the running trials, by Tune's ids

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles a sweep to restore it from; the ledger is what a sweep goes on from here

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the config of the trial to start; None if none can start now; FINISHED if none will."""
        if self.queue.is_exhausted:
            return str(Searcher.FINISHED)
        self.queue.resize(self.nodes())
        key = self.queue.pop()
        if key is None:
            return None
        self.keys[trial_id] = key
        return self.configs[key]

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Record the end of a trial."""
        succeeded = not error and self.succeeded(self.keys[trial_id])
        self.queue.done(self.keys.pop(trial_id), succeeded)

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: a sweep resumes from the ledger."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: a sweep resumes from the ledger."""

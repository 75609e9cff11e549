"""Rounds of trials, run until each trial has finished or failed; other commands may train some of the trials."""

import time
from collections.abc import Mapping

from sweeps.display.progress import SweepDisplay
from sweeps.scheduling import ray_tune
from sweeps.scheduling.ray_tune import SweepContext
from trainables.records import lease as leases
from trainables.records.ledger import Ledger
from trainables.trial import Trial

POLL_EVERY_S = 5.0
"""Interval in seconds at which a trial that another command trains is checked."""


def run_until_done(
    todo: Mapping[str, Trial],
    parents: Mapping[str, str | None],
    costs: Mapping[str, float],
    sweep: SweepContext,
    ledger: Ledger,
    display: SweepDisplay,
    max_concurrent: int | None,
    with_asha: bool,
) -> None:
    """Run trials until each has finished or failed.

    A trial that another command trains is waited for, and trained here if that command releases or loses its lease.
    """
    left, lost = dict(todo), set[str]()
    while left:
        held = {signature for signature in left if leases.find_holder(sweep.site.runs, signature)}
        free = {key: trial for key, trial in left.items() if not held & {key, parents[key]}}
        if free:
            ends = ray_tune.run_trials(free, parents, costs, sweep, ledger, display, max_concurrent, with_asha)
            lost |= {signature for signature, end in ends.items() if end in (ray_tune.FAILED, ray_tune.STOPPED)}
        else:
            time.sleep(POLL_EVERY_S)
        for signature in [key for key in left if ledger.find_finished_trial(key)]:
            display.show_finished(signature)
            del left[signature]
        left = {key: trial for key, trial in left.items() if not lost & {key, parents[key]}}

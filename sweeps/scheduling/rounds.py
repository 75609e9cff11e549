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
    """Run the trials in `todo`, by signature, until each has finished or failed, or has been stopped by the scheduler;
    a trial is not run if its pretraining fails. `parents` and `costs` have by signature each trial's pretraining (its
    signature; None if it has none) and expected duration in seconds. At most `max_concurrent` run at a time, or as many
    as fit on the cluster if that is None; `with_asha` stops unpromising ones early.

    A trial that another command trains is waited for, and trained here if that command releases or loses its lease.
    """
    remaining, unsuccessful = dict(todo), set[str]()
    while remaining:
        held = {signature for signature in remaining if leases.find_holder(sweep.site.runs, signature)}
        runnable = {key: trial for key, trial in remaining.items() if not held & {key, parents[key]}}
        if runnable:
            outcomes = ray_tune.run_trials(runnable, parents, costs, sweep, ledger, display, max_concurrent, with_asha)
            unsuccessful |= {
                signature for signature, outcome in outcomes.items() if outcome in (ray_tune.FAILED, ray_tune.STOPPED)
            }
        else:
            time.sleep(POLL_EVERY_S)
        for signature in [key for key in remaining if ledger.find_finished_trial(key)]:
            display.show_finished(signature)
            del remaining[signature]
        remaining = {key: trial for key, trial in remaining.items() if not unsuccessful & {key, parents[key]}}

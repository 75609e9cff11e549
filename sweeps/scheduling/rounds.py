"""Rounds of trials, run until each trial has finished or failed; other commands may train some of the trials."""

import time
from collections.abc import Mapping

from sweeps.display.progress import SweepDisplay
from sweeps.planning.stages import Requirements, iter_all_required
from sweeps.scheduling import ray_tune
from sweeps.scheduling.ray_tune import SweepContext
from trainables.records import lease as leases
from trainables.records.ledger import Ledger
from trainables.trial import Trial

POLL_EVERY_S = 5.0
"""Interval in seconds at which a trial that another command trains is checked."""


def run_until_done(
    todo: Mapping[str, Trial],
    requirements: Requirements,
    costs: Mapping[str, float],
    sweep: SweepContext,
    ledger: Ledger,
    display: SweepDisplay,
    max_concurrent: int | None,
    with_asha: bool,
) -> None:
    """Run the trials in `todo`, by signature, until each has finished or failed, or has been stopped by the scheduler;
    a trial is not run if one that it requires fails. `requirements` and `costs` have by signature what each trial
    requires and its expected duration in seconds. At most `max_concurrent` run at a time, or as many as fit on the
    cluster if that is None; `with_asha` stops unpromising ones early.

    A trial that another command trains is waited for, and trained here if that command releases or loses its lease.
    """
    remaining, unsuccessful = dict(todo), set[str]()
    while remaining:
        held = {signature for signature in remaining if leases.find_holder(sweep.site.runs, signature)}
        runnable = without_dependents(remaining, held, requirements)
        if runnable:
            outcomes = ray_tune.run_trials(
                runnable, requirements, costs, sweep, ledger, display, max_concurrent, with_asha
            )
            unsuccessful |= {
                signature for signature, outcome in outcomes.items() if outcome in (ray_tune.FAILED, ray_tune.STOPPED)
            }
        else:
            time.sleep(POLL_EVERY_S)
        for signature in [key for key in remaining if ledger.find_finished_trial(key)]:
            display.show_finished(signature)
            del remaining[signature]
        remaining = without_dependents(remaining, unsuccessful, requirements)


def without_dependents(trials: Mapping[str, Trial], excluded: set[str], requirements: Requirements) -> dict[str, Trial]:
    """Return the trials, by signature, without the excluded ones and those that require one of them."""
    return {key: trial for key, trial in trials.items() if not excluded & {*iter_all_required(key, requirements)}}

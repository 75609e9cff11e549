"""Rounds of trials, run until each has finished or failed; other commands may train some of them."""

import time
from collections.abc import Mapping

from sweeps.display.progress import Display
from sweeps.scheduling import ray_tune
from sweeps.scheduling.ray_tune import Sweep
from trainables.records import lease as leases
from trainables.records.ledger import Ledger
from trainables.trial import Trial

ASK_EVERY_S = 5.0
"""Interval in seconds at which a trial that another command trains is checked."""


def run_all(
    todo: Mapping[str, Trial],
    parents: Mapping[str, str | None],
    costs: Mapping[str, float],
    sweep: Sweep,
    ledger: Ledger,
    display: Display,
    max_concurrent: int | None,
    with_asha: bool,
) -> None:
    """Run trials until each has finished or failed; a trial of another command is waited for, or taken over."""
    left, lost = dict(todo), set[str]()
    while left:
        held = {signature for signature in left if leases.holder(sweep.site.runs, signature)}
        free = {key: trial for key, trial in left.items() if not held & {key, parents[key]}}
        if free:
            ends = ray_tune.run(free, parents, costs, sweep, ledger, display, max_concurrent, with_asha)
            lost |= {signature for signature, end in ends.items() if end in (ray_tune.FAILED, ray_tune.STOPPED)}
        else:
            time.sleep(ASK_EVERY_S)
        for signature in [key for key in left if ledger.finished(key)]:
            display.finished(signature)
            del left[signature]
        left = {key: trial for key, trial in left.items() if not lost & {key, parents[key]}}

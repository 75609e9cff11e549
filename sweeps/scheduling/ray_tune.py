"""Execution of a sweep's trials by Ray Tune.

Each trial is claimed by its lease, trained, and marked as finished after its artifacts have been read back.
"""

import dataclasses
import functools
import os
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.execution import class_cache
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from data.runtime.printable import hide_credentials
from sweeps.display.progress import SweepDisplay
from sweeps.planning.stages import Requirements
from sweeps.scheduling.job_queue import Job, JobQueue
from sweeps.scheduling.tune_searcher import SEARCHER_ENVIRONMENT, QueueSearcher
from trainables import trial as trial_records
from trainables.execution.nodes import list_nodes
from trainables.execution.resources import DRIVER_CPUS, Allocation, Bundle
from trainables.execution.session import RunContext, TrainingJob, train_in_process
from trainables.records import lease as leases
from trainables.records.lease import Heartbeat, Holder
from trainables.records.ledger import Ledger
from trainables.records.mlflow_ledger import MlflowLedger
from trainables.records.timing import Metrics
from trainables.signature import Relations
from trainables.training.compute import Execution
from trainables.trial import Trial

QUIET_TUNE = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the sweep within seconds
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # MLflow has the results
    "RAY_AIR_NEW_OUTPUT": "0",
    **SEARCHER_ENVIRONMENT,
}

THREAD_TIMEOUT_S = "600"
"""Time in seconds that Tune waits for the thread of a stopped trial, which may be writing a checkpoint."""

FINISHED, HELD, FAILED, STOPPED = "finished", "held", "failed", "stopped"
"""Outcomes of a trial. The first three are keys of the metrics reported to Tune; a trial that reported none of them was
stopped by the scheduler.
"""

MAX_RESTARTS = 3
"""Maximum number of restarts of a trial whose driver was lost; each resumes from the last checkpoint."""

REDUCTION_FACTOR = 4
"""Reduction factor of ASHA: one of so many trials continues at each rung (Ray's default)."""


@dataclass(frozen=True)
class SweepContext:
    """Settings of a sweep that are sent to the processes of its trials."""

    run_id: str
    tracking_uri: str
    experiment_id: str
    command: str  # identifier under which leases are held
    site: RunContext
    resources: Mapping[str, Allocation]  # by the name of the stage
    execution: Execution


def run_trial(config: dict[str, Any], sweep: SweepContext) -> dict[str, Any]:
    """Train one trial; Ray Tune calls this function in the trial's process. Return the metrics of the best epoch and
    the key 'finished'; or only the key 'held' if another command holds the trial's lease, or 'failed', with the
    traceback, after an error. `config` has the trial, `sweep` what all trials of the sweep share.

    Errors of a trial are reported as an outcome, not raised: Tune retries a function that raises, which is meant for
    lost drivers.
    """
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", THREAD_TIMEOUT_S)
    work, runs = config["work"], sweep.site.runs
    signature, trial = work["signature"], trial_records.from_json(work["trial"])
    ledger = MlflowLedger(sweep.tracking_uri, sweep.experiment_id)
    lease = leases.acquire(runs, signature, sweep.command)
    if isinstance(lease, Holder):
        return {HELD: True}
    with Heartbeat(runs, lease, sweep.command):
        if run := ledger.find_finished_trial(signature):
            return ledger.load_best_metrics(run) | {FINISHED: True}
        relations = Relations(**work["relations"])
        run_id = ledger.claim(trial, signature, sweep.run_id, relations)
        resources = sweep.resources[trial.stage]
        try:
            metrics = train_and_report(
                TrainingJob(trial, lease, run_id, sweep.site, resources, sweep.execution, relations)
            )
            lease.require(runs)
        except Exception:
            if not lease.is_held(runs):  # another process trains this trial, so the error does not matter
                return {HELD: True}
            ledger.mark_ended(run_id, "FAILED")
            return {FAILED: traceback.format_exc()}
        ledger.finish(run_id)
    return metrics | {FINISHED: True}


def trains_in_process(resources: Allocation) -> bool:
    """Return whether a trial with these resources is trained in the process that Ray Tune starts for it, which
    holds for a single worker.

    Tune's process is re-used for the next trial, which saves the start-up and the imports. If a trial has several
    workers, Ray Train starts them for this trial, while Tune's process waits for them.
    """
    return resources.workers == 1


def train_and_report(job: TrainingJob) -> Metrics:
    """Train a trial, report each epoch's metrics to Tune, and return the metrics of the best epoch."""
    if trains_in_process(job.resources):
        return train_in_process(job, tune.report)
    from ray.tune.integration.ray_train import TuneReportCallback

    from trainables.execution.ray_adapter import fit

    return fit(job, [TuneReportCallback()])


def bundle_of_process(resources: Allocation) -> Bundle:
    """Return the resources of the process that Ray Tune starts for a trial: those of a worker if it trains in this
    process, or a small share of a CPU if the process only waits for workers.
    """
    return resources.worker if trains_in_process(resources) else Bundle(DRIVER_CPUS)


def make_job(signature: str, requires: tuple[str, ...], cost: float, resources: Allocation) -> Job:
    """Return the job of a trial for the job queue; the trial needs these resources. `requires` has the signatures of
    the trials that must finish first, and `cost` is its expected duration in seconds.
    """
    workers = [] if trains_in_process(resources) else [resources.worker] * resources.workers
    return Job(signature, (bundle_of_process(resources), *workers), cost, requires)


def resources_of_process(config: Mapping[str, Any], sweep: SweepContext) -> tune.PlacementGroupFactory:
    """Return the resources that Ray Tune reserves for the process of a trial. `config` is the dictionary that Tune
    passes to `run_trial` and that names the trial's stage, and `sweep` has the resources of each stage.
    """
    bundle = bundle_of_process(sweep.resources[config["work"]["stage"]])
    return tune.PlacementGroupFactory([{"CPU": bundle.cpus} | ({"GPU": bundle.gpus} if bundle.gpus else {})])


class TuneCallback(tune.Callback):
    """Callback that shows the events of Ray Tune on the display, and releases the leases of trials that a scheduler
    has stopped.
    """

    def __init__(self, display: SweepDisplay, sweep: SweepContext, ledger: Ledger) -> None:
        self.display, self.sweep, self.ledger = display, sweep, ledger

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles a sweep to restore it; here a sweep resumes from the ledger

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Show on the display that a trial has started. Ray Tune calls this method; only `trial` is used."""
        self.display.show_start(trial.config["work"]["signature"])

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Show an epoch of a trial on the display when the trial reports its metrics, `result`. Ray Tune calls this
        method; the other arguments are not used.
        """
        if "train_loss" in result and FINISHED not in result:
            self.display.show_epoch(trial.config["work"]["signature"], result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Show the outcome of a trial that ended without an error, and release its lease if the scheduler has stopped
        it. Ray Tune calls this method; only `trial` is used.
        """
        signature = trial.config["work"]["signature"]
        outcome = find_outcome(trial.last_result)
        if outcome == STOPPED:
            release_trials(self.ledger, self.sweep, [signature])
        self.display.show_end(signature, "held by another command" if outcome == HELD else outcome)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Release the lease of a trial whose process was lost more often than MAX_RESTARTS, and show it as failed. Ray
        Tune calls this method; only `trial` is used.
        """
        release_trials(self.ledger, self.sweep, [trial.config["work"]["signature"]])
        self.display.show_end(trial.config["work"]["signature"], FAILED)


def find_outcome(result: Mapping[str, Any]) -> str:
    """Return the outcome of a trial ('finished', 'held', 'failed' or 'stopped'), given the last result that it
    reported to Ray Tune.
    """
    return next((outcome for outcome in (FINISHED, HELD, FAILED) if outcome in result), STOPPED)


def release_trials(ledger: Ledger, sweep: SweepContext, signatures: Sequence[str]) -> None:
    """Release the leases that this command holds of the trials with these signatures, and mark those that no process
    trains any more as KILLED.
    """
    for signature in signatures:
        leases.release_own(sweep.site.runs, signature, sweep.command)
        run = ledger.find_trial(signature)
        if run and run.status == "RUNNING" and not leases.find_holder(sweep.site.runs, signature):
            ledger.mark_ended(run.run_id, "KILLED")


class AshaByStage(FIFOScheduler):
    """Scheduler for Ray Tune that stops unpromising trials by asynchronous successive halving (Li et al. 2018).
    Pretrainings and fine-tunings are compared separately. `epochs` is the maximum number of epochs by stage.
    """

    def __init__(self, epochs: Mapping[str, int]) -> None:
        super().__init__()
        self.schedulers = {
            stage: ASHAScheduler(
                "epoch", "best_map10", "max", max_epochs, reduction_factor=REDUCTION_FACTOR, stop_last_trials=False
            )
            for stage, max_epochs in epochs.items()
        }

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Add a trial to those of its stage, with which it is compared."""
        self.schedulers[trial.config["work"]["stage"]].on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Return Ray Tune's decision after a trial has reported the metrics `result`: CONTINUE or STOP. A trial without
        training, whose only epoch costs nothing more, continues.
        """
        config = trial.config["work"]["trial"]
        if FINISHED in result or config.get("average_of") or not config["schedule"]["epochs"]:
            return str(TrialScheduler.CONTINUE)
        return str(self.schedulers[trial.config["work"]["stage"]].on_trial_result(tune_controller, trial, result))


def run_trials(
    trials: Mapping[str, Trial],
    requirements: Requirements,
    costs: Mapping[str, float],
    sweep: SweepContext,
    ledger: Ledger,
    display: SweepDisplay,
    max_concurrent: int | None,
    with_asha: bool,
) -> dict[str, str]:
    """Run trials through Ray Tune, each after the trials that it requires have finished, and return the outcome of each
    that was started, by signature. `requirements` and `costs` have by signature what each trial requires and its
    expected duration in seconds. At most `max_concurrent` run at a time, or as many as fit on the cluster if that is
    None; `with_asha` stops unpromising ones early.

    The outcome is 'finished', 'failed', 'stopped' by the scheduler, or 'held' by another command. A failed trial does
    not stop the others. Trials held by another command, and trials that require one that failed, was stopped or is
    held, are not run.
    """
    jobs, configs = [], {}
    for signature, trial in trials.items():
        relations = requirements[signature]
        jobs.append(make_job(signature, relations.required, costs[signature], sweep.resources[trial.stage]))
        configs[signature] = {
            "work": {
                "signature": signature,
                "relations": dataclasses.asdict(relations),
                "stage": trial.stage,
                "trial": trial_records.to_json(trial),
            }
        }
    # Ray re-uses pre-started processes only for tasks that set no environment variables. Tune sets this variable for
    # PyTorch Lightning, which isn't used here.
    class_cache.DEFAULT_ENV_VARS.pop("PL_DISABLE_FORK", None)
    queue = JobQueue(jobs, list_nodes(), max_concurrent)
    epochs = {trial.stage: 1 for trial in trials.values()}
    for trial in trials.values():
        epochs[trial.stage] = max(epochs[trial.stage], trial.epochs)
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(run_trial, sweep=sweep), functools.partial(resources_of_process, sweep=sweep)
        ),
        tune_config=tune.TuneConfig(
            search_alg=QueueSearcher(
                queue, configs, lambda signature: bool(ledger.find_finished_trial(signature)), list_nodes
            ),
            num_samples=-1,
            scheduler=AshaByStage(epochs) if with_asha else None,
            # Stopping a trial ends a training in its own process, but not one in the workers of Ray Train.
            reuse_actors=not with_asha or all(trains_in_process(allocation) for allocation in sweep.resources.values()),
        ),
        run_config=tune.RunConfig(
            name=sweep.run_id,
            storage_path=str(sweep.site.runs.local_folder / "tune"),
            callbacks=[TuneCallback(display, sweep, ledger)],
            failure_config=tune.FailureConfig(max_failures=MAX_RESTARTS),
            verbose=0,
        ),
    )
    outcomes = {}
    for result in tuner.fit():
        signature = result.config["work"]["signature"]
        outcomes[signature] = FAILED if result.error else find_outcome(result.metrics)
        if outcomes[signature] == FAILED:
            error = str(result.error or result.metrics[FAILED]).strip()
            error_file = Path(result.path) / "error.txt"
            error_file.write_text(hide_credentials(error), encoding="utf-8")
            display.console.print_line(
                f"{trials[signature].name} failed: {error.splitlines()[-1]} (see {error_file})", soft_wrap=False
            )
    return outcomes

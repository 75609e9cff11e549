"""Run a sweep: each encoder pair is pretrained once, then fine-tuned in several ways.

python sweeps/grid.py [--space demo] [--corpus synthetic] [--store DIR] [--runs DIR] [--name SWEEP]
"""

import argparse
import datetime
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from rich.console import Console
from rich.table import Table

from data.errors import positive, run_command
from data.prepare import prepare_if_absent, start_ray
from data.splits import add_arguments as add_split_arguments
from data.splits import find_splits
from data.storage import Location, Store
from sweeps.progress import Display, Line
from sweeps.spaces import named, space
from trainables import trial as trials
from trainables.ledger import Ledger, create_ledger
from trainables.ray_adapter import TRAIN_ENVIRONMENT, Resources, Site, best_metrics, fit
from trainables.train import Execution
from trainables.trial import Trial, fastest_precision

DRIVER_CPUS = 0.01
"""Of a trial's driver, which only waits for its workers: with a whole CPU each, drivers would starve them."""

QUIET_TUNE = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the sweep within seconds
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # MLflow has the results
} | TRAIN_ENVIRONMENT

COLUMNS = {"map10": "mAP@10", "r1": "R@1", "r5": "R@5", "r10": "R@10"}


@dataclass(frozen=True)
class Sweep:
    """What a trial needs to know of the sweep that runs it."""

    run_id: str
    tracking_uri: str
    experiment_id: str
    site: Site
    resources: Resources
    execution: Execution


class ShowProgress(tune.Callback):
    """Passes what Tune says of trials on to the display."""

    def __init__(self, display: Display) -> None:
        self.display = display

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles a sweep to restore it from; the ledger is what a sweep goes on from here

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has started."""
        self.display.start(trial.config["work"]["signature"])

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial has reported an epoch."""
        if "best_map10" in result and not result.get("done"):
            self.display.epoch(trial.config["work"]["signature"], int(result["epoch"]), result["best_map10"])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has ended well."""
        self.display.end(trial.config["work"]["signature"], "finished")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has failed."""
        self.display.end(trial.config["work"]["signature"], "failed")


def run_trial(config: dict[str, Any], sweep: Sweep) -> dict[str, float]:
    """A trial, as Tune runs it: claimed, trained, and marked as finished once its artifacts have been read back."""
    work = config["work"]
    signature, trial = work["signature"], trials.from_json(work["trial"])
    ledger = Ledger(sweep.tracking_uri, sweep.experiment_id)
    run_id = ledger.claim(trial, signature, sweep.run_id)
    try:
        metrics = fit(
            trial,
            signature,
            work["parent"],
            run_id,
            sweep.site,
            sweep.resources,
            sweep.execution,
            [TuneReportCallback()],
        )
    except Exception:
        ledger.give_up(run_id, "FAILED")
        raise
    ledger.finish(run_id)
    return metrics


def by_stage(wanted: Sequence[Trial], store: Location, weights: Path | None = None) -> list[dict[str, Trial]]:
    """The trials of each stage by signature: those without a pretraining first, each trial once."""
    with_parents = [parent for trial in wanted if (parent := trial.pretraining)] + list(wanted)
    stages: list[dict[str, Trial]] = [{}, {}]
    for trial in with_parents:
        stages[trial.pretraining is not None].setdefault(trials.signature(trial, store, weights), trial)
    return stages


def share_resources(max_concurrent: int | None, num_trials: int) -> tuple[Resources, Execution, int]:
    """What each trial gets of the cluster, and how many run at a time: as many as there are GPUs, or else CPUs."""
    available = ray.cluster_resources()
    cpus, gpus = int(available.get("CPU", 0)), int(available.get("GPU", 0))
    slots = min(gpus or cpus, num_trials)
    concurrent = min(slots, max_concurrent or slots)
    threads = max(1, cpus // max(1, concurrent))
    # What is left below a whole CPU makes room for the drivers.
    resources = Resources(
        cpus_per_worker=threads - 2 * DRIVER_CPUS,
        gpus_per_worker=1.0 if gpus else 0.0,
        threads=threads,
    )
    return resources, Execution(loader_workers=threads - 1 if gpus else 0), concurrent


def run_stage(stage: dict[str, Trial], sweep: Sweep, concurrent: int, name: str, display: Display) -> None:
    """Run the trials of one stage through Ray Tune. A trial that fails doesn't stop the others."""
    store, weights = sweep.site.store, sweep.site.weights
    work = [
        {
            "signature": signature,
            "parent": trials.signature(trial.pretraining, store, weights) if trial.pretraining else None,
            "trial": trials.to_json(trial),
        }
        for signature, trial in stage.items()
    ]
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(run_trial, sweep=sweep), {"cpu": DRIVER_CPUS}),
        param_space={"work": tune.grid_search(work)},
        tune_config=tune.TuneConfig(max_concurrent_trials=concurrent, reuse_actors=True),
        run_config=tune.RunConfig(
            name=name, storage_path=str(sweep.site.runs / "tune"), callbacks=[ShowProgress(display)], verbose=0
        ),
    )
    for result in tuner.fit():
        if result.error:
            reason = str(result.error).strip().splitlines()[-1]
            say(f"{stage[result.config['work']['signature']].name} failed: {reason} (see {result.path}/error.txt)")


def say(message: str = "") -> None:
    """A line for whoever runs the command."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(message)


def show_results(ledger: Ledger, stages: Sequence[dict[str, Trial]]) -> int:
    """A table of the trials, the best by validation mAP@10 first; returns how many aren't finished."""
    rows, unfinished = [], []
    for signature, trial in (item for stage in stages for item in stage.items()):
        run = ledger.finished(signature)
        if run is None:
            unfinished.append(trial.name)
        else:
            rows.append((best_metrics(ledger.client, run.info.run_id), trial.name, signature))
    rows.sort(key=lambda row: (-row[0]["map10"], row[2]))
    table = Table(title="Finished trials, on the validation split", title_justify="left", box=None)
    for heading in ("trial", "best epoch", *COLUMNS.values(), "signature"):
        table.add_column(heading, justify="left" if heading in ("trial", "signature") else "right", no_wrap=True)
    for metrics, name, signature in rows:
        values = [f"{100 * metrics[column]:.2f}" for column in COLUMNS]
        table.add_row(name, f"{metrics['best_epoch']:.0f}", *values, signature)
    Console(width=max(160, Console().width)).print(table)
    for name in unfinished:
        say(f"not finished: {name}")
    return len(unfinished)


def run_sweep(arguments: argparse.Namespace) -> int:
    """Everything the command does; returns its exit status."""
    whole, runs = Store.of(arguments.store), arguments.runs.resolve()
    store = whole.location
    prepare_if_absent(arguments.corpus, whole)
    splits = find_splits(arguments.corpus, whole, arguments.pretrain_on, arguments.hold_out)
    wanted = space(arguments.space)(splits, fastest_precision())
    weights = arguments.weights.resolve() if arguments.weights else None
    stages = by_stage(wanted, store, weights)
    ledger = create_ledger(runs)
    todo = [{key: trial for key, trial in stage.items() if not ledger.finished(key)} for stage in stages]
    num_todo = sum(map(len, todo))

    start_ray()
    resources, execution, concurrent = share_resources(arguments.max_concurrent, max(map(len, todo), default=1) or 1)
    device = "GPU" if resources.gpus_per_worker else "CPU"
    say(f"Sweep {arguments.name}: space {arguments.space} on corpus {arguments.corpus}")
    say(f"  {len(stages[0])} pretrainings, then {len(stages[1])} fine-tunings; {num_todo} of them are still to be run")
    say(f"  {concurrent} at a time, each on one {device} with {resources.threads} threads, in {wanted[0].precision}")
    say(f"  corpus in {whole}, results in {runs}")

    signatures = [signature for stage in stages for signature in stage]
    description = {"space": arguments.space, "corpus": arguments.corpus, "store": str(whole)}
    run_id = ledger.start_sweep(arguments.name, signatures, description)
    site = Site(store, runs, ledger.tracking_uri, weights)
    sweep = Sweep(run_id, ledger.tracking_uri, ledger.experiment_id, site, resources, execution)
    lines = {key: Line(trial.name, trial.schedule.epochs) for stage in todo for key, trial in stage.items()}
    try:
        with Display(lines, Console(soft_wrap=True)) as display:
            for name, stage in zip(("pretraining", "fine-tuning"), todo, strict=True):
                ready = {key: trial for key, trial in stage.items() if pretrained(trial, site, ledger)}
                if ready:
                    run_stage(ready, sweep, concurrent, f"{arguments.name}-{name}", display)
    except KeyboardInterrupt:
        for signature in lines:
            run = ledger.trial_run(signature)
            if run and run.info.status == "RUNNING":
                ledger.give_up(run.info.run_id, "KILLED")
        ledger.give_up(run_id, "KILLED")
        say(f"\nInterrupted. To go on, from the last epoch of each trial: {command_line(arguments)}")
        raise
    num_unfinished = show_results(ledger, stages)
    if num_unfinished:
        ledger.give_up(run_id, "FAILED")
    else:
        ledger.finish(run_id)
    say()
    say(f"To look at the runs:  mlflow ui --backend-store-uri {ledger.tracking_uri}")
    say(f"Next:                 {next_command(arguments)}")
    return 1 if num_unfinished else 0


def pretrained(trial: Trial, site: Site, ledger: Ledger) -> bool:
    """Whether a trial can start: it needs no pretraining, or has a finished one."""
    return not trial.pretraining or bool(ledger.finished(trials.signature(trial.pretraining, site.store, site.weights)))


def command_line(arguments: argparse.Namespace) -> str:
    """The command that goes on with this sweep."""
    options = {name: value for name, value in vars(arguments).items() if value not in (None, [])}
    words = []
    for name, value in options.items():
        words += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, list) else [value])]
    return shlex.join(["python", "sweeps/grid.py", *words])


def next_command(arguments: argparse.Namespace) -> str:
    """The command that selects the ensemble."""
    return shlex.join(
        ["python", "ensemble/select.py", "--metric", "map10", "--runs", str(arguments.runs), "--sweep", arguments.name]
    )


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="grid.py", description="Train the trials of a space.")
    parser.add_argument(
        "--space",
        default="demo",
        help=f"one of: {', '.join(sorted(named()))}, or path/to/file.py:function (default: %(default)s)",
    )
    add_split_arguments(parser)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where results go (default: %(default)s)")
    parser.add_argument(
        "--name", default=f"{datetime.datetime.now():%Y-%m-%d-%H%M%S}", help="of the sweep (default: dated)"
    )
    parser.add_argument(
        "--weights", type=Path, metavar="DIR", help="a folder of published checkpoints, where nothing can be fetched"
    )
    parser.add_argument("--max-concurrent", type=positive, help="trials at a time (default: one a GPU, or else a CPU)")
    arguments = parser.parse_args()
    os.environ.update(QUIET_TUNE)
    return run_sweep(arguments)


if __name__ == "__main__":
    run_command(main)

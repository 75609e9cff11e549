"""Run a sweep: pretrain each encoder pair once, then fine-tune it with several settings.

If the command is interrupted, re-run it to resume. Finished trials are never run again.

Examples:
    python sweeps/grid.py
    python sweeps/grid.py --space table2 --corpus clotho --store store --dry-run

Guide: docs/sweeps.md
"""

import datetime
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from data.errors import UserError, parse_positive_int
from data.runtime.command_line import command
from data.runtime.console import PlainConsole
from data.runtime.options import Command, group, option, positional, run_command
from data.runtime.printable import parse_bare_name
from data.runtime.tables import print_table
from data.splits import SplitOptions, Splits, is_built_on_demand
from data.store.storage import Store, StoreOptions
from sweeps.display.progress import SweepDisplay, TrialProgress, build_table, load_progress
from sweeps.display.results import (
    format_mlflow_command,
    format_resume_command,
    format_select_command,
    print_line,
    show_results,
)
from sweeps.planning.distillation import DistillationOptions, make_students
from sweeps.planning.retraining import FirstStage, Retraining, build_retrained_ensemble, plan_retrainings
from sweeps.planning.stages import Stages, find_finished, find_requirements, group_by_stage, mark_damaged
from sweeps.spaces import Space, check_trials, find_space, list_spaces, with_seeds
from trainables.execution.resources import (
    Allocation,
    Bundle,
    ComputeOptions,
    allocate,
    count_placeable_workers,
    require_placeable,
)
from trainables.records import lease as leases
from trainables.records.ensemble_file import Ensemble, read_ensemble, write_ensemble
from trainables.records.ledger import Ledger
from trainables.records.mlflow_ledger import LedgerOptions, MlflowLedger
from trainables.signature import read_fingerprints
from trainables.trial import Precision, Trial

OptionsT = TypeVar("OptionsT", bound="SweepOptions")

Scheduler = Literal["none", "asha"]


@dataclass(frozen=True, kw_only=True)
class SpaceOptions:
    """Command-line options that determine the trials of a sweep."""

    space: str = option(f"space of trials: {', '.join(sorted(list_spaces()))}, or path/to/file.py:function", "demo")
    splits: SplitOptions = group("data")
    seeds: int | None = option("number of seeds for each fine-tuning", None, type=parse_positive_int)
    pretraining_seeds: int | None = option(
        "number of seeds for each pretraining and its fine-tunings", None, type=parse_positive_int
    )
    scheduler: Scheduler = option("asha stops unpromising trials early", "none")
    precision: Precision | None = option("precision (default: the fastest that the hardware supports)", None)
    distillation: DistillationOptions = group("distillation")


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """Command-line options that sweeping a space and retraining an ensemble share."""

    ledger: LedgerOptions = group("results")
    name: str = option("name of the sweep (default: the date)", "", type=parse_bare_name)
    dry_run: bool = option("print the trials and the estimated cost, then exit", False)
    weights: Path | None = option(
        "folder of published checkpoints, for machines without internet", None, metavar="DIR")  # fmt: skip
    compute: ComputeOptions = group("compute")
    pretraining_workers: int | None = option(
        "workers per pretraining (default: --workers)", None, type=parse_positive_int, section="compute"
    )
    max_concurrent: int | None = option(
        "concurrent trials (default: one per GPU or CPU)", None, type=parse_positive_int, section="compute"
    )

    def allocate_by_stage(self, nodes: Sequence[Bundle], num_trials: int) -> dict[str, Allocation]:
        """Return the resources of each of `num_trials` trials by stage. Raises UserError if none fits on the nodes."""
        fine_tuning = allocate(nodes, self.compute.request, num_trials, self.max_concurrent)
        pretraining = replace(fine_tuning, workers=self.pretraining_workers or fine_tuning.workers)
        require_placeable(pretraining, nodes)
        return {"pretraining": pretraining, "fine-tuning": fine_tuning}


@dataclass(frozen=True, kw_only=True)
class Options(SweepOptions, SpaceOptions):
    """Command-line options of a sweep."""


@dataclass(frozen=True, kw_only=True)
class RetrainOptions(SweepOptions, StoreOptions):
    """Command-line options of a retraining."""

    ensemble: Path = positional("ensemble.json whose members are retrained")
    retrain_from: FirstStage = option("first stage to retrain", "pretraining")


@dataclass(frozen=True, kw_only=True)
class StatusOptions:
    """Command-line options of the command `status`, which prints the progress of a sweep."""

    ledger: LedgerOptions = group("results")
    name: str | None = option("name of the sweep (default: the newest)", None)


@dataclass(frozen=True)
class SweepPlan:
    """Definition of a sweep: its trials, their store, the nodes of the cluster, and what the ledger keeps about it."""

    title: str
    command: str  # command that resumes the sweep
    trials: Sequence[Trial]
    store: Store
    cluster: Sequence[Bundle]
    description: Mapping[str, Any]
    scheduler: Scheduler = "none"


def run_space(options: Options) -> int:
    """Run the trials of a space as a sweep. Return the exit status: 1 if a trial did not finish, otherwise 0."""
    named_space = find_space(options.space)  # refuse an unknown name before anything is started
    options = with_default_name(options)
    store, corpus = Store.of(options.splits.store), options.splits.corpus
    splits = None if is_built_on_demand(corpus, store) else options.splits.resolve_splits(store)
    ledger = options.ledger.create()
    cluster = start_cluster(options)
    plan = SweepPlan(
        title=f"space {options.space} on corpus {corpus}",
        command=format_resume_command(options),
        trials=build_trials(options, named_space, splits or prepare_splits(options.splits, store), cluster),
        store=store,
        cluster=cluster,
        description={"space": options.space, "corpus": corpus, "retrain": None},
        scheduler=options.scheduler,
    )
    stages, num_unfinished = run_sweep(options, plan, ledger)
    if stages:
        print_line(f"Next:                 {format_select_command(options.ledger, options.name)}")
    return 1 if num_unfinished else 0


def retrain(options: RetrainOptions) -> int:
    """Retrain the members of an ensemble on all splits; the exit status is 1 if a trial didn't finish.

    Examples:
        python sweeps/grid.py retrain runs/ensembles/NAME/ensemble.json --store store --name final
        python sweeps/grid.py retrain ensemble.json --store store --retrain-from finetuning
    """
    options = with_default_name(options)
    ensemble, store = read_ensemble(options.ensemble), Store.of(options.store)
    retrainings = plan_retrainings(ensemble, options.ensemble, options.retrain_from)
    ledger = options.ledger.create()
    path = options.ledger.location.local_folder / "ensembles" / options.name / "ensemble.json"
    identity = [str(options.ensemble.resolve()), options.retrain_from]
    require_unused_name(options, path, identity, ledger)
    plan = SweepPlan(
        title=f"retraining {options.ensemble}",
        command=format_resume_command(options, "retrain", str(options.ensemble)),
        trials=list_retrained_trials(retrainings),
        store=store,
        cluster=start_cluster(options),
        description={"space": None, "corpus": None, "retrain": identity},
    )
    stages, num_unfinished = run_sweep(options, plan, ledger)
    if stages and not num_unfinished:
        write_retrained_ensemble(path, ensemble, retrainings, stages, ledger)
    return 1 if num_unfinished else 0


def with_default_name(options: OptionsT) -> OptionsT:
    """Return the options with the present date and time as the sweep's name if it has none."""
    return replace(options, name=options.name or f"{datetime.datetime.now():%Y-%m-%d-%H%M%S}")


def run_sweep(options: SweepOptions, plan: SweepPlan, ledger: MlflowLedger) -> tuple[Stages, int]:
    """Run the unfinished trials of a sweep. Return all trials by stage, and the number of trials that did not finish. A
    dry run only prints the trials and their estimated cost, and returns no stages and 0.
    """
    runs, store, trials, nodes = options.ledger.location, plan.store.location, plan.trials, plan.cluster
    weights = options.weights.resolve() if options.weights else None
    fingerprints = read_fingerprints(trials, store, weights)
    stages = group_by_stage(trials, fingerprints)
    trials_by_signature = {signature: trial for stage in stages for signature, trial in stage.items()}
    finished = find_finished(trials_by_signature, ledger, runs)
    unfinished = {signature: trial for signature, trial in trials_by_signature.items() if signature not in finished}
    from sweeps.planning import estimate

    if options.dry_run:
        print_table(PlainConsole(), estimate.build_estimate_table(stages, finished, store))
        print_line(estimate.describe_estimate(stages, finished, store))
        return [], 0

    from trainables.networks.validation import require_working_encoders

    mark_damaged(unfinished, ledger, runs)
    require_working_encoders(unfinished.values(), weights)
    resources = options.allocate_by_stage(nodes, max((len(stage) for stage in stages), default=1))
    print_line(f"Sweep {options.name}: {plan.title}")
    print_line(
        f"  {len(stages[0])} pretrainings, then {len(stages[1])} fine-tunings; "
        f"{len(unfinished)} of them are still to be run"
    )
    print_line(f"  {describe_allocation(resources, nodes, options.max_concurrent)}, in {trials[0].precision}")
    print_line(f"  corpus in {plan.store}, results in {runs}")

    from sweeps.scheduling import ray_tune
    from sweeps.scheduling.ray_tune import SweepContext
    from sweeps.scheduling.rounds import run_until_done
    from trainables.execution.session import RunContext

    costs = {signature: estimate.estimate_seconds(trial, store) for signature, trial in trials_by_signature.items()}
    progress = {
        signature: TrialProgress(trial.name, trial.stage, trial.epochs, costs[signature])
        for signature, trial in trials_by_signature.items()
    }
    run_id = ledger.start_sweep(options.name, list(trials_by_signature), describe_sweep(plan, progress))
    run_context = RunContext(store, runs, ledger.tracking_uri, weights, options.compute.keep_epochs)
    execution = options.compute.execution_on(resources["fine-tuning"])
    sweep = SweepContext(
        run_id, ledger.tracking_uri, ledger.experiment_id, leases.COMMAND_ID, run_context, resources, execution
    )
    for signature in finished:
        progress[signature].state = "finished"
    try:
        with SweepDisplay(progress, PlainConsole(soft_wrap=True), ledger) as display:
            requirements, with_asha = find_requirements(trials_by_signature, fingerprints), plan.scheduler == "asha"
            run_until_done(unfinished, requirements, costs, sweep, ledger, display, options.max_concurrent, with_asha)
    except KeyboardInterrupt:
        ray_tune.release_trials(ledger, sweep, list(unfinished))
        ledger.mark_ended(run_id, "KILLED")
        print_line()
        print_line(f"Interrupted. To resume from the last checkpoint of each trial: {plan.command}")
        raise
    num_unfinished = show_results(ledger, stages)
    if num_unfinished:
        ledger.mark_ended(run_id, "FAILED")
    else:
        ledger.finish(run_id)
    print_line()
    print_line(f"To look at the runs:  {format_mlflow_command(ledger.tracking_uri)}")
    return stages, num_unfinished


def describe_sweep(plan: SweepPlan, progress: Mapping[str, TrialProgress]) -> dict[str, Any]:
    """Return what the ledger keeps of a sweep: the plan's description, its store, and the trials' names and costs."""
    return {
        **plan.description,
        "store": str(plan.store),
        "trials": {
            signature: {"name": trial.name, "stage": trial.stage, "epochs": trial.epochs, "cost": trial.cost}
            for signature, trial in progress.items()
        },
    }


def start_cluster(options: SweepOptions) -> list[Bundle]:
    """Start Ray, or join the cluster at RAY_ADDRESS, and return the resources of its nodes.

    If Ray is started here, its processes import the training modules while this process prepares the sweep.
    """
    from data.runtime.parallel import start_ray
    from sweeps.scheduling.ray_tune import QUIET_TUNE
    from trainables.execution.nodes import TRAIN_ENVIRONMENT, TRAINING_MODULES, list_nodes

    uses_ray_train = max(options.compute.workers or 1, options.pretraining_workers or 1) > 1
    os.environ.update(QUIET_TUNE | (TRAIN_ENVIRONMENT if uses_ray_train else {}))
    start_ray(() if options.dry_run or uses_ray_train else TRAINING_MODULES, include_dashboard=uses_ray_train)
    return list_nodes()


def prepare_splits(options: SplitOptions, store: Store) -> Splits:
    """Return the splits that the options name, after preparing the built-in corpus if it is used and absent."""
    from data.preparation.build import prepare_if_absent

    prepare_if_absent(options.corpus, store)
    return options.resolve_splits(store)


def build_trials(options: Options, named_space: Space, splits: Splits, nodes: Sequence[Bundle]) -> list[Trial]:
    """Return the trials of the space function `named_space` on the splits, with the options' seeds and teachers."""
    from trainables.execution.nodes import fastest_precision_on

    precision = options.precision or fastest_precision_on(options.compute.gpus_per_worker, nodes)
    named_trials = check_trials(named_space(splits, precision))
    trials = with_seeds(named_trials, options.seeds, options.pretraining_seeds)
    return check_trials(make_students(trials, options.distillation))


def list_retrained_trials(retrainings: Sequence[Retraining]) -> list[Trial]:
    """Return the trials that retrain the members, each once. Raises UserError if there are none."""
    trials = list(dict.fromkeys(retraining.trial for retraining in retrainings if retraining.is_retrained))
    if not trials:
        raise UserError("--retrain-from finetuning: no member was fine-tuned, so there is nothing to retrain")
    return check_trials(trials)


def require_unused_name(options: RetrainOptions, path: Path, identity: list[str], ledger: Ledger) -> None:
    """Raise UserError if a retraining would overwrite, in the file `path`, the ensemble that it retrains, or another
    sweep with its name. A sweep with the same `identity` is an earlier run of this retraining.
    """
    if path.resolve() == options.ensemble.resolve():
        raise UserError(f"--name {options.name}: {path} is the ensemble that is retrained; give another name")
    if (
        options.name in ledger.list_sweep_names()
        and ledger.find_sweep(options.name).description.get("retrain") != identity
    ):
        raise UserError(
            f"--name {options.name}: a sweep of that name exists and isn't this retraining of {options.ensemble}; "
            "give another name"
        )


def write_retrained_ensemble(
    path: Path, ensemble: Ensemble, retrainings: Sequence[Retraining], stages: Stages, ledger: Ledger
) -> None:
    """Write the ensemble of the retrained members into the file `path`, ensemble.json. `retrainings` has the trial that
    replaces each member, and `stages` all trials of the retraining by stage.
    """
    finished_runs = {}
    for signature, trial in (item for stage in stages for item in stage.items()):
        run = ledger.find_finished_trial(signature)
        if run is not None:
            finished_runs[trial] = (signature, run.run_id)
    write_ensemble(path, build_retrained_ensemble(ensemble, retrainings, finished_runs))
    print_line(f"Wrote {path}")


def describe_allocation(
    resources: Mapping[str, Allocation], nodes: Sequence[Bundle], max_concurrent: int | None
) -> str:
    """Return in words the resources of trials, and how many run at a time on the nodes: at most `max_concurrent`, or as
    many as fit if that is None.
    """
    fine_tuning = resources["fine-tuning"]
    num_placeable = count_placeable_workers(fine_tuning, nodes) // fine_tuning.workers
    device = f"{fine_tuning.gpus_per_worker:g} GPU" if fine_tuning.gpus_per_worker else "CPU"
    several_workers = "".join(
        f", {stage}s on {allocation.workers} workers"
        for stage, allocation in resources.items()
        if allocation.workers > 1
    )
    concurrent = min(num_placeable, max_concurrent or num_placeable)
    return f"up to {concurrent} at a time, each worker on {device} with {fine_tuning.threads} threads{several_workers}"


def show_status(options: StatusOptions) -> None:
    """Print the progress of a sweep.

    Examples:
        python sweeps/grid.py status
        python sweeps/grid.py status --runs s3://bucket/runs --name NAME
    """
    ledger = options.ledger.open()
    sweep = ledger.find_sweep(options.name)
    held = {
        signature: leases.find_holder(options.ledger.location, signature) is not None for signature in sweep.signatures
    }
    print_table(
        PlainConsole(), build_table(load_progress(ledger, sweep.description["trials"], held), f"Sweep {sweep.name}, ")
    )


COMMANDS: dict[str, Command[Any]] = {
    "retrain": Command(RetrainOptions, retrain),
    "status": Command(StatusOptions, show_status),
}


@command
def main(argv: Sequence[str] | None = None) -> int | None:
    return run_command(argv, "grid.py", __doc__, Command(Options, run_space), COMMANDS)


if __name__ == "__main__":
    sys.exit(main())

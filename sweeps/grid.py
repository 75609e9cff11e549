"""Run a sweep: each encoder pair is pretrained once, then fine-tuned in several ways.

python sweeps/grid.py [--space demo] [--corpus synthetic] [--store DIR] [--runs DIR] [--name SWEEP]
python sweeps/grid.py --dry-run ...                  # what would be run, what that shares, and what it would take
python sweeps/grid.py --status [--runs DIR] [--name SWEEP]    # how far a sweep is, from another shell
python sweeps/grid.py --retrain ensemble.json --store DIR ...   # its members once more, on all splits

A sweep that was ended goes on when the same command is given again: finished trials aren't run again, by whatever sweep
they were run, and interrupted ones go on from their last checkpoints.
"""

import argparse
import datetime
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from rich.console import Console

from data.errors import UserError, positive
from data.runtime.command_line import command
from data.runtime.tables import show
from data.splits import Splits, find_splits, is_built_on_demand
from data.splits import add_arguments as add_split_arguments
from data.store.files import read_json, write_json
from data.store.storage import Store
from sweeps.display.progress import Display, Line, status, table
from sweeps.display.results import say, show_results
from sweeps.planning import retraining
from sweeps.planning.retraining import From, Member
from sweeps.planning.stages import Stages, by_stage, parents_of, require_encoders
from sweeps.spaces import Space, check, named, space, with_seeds
from trainables.execution import resources as computing
from trainables.execution.resources import Bundle, Resources, Wish, execution_of, places, require_room, share_out
from trainables.records import lease as leases
from trainables.records import mlflow_ledger as ledgers
from trainables.records.ledger import Ledger
from trainables.records.mlflow_ledger import create_ledger, open_ledger
from trainables.records.run_storage import Runs
from trainables.signature import read_fingerprints
from trainables.trial import Precision, Trial

DEFAULT_SPACE = "demo"


def resources_by_stage(arguments: argparse.Namespace, found: Sequence[Bundle], num_trials: int) -> dict[str, Resources]:
    """What the workers of each stage's trials get. Raises UserError where a trial could never be placed."""
    wish = Wish(arguments.workers, arguments.gpus_per_worker, arguments.cpus_per_worker)
    fine_tuning = share_out(found, wish, num_trials, arguments.max_concurrent)
    pretraining = replace(fine_tuning, workers=arguments.pretraining_workers or fine_tuning.workers)
    require_room(pretraining, found)
    return {"pretraining": pretraining, "fine-tuning": fine_tuning}


def run_sweep(arguments: argparse.Namespace, named_space: Space | None) -> int:
    """Run a sweep of a space, or without one a retraining, as the command line says; return the exit status."""
    whole, runs = Store.of(arguments.store), Runs.of(arguments.runs)
    store, weights = whole.location, arguments.weights.resolve() if arguments.weights else None
    chosen = read_json(arguments.retrain) if arguments.retrain else {}
    members = retraining.members(chosen, arguments.retrain, arguments.retrain_from) if arguments.retrain else []
    splits = None if members or is_built_on_demand(arguments.corpus, whole) else find_splits_of(arguments, whole)
    ledger = create_ledger(runs, arguments.tracking_uri)
    if members:
        require_name_of_its_own(arguments, ledger, runs)
    found = start_cluster(arguments)
    if named_space is None:
        wanted = the_members(members)
    else:
        wanted = trials_of_space(arguments, named_space, splits or built_splits(arguments, whole), found)
    precision = wanted[0].precision
    fingerprints = read_fingerprints(wanted, store, weights)
    stages = by_stage(wanted, fingerprints)
    every = {signature: trial for stage in stages for signature, trial in stage.items()}
    finished = {signature for signature in every if ledger.finished(signature)}
    todo = {signature: trial for signature, trial in every.items() if signature not in finished}
    if arguments.dry_run:
        from sweeps.planning import estimate

        show(Console(), estimate.report(stages, finished, store))
        say(estimate.basis(stages, finished, store))
        return 0

    require_encoders(todo.values(), weights)
    resources = resources_by_stage(arguments, found, max((len(stage) for stage in stages), default=1))
    what = f"retraining {arguments.retrain}" if members else f"space {arguments.space} on corpus {arguments.corpus}"
    say(f"Sweep {arguments.name}: {what}")
    say(f"  {len(stages[0])} pretrainings, then {len(stages[1])} fine-tunings; {len(todo)} of them are still to be run")
    say(f"  {what_each_gets(resources, found, arguments.max_concurrent)}, in {precision}")
    say(f"  corpus in {whole}, results in {runs}")

    from sweeps.planning import estimate
    from sweeps.scheduling import ray_tune
    from sweeps.scheduling.ray_tune import Sweep
    from sweeps.scheduling.rounds import run_all
    from trainables.execution.session import Site

    parents = parents_of(every, fingerprints)
    costs = {signature: estimate.seconds(trial, store) for signature, trial in every.items()}
    lines = {
        signature: Line(trial.name, trial.stage, trial.schedule.epochs, costs[signature])
        for signature, trial in every.items()
    }
    run_id = ledger.start_sweep(arguments.name, list(every), describe_sweep(arguments, whole, lines))
    site = Site(store, runs, ledger.tracking_uri, weights, arguments.keep_epochs)
    execution = execution_of(arguments, resources["fine-tuning"])
    sweep = Sweep(run_id, ledger.tracking_uri, ledger.experiment_id, leases.COMMAND, site, resources, execution)
    for signature in finished:
        lines[signature].state = "finished"
    try:
        with Display(lines, Console(soft_wrap=True), ledger) as display:
            with_asha = arguments.scheduler == "asha"
            run_all(todo, parents, costs, sweep, ledger, display, arguments.max_concurrent, with_asha)
    except KeyboardInterrupt:
        ray_tune.interrupt(ledger, sweep, list(todo))
        ledger.give_up(run_id, "KILLED")
        say(f"\nInterrupted. To go on, from the last checkpoint of each trial: {command_line(arguments)}")
        raise
    num_unfinished = show_results(ledger, stages)
    if num_unfinished:
        ledger.give_up(run_id, "FAILED")
    else:
        ledger.finish(run_id)
        if members:
            write_retrained(retrained_path(arguments, runs), chosen, members, stages, ledger)
    say()
    say(f"To look at the runs:  {look_command(ledger.tracking_uri)}")
    if not members:
        say(f"Next:                 {next_command(arguments)}")
    return 1 if num_unfinished else 0


def describe_sweep(arguments: argparse.Namespace, whole: Store, lines: Mapping[str, Line]) -> dict[str, Any]:
    """Return what the ledger keeps of a sweep besides its trials' signatures."""
    return {
        "space": arguments.space,
        "corpus": arguments.corpus,
        "retrain": retraining_of(arguments) if arguments.retrain else None,
        "store": str(whole),
        "trials": {
            signature: {"name": line.name, "stage": line.stage, "epochs": line.epochs, "cost": line.cost}
            for signature, line in lines.items()
        },
    }


def start_cluster(arguments: argparse.Namespace) -> list[Bundle]:
    """Start Ray, or join the cluster of RAY_ADDRESS, and return what its nodes have.

    The processes of a cluster that is started here import what trains while this one prepares the sweep.
    """
    from data.runtime.parallel import start_ray
    from sweeps.scheduling.ray_tune import QUIET_TUNE
    from trainables.execution.nodes import TRAIN_ENVIRONMENT, TRAINING_MODULES, nodes

    uses_ray_train = max(arguments.workers or 1, arguments.pretraining_workers or 1) > 1
    os.environ.update(QUIET_TUNE | (TRAIN_ENVIRONMENT if uses_ray_train else {}))
    start_ray(() if arguments.dry_run or uses_ray_train else TRAINING_MODULES, include_dashboard=uses_ray_train)
    return nodes()


def find_splits_of(arguments: argparse.Namespace, whole: Store) -> Splits:
    """Return the splits that the options name. Raises UserError for what the store doesn't hold."""
    return find_splits(arguments.corpus, whole, arguments.pretrain_on, arguments.hold_out)


def built_splits(arguments: argparse.Namespace, whole: Store) -> Splits:
    """Prepare the built-in corpus, and return its splits."""
    from data.preparation.build import prepare_if_absent

    prepare_if_absent(arguments.corpus, whole)
    return find_splits_of(arguments, whole)


def trials_of_space(
    arguments: argparse.Namespace, named_space: Space, splits: Splits, found: Sequence[Bundle]
) -> list[Trial]:
    """Return the trials of a space, with the seeds that are asked for."""
    from trainables.execution.nodes import fastest_precision_on

    precision = arguments.precision or fastest_precision_on(arguments.gpus_per_worker, found)
    named_trials = check(named_space(splits, precision))
    return check(with_seeds(named_trials, arguments.seeds, arguments.pretraining_seeds))


def the_members(members: Sequence[Member]) -> list[Trial]:
    """Return the members that are to be trained on all splits. Raises UserError where there are none."""
    wanted = list(dict.fromkeys(member.trial for member in members if member.is_retrained))
    if not wanted:
        raise UserError("--retrain-from finetuning: no member was fine-tuned, so there is nothing to retrain")
    return check(wanted)


def retraining_of(arguments: argparse.Namespace) -> list[str]:
    """What tells a retraining from others: the ensemble, and what is trained again."""
    return [str(arguments.retrain.resolve()), arguments.retrain_from]


def retrained_path(arguments: argparse.Namespace, runs: Runs) -> Path:
    """Where the ensemble.json of the retrained members is written."""
    name: str = arguments.name
    return runs.local_folder / "ensembles" / name / "ensemble.json"


def require_name_of_its_own(arguments: argparse.Namespace, ledger: Ledger, runs: Runs) -> None:
    """Raise UserError where a retraining would take the place of the ensemble that it is of, or of another sweep."""
    path = retrained_path(arguments, runs)
    if path.resolve() == arguments.retrain.resolve():
        raise UserError(f"--name {arguments.name}: {path} is the ensemble that is retrained; give another name")
    if arguments.name in ledger.sweep_names():
        before = ledger.sweep(arguments.name).description.get("retrain")
        if before != retraining_of(arguments):
            raise UserError(
                f"--name {arguments.name}: a sweep has that name, and isn't this retraining of {arguments.retrain}; "
                "give another name"
            )


def write_retrained(
    path: Path, chosen: Mapping[str, Any], members: Sequence[Member], stages: Stages, ledger: Ledger
) -> None:
    """Write the ensemble.json of the retrained members."""
    done = {}
    for signature, trial in (item for stage in stages for item in stage.items()):
        run = ledger.finished(signature)
        if run is not None:
            done[trial] = (signature, run.run_id)
    write_json(path, retraining.retrained(chosen, members, done))
    say(f"Wrote {path}")


def what_each_gets(resources: Mapping[str, Resources], found: Sequence[Bundle], max_concurrent: int | None) -> str:
    """In words: how many trials run at a time, and on what."""
    one = resources["fine-tuning"]
    at_once = places(one, found) // one.workers
    each = f"{one.gpus_per_worker:g} GPU" if one.gpus_per_worker else "CPU"
    more = "".join(f", {stage}s on {which.workers} workers" for stage, which in resources.items() if which.workers > 1)
    concurrent = min(at_once, max_concurrent or at_once)
    return f"up to {concurrent} at a time, each worker on {each} with {one.threads} threads{more}"


def show_status(arguments: argparse.Namespace) -> int:
    """Say how far a sweep is."""
    runs = Runs.of(arguments.runs)
    ledger = open_ledger(runs, arguments.tracking_uri)
    sweep = ledger.sweep(arguments.name)
    held = {signature: leases.holder(runs, signature) is not None for signature in sweep.signatures}
    show(Console(), table(status(ledger, sweep.description["trials"], held), f"Sweep {sweep.name}, "))
    return 0


def command_line(arguments: argparse.Namespace) -> str:
    """The command that goes on with this sweep."""
    words = []
    for name, value in vars(arguments).items():
        if value is True:
            words.append(f"--{name.replace('_', '-')}")
        elif value not in (None, False, []):
            words += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, list) else [value])]
    return shlex.join(["python", "sweeps/grid.py", *words])


def look_command(tracking_uri: str) -> str:
    """How to look at the runs."""
    if tracking_uri.startswith("http"):
        return f"{tracking_uri} in a browser"
    return f"mlflow ui --backend-store-uri {tracking_uri}"


def next_command(arguments: argparse.Namespace) -> str:
    """The command that selects the ensemble."""
    words = ["python", "ensemble/select.py", "--metric", "map10", "--runs", arguments.runs, "--sweep", arguments.name]
    return shlex.join([*words, *(["--tracking-uri", arguments.tracking_uri] if arguments.tracking_uri else [])])


def settle_what_is_trained(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> Space | None:
    """Return the space that is trained, or None where the members of an ensemble are.

    Raises UserError for an unknown space, and for options of the one that are given with the other.
    """
    if arguments.retrain_from and not arguments.retrain:
        raise UserError("--retrain-from: that is for --retrain; leave it out")
    if not arguments.retrain:
        arguments.space = arguments.space or DEFAULT_SPACE
        return space(arguments.space)  # an unknown one is refused before anything is started
    for name in ("space", "corpus", "seeds", "pretraining_seeds", "precision", "pretrain_on", "hold_out"):
        if getattr(arguments, name) != parser.get_default(name):
            raise UserError(f"--{name.replace('_', '-')}: the ensemble says what is trained; leave it out")
    if arguments.scheduler != "none":
        raise UserError("--scheduler: without validation there is nothing to stop trials by; leave it out")
    arguments.retrain_from = arguments.retrain_from or "pretraining"
    return None


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="grid.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--space",
        help=f"one of: {', '.join(sorted(named()))}, or path/to/file.py:function (default: {DEFAULT_SPACE})",
    )
    parser.add_argument(
        "--retrain",
        type=Path,
        metavar="FILE",
        help="instead of a space: the members of this ensemble.json, on all splits",
    )
    parser.add_argument(
        "--retrain-from",
        choices=get_args(From),
        help="what is trained again: both stages (the default), or the fine-tuning alone",
    )
    add_split_arguments(parser)
    ledgers.add_arguments(parser)
    parser.add_argument("--name", help="of the sweep (default: the date; with --status, the newest)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be run, and what that would take")
    parser.add_argument("--status", action="store_true", help="say how far a sweep is")
    parser.add_argument("--seeds", type=positive, help="fine-tune each trial with so many seeds")
    parser.add_argument("--pretraining-seeds", type=positive, help="pretrain and fine-tune with so many seeds")
    parser.add_argument(
        "--scheduler", choices=("none", "asha"), default="none", help="asha: stop hopeless trials early"
    )
    parser.add_argument("--precision", choices=get_args(Precision), help="default: the GPUs' or this machine's fastest")
    parser.add_argument(
        "--weights", type=Path, metavar="DIR", help="a folder of published checkpoints, where nothing can be fetched"
    )
    computing.add_arguments(parser)
    parser.add_argument("--pretraining-workers", type=positive, help="of pretrainings (default: --workers)")
    parser.add_argument("--max-concurrent", type=positive, help="trials at a time (default: one a GPU, or else a CPU)")
    arguments = parser.parse_args(argv)
    if arguments.status:
        return show_status(arguments)
    named_space = settle_what_is_trained(arguments, parser)
    arguments.name = arguments.name or f"{datetime.datetime.now():%Y-%m-%d-%H%M%S}"
    return run_sweep(arguments, named_space)


if __name__ == "__main__":
    sys.exit(main())

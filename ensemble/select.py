"""Select the ensemble with the best validation metric, then compute its test metrics once.

Examples:
    python ensemble/select.py --metric map10
    python ensemble/select.py evaluate runs/ensembles/NAME/ensemble.json --split test

Guide: docs/selection.md
"""

if __name__ == "__main__" and not __package__:
    import _run_as_script  # noqa: F401

import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.runtime.command_line import command
from data.runtime.console import PlainConsole
from data.runtime.options import Command, group, option, run_command
from data.runtime.printable import require_bare_name
from data.store.files import atomic_write
from data.store.scratch import create_scratch_folder
from ensemble.pool import candidates as pool
from ensemble.pool import evaluation
from ensemble.pool.candidates import Candidate
from ensemble.pool.score_matrices import ScoreMatrices
from ensemble.record import build
from ensemble.record.build import MAX_COMPARED_EXACTLY, make_single_weights
from ensemble.record.events import log_event
from ensemble.record.html_page import write_page
from ensemble.record.member_options import ExportOptions, MemberOptions
from ensemble.record.normalisation import describe_normalisation
from ensemble.record.terminal_tables import print_ensemble
from ensemble.selection import attribution, cross_validation, exhaustive, greedy
from ensemble.selection.costs import load_costs
from ensemble.selection.greedy import Selection, SelectionConfig
from ensemble.selection.method_options import EXPERT, MethodOptions
from ensemble.selection.pool_choice import PoolChooser, make_loader, read_scores
from ensemble.selection.pruned_pool import PrunedPool
from ensemble.serving import split_index
from ensemble.soups.comparison import add_test_metrics, describe_soups
from ensemble.soups.options import PoolSoups, SoupOptions
from trainables import retrieval
from trainables.records.embeddings import write_embeddings
from trainables.records.ensemble_file import (
    BANK_FUSIONS,
    Direction,
    Ensemble,
    Fusion,
    Member,
    Method,
    NestedMetrics,
    Normalisation,
    ParetoPoint,
    require_indexable,
    write_ensemble,
)
from trainables.records.ledger import Ledger, Sweep
from trainables.records.mlflow_ledger import LedgerOptions
from trainables.retrieval import METRICS

BEST_SINGLE = "best single"
"""Name of the best single candidate among the compared methods."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Command-line options of a selection."""

    metric: str = option("metric to maximise: map10, r1, ndcg10 (any number), mrr, ndcg", "map10")
    direction: Direction = option("text-to-audio or audio-to-text retrieval", "t2a")
    compare: bool = option(
        "also run every other method, with one look at the test split for all "
        f"(exact: among the {MAX_COMPARED_EXACTLY} best candidates, or --among)", False)  # fmt: skip
    folds: int = option("folds of nested cross-validation; 0 to skip it", cross_validation.DEFAULT_FOLDS)
    no_test: bool = option("compute no metrics on the test split", False)
    out: Path | None = option("folder to write (default: RUNS/ensembles/NAME)", None)
    ledger: LedgerOptions = group("candidates")
    sweep: tuple[str, ...] = option("names of sweeps (default: the newest; none with --pool)", (), section="candidates")
    filter: tuple[str, ...] = option("only trials with these settings", (), metavar="NAME=VALUE", section="candidates")
    pool: tuple[Path, ...] = option(
        "folders of score matrices {validation,test}/NAME.npy with relevance.npy", (), metavar="DIR",
        section="candidates")  # fmt: skip
    soups: SoupOptions = group("soups")
    how: MethodOptions = group("selection")
    fusion: Fusion = option(
        "average scores, their z-norms or ranks, or scores normalised by a query bank", "mean", section=EXPERT
    )
    cost: str | None = option(
        "also compute the Pareto front of the metric and this cost", None, metavar="parameters|latency|FILE",
        section=EXPERT)  # fmt: skip

    def __post_init__(self) -> None:
        retrieval.find_metric(self.metric)
        if self.folds < 0 or self.folds == 1:
            raise UserError(f"--folds {self.folds}: give 2 or more, or 0 to skip cross-validation")
        if self.fusion in BANK_FUSIONS and self.direction == "a2t":
            raise UserError(f"--fusion {self.fusion}: its bank has captions, which are no queries of --direction a2t")
        if self.cost and (self.how.method == "all" or self.how.bags):
            raise UserError(
                "--cost can't be combined with --method all or --bags: use --method greedy without --bags, or exact"
            )


@dataclass(frozen=True)
class SelectionTask:
    """Input of a selection: the candidates, their scores on the validation split, and the config."""

    ledger: Ledger
    sweeps: Sequence[Sweep]
    candidates: Sequence[Candidate]
    chooser: PoolChooser
    validation: ScoreMatrices
    pruned: PrunedPool
    temperature: float | None  # of the normalisation by a query bank
    config: SelectionConfig
    options: Options
    soups: PoolSoups | None = None


def read_task(options: Options, scratch: Path) -> SelectionTask:
    """Return the candidates from sweeps, folders of scores, or both, with their scores on validation and the config.
    With --soup, soups of the trials are computed and added; `scratch` is a folder for temporary files.
    """
    config = options.how.build_config()
    if options.pool and not options.sweep:
        ledger, sweeps = options.ledger.create(), []
        if options.filter:
            raise UserError("--filter: files of scores have no parameters; leave it out, or give a --sweep")
    else:
        ledger = options.ledger.open()
        sweeps = [ledger.find_sweep(name) for name in options.sweep or [None]]
    trials = pool.find_candidates(ledger, sweeps, options.filter) if sweeps else []
    files = pool.find_score_files(options.pool)
    absent = [path for candidate in files if not (path := candidate.locate_scores("test")).exists()]
    if absent and not options.no_test:
        raise UserError(f"{absent[0]} doesn't exist: add it, or select without a look at test (--no-test)")
    candidates = [*trials, *files]
    chooser = PoolChooser(ledger, candidates, options.metric, options.fusion, options.direction, config)
    soups = options.soups.make_soups(chooser, sweeps, options.ledger.location, scratch)
    if soups:
        candidates = soups.candidates
        chooser = chooser.with_candidates(candidates)
    pruned, temperature = chooser.choose()
    validation = chooser.read_scores(temperature)
    return SelectionTask(ledger, sweeps, candidates, chooser, validation, pruned, temperature, config, options, soups)


def print_expected_time(
    task: SelectionTask, configs: Sequence[SelectionConfig], folds: int, console: PlainConsole
) -> None:
    """Print, for each config that scores all subsets, their number and expected time, once and in `folds` folds. The
    folds of the task's own config choose the temperature of a normalisation, too.
    """
    pruned, num_temperatures = task.pruned, len(task.chooser.temperatures)
    for config in configs:
        models = pruned.sort_candidates()[: config.among or None]
        if config.method == "exact" and len(models) <= exhaustive.MAX_MODELS:
            once_s = exhaustive.estimate_seconds(pruned, models)
            message = f"{2 ** len(models) - 1:,} subsets of {len(models)} candidates: about {once_s:.1f} s"
            if folds:  # each fold selects on the queries of the others, once more than for each of several temperatures
                passes = 1 + num_temperatures * (config == task.config and num_temperatures > 1)
                message += f", and {passes * once_s * (folds - 1):.1f} s in {folds} folds"
            console.print_line(message)


def select(options: Options) -> None:
    """Select an ensemble, compute its test metrics once, log both, and write ensemble.json and its HTML page."""
    with create_scratch_folder() as scratch:
        write_selection(read_task(options, scratch), scratch)


def write_selection(task: SelectionTask, scratch: Path) -> None:
    """Select an ensemble from the task's candidates, compute its test metrics once, log both, and write ensemble.json
    and its HTML page. `scratch` is a folder for temporary files.
    """
    console, options = PlainConsole(), task.options
    name = task.sweeps[0].name if task.sweeps else options.pool[0].resolve().name
    if not options.out:
        require_bare_name(name, "--pool", "name the folder to write with --out")
    pruned, config, sweeps, runs = task.pruned, task.config, task.sweeps, options.ledger.location
    others = build.list_compared_methods(config, len(task.candidates)) if options.compare else {}
    print_expected_time(task, list(dict.fromkeys([config, *others.values()])), options.folds, console)
    selection = greedy.select(pruned, config)
    compared = {name: greedy.select(pruned, other) for name, other in others.items()}
    ensemble = build_record(task, selection, compared)
    if options.folds:
        ensemble = cross_validate(ensemble, task, selection, compared, others)
    if options.cost:
        points = attribution.compute_pareto_front(pruned, config, load_costs(options.cost, task.candidates, runs))
        ensemble = replace(ensemble, cost=options.cost, front=tuple(
            ParetoPoint(point.cost, point.selection.value, tuple(pruned.names[m] for m in point.selection.members))
            for point in points))  # fmt: skip
    if not options.no_test:
        ensemble = look_at_test(ensemble, task, selection, compared)
    ensemble = compare_normalisations(ensemble, task, selection)
    folder = options.out or runs.local_folder / "ensembles" / name
    parent = sweeps[0].run_id if sweeps else ""
    written = [scratch / "ensemble.json", scratch / "ensemble.html"]
    write_ensemble(written[0], ensemble)
    write_page(written[1], ensemble)
    # the look at test is logged before any metric is shown
    earlier = log_event(task.ledger, "ensemble", f"ensemble of {name}", ensemble, written, parent)
    files = [copy_atomically(path, folder / path.name) for path in written]
    print_ensemble(ensemble, None if options.no_test else earlier)
    for path in files:
        console.print_line(f"Wrote {path}")


def copy_atomically(path: Path, to: Path) -> Path:
    """Copy a file atomically; return its new path."""
    with atomic_write(to) as temporary:
        shutil.copyfile(path, temporary)
    return to


def build_record(task: SelectionTask, selection: Selection, compared: Mapping[str, Selection]) -> Ensemble:
    """Return the selected ensemble as ensemble.json describes it, with its metrics on the validation split. `compared`
    has the selections by other methods, by the method's name; they are recorded beside it.
    """
    options, candidates, pruned = task.options, task.candidates, task.pruned
    metrics = list(dict.fromkeys([options.metric, *METRICS]))
    best = pruned.sort_candidates()[0]
    systems = {"ensemble": selection.counts, "best_single": make_single_weights(best, len(candidates))}
    split_metrics, others = build.compute_split_metrics(
        task.validation, systems | {n: s.counts for n, s in compared.items()}, metrics
    )
    shares = attribution.attribute_members(pruned, selection)
    best_single = build.build_member(candidates[best], 1.0)
    methods = [Method(BEST_SINGLE, (best_single,), split_metrics.systems["best_single"])] if compared else []
    for name, other in compared.items():
        members = tuple(build.build_member(candidates[model], other.weights[model]) for model in other.members)
        methods.append(Method(name, members, others[name]))
    return Ensemble(
        members=build.build_members(candidates, shares, selection, task.ledger),
        pool=" and ".join([*(sweep.name for sweep in task.sweeps), *map(str, options.pool)]),
        metric=options.metric,
        metrics=tuple(metrics),
        method=build.describe_method(task.config),
        fusion=options.fusion,
        direction=options.direction,
        best_single=best_single,
        validation=split_metrics,
        methods=tuple(methods),
        trajectory=build.build_trajectory(candidates, selection),
        sizes={
            "validation": evaluation.compute_metric_by_step(
                task.validation, build.list_additions(selection), options.metric
            )
        },
        share_kept=pruned.kept_share,
        likeness=tuple(
            map(tuple, attribution.compute_error_correlation(pruned, [share.candidate for share in shares]).tolist())
        ),
        candidates=tuple(candidate.key for candidate in candidates),
        soups=describe_soups(task.soups) if task.soups else (),
    )


def cross_validate(
    ensemble: Ensemble,
    task: SelectionTask,
    selection: Selection,
    compared: Mapping[str, Selection],
    others: Mapping[str, SelectionConfig],
) -> Ensemble:
    """Return the ensemble with results of nested cross-validation added, for its own selection and the selections by
    other methods in `compared`. Both `compared` and `others`, the configs of these methods, are by the method's name.
    """
    choose_candidates = task.soups.choose_candidates if task.soups else None
    pool_for, redoes_epochs = task.chooser.make_pool_for(task.validation, choose_candidates)
    fold_Q = cross_validation.assign_folds(task.pruned.group_Q, task.options.folds)

    def compute_nested(config: SelectionConfig, value: float) -> NestedMetrics:
        result = cross_validation.cross_validate(pool_for, config, fold_Q)
        return build.build_nested_metrics(result, task.pruned, task.options.folds, value, redoes_epochs)

    nested_metrics = compute_nested(task.config, selection.value)
    nested = {name: compute_nested(others[name], other.value).ensemble for name, other in compared.items()}
    nested[BEST_SINGLE] = nested_metrics.best_single
    methods = tuple(replace(method, nested=nested[method.name]) for method in ensemble.methods)
    return replace(ensemble, nested=nested_metrics, methods=methods)


def look_at_test(
    ensemble: Ensemble, task: SelectionTask, selection: Selection, compared: Mapping[str, Selection]
) -> Ensemble:
    """Return the ensemble with test metrics added: of the selected ensemble, of the best single candidate, of the soups
    and of the selections by other methods in `compared`, by the method's name.
    """
    candidates, history, best = task.candidates, build.list_additions(selection), task.pruned.sort_candidates()[0]
    members = {model for choice in (selection, *compared.values()) for model in choice.members}
    looked_at = sorted({*members, *history, best})
    load = make_loader(task.ledger, ensemble.fusion, task.temperature)
    source = read_scores(
        [candidates[m] for m in looked_at], "test", task.ledger, ensemble.fusion, ensemble.direction, load=load
    )
    indices = {model: index for index, model in enumerate(looked_at)}
    systems = {"ensemble": selection.counts, "best_single": make_single_weights(best, len(candidates))}
    systems |= {name: other.counts for name, other in compared.items()}
    weights = {name: [counts[model] for model in looked_at] for name, counts in systems.items()}
    test, others = build.compute_split_metrics(source, weights, ensemble.metrics)
    others[BEST_SINGLE] = test.systems["best_single"]
    sizes = evaluation.compute_metric_by_step(source, [indices[model] for model in history], ensemble.metric)
    methods = tuple(replace(method, test=others[method.name]) for method in ensemble.methods)
    soups = add_test_metrics(ensemble.soups, task.soups) if task.soups else ()
    return replace(ensemble, test=test, methods=methods, sizes={**ensemble.sizes, "test": sizes}, soups=soups)


def compare_normalisations(ensemble: Ensemble, task: SelectionTask, selection: Selection) -> Ensemble:
    """Return the ensemble with its normalisation by a query bank added, if its fusion has one: the temperature, and the
    metric and hubness with each form, on the splits that the ensemble has metrics on.
    """
    if task.temperature is None:
        return ensemble
    members = [task.candidates[model] for model in selection.members]
    counts = [selection.counts[model] for model in selection.members]
    looks_at_test = ensemble.test is not None
    return replace(
        ensemble,
        normalisation=describe_normalisation(
            task.ledger, members, counts, ensemble.metric, ensemble.fusion, task.temperature, looks_at_test
        ),
    )


def evaluate(options: MemberOptions) -> None:
    """Compute the metrics of an ensemble on a split.

    Examples:
        python ensemble/select.py evaluate ensemble.json --split test
        python ensemble/select.py evaluate ensemble.json --split validation --pool scores
    """
    ensemble, ledger, candidates = options.read()
    weights = ensemble.weights
    load = make_loader(ledger, ensemble.fusion, ensemble.temperature)
    source = read_scores(candidates, options.split, ledger, ensemble.fusion, ensemble.direction, load=load)
    names = tuple(dict.fromkeys([ensemble.metric, *METRICS]))
    heaviest = max(range(len(candidates)), key=lambda index: weights[index])
    systems: dict[str, Sequence[float]] = {
        "ensemble": weights,
        "heaviest_member": make_single_weights(heaviest, len(candidates)),
    }
    split_metrics = evaluation.compare_systems(source, systems, names)
    members = tuple(Member(member.name, member.weight, member.signature) for member in ensemble.members)
    plain = ensemble.normalisation and Normalisation(ensemble.normalisation.temperature)
    event = Ensemble(members, ensemble.pool, names[0], names, "evaluation", ensemble.fusion, ensemble.direction, plain)
    event = replace(event, test=split_metrics) if options.split == "test" else replace(event, validation=split_metrics)
    earlier = log_event(ledger, "evaluation", f"evaluation of {options.ensemble.parent.name}", event, [], "")
    print_ensemble(event, earlier if event.test else None)


def export(options: ExportOptions) -> None:
    """Write an index of a split by an ensemble: embeddings whose dot products are the ensemble's scores.

    Examples:
        python ensemble/select.py export ensemble.json --split test
        python ensemble/select.py export ensemble.json --split validation --out index
    """
    ensemble, ledger, candidates = options.read()
    if ensemble.fusion not in BANK_FUSIONS:
        require_indexable(ensemble, options.ensemble)
    weights = ensemble.weights
    shares = [weight / sum(weights) for weight in weights]
    target = (options.out or options.ensemble.parent) / f"{options.split}-index.arrow"
    target.parent.mkdir(parents=True, exist_ok=True)
    index = split_index.concatenate_embeddings(
        ledger, candidates, shares, options.split, ensemble.fusion, ensemble.temperature
    )
    write_embeddings(target, index)
    PlainConsole().print_line(f"Wrote {target}")


COMMANDS: dict[str, Command[Any]] = {
    "evaluate": Command(MemberOptions, evaluate),
    "export": Command(ExportOptions, export),
}


@command
def main(argv: Sequence[str] | None = None) -> int | None:
    """Run select.py with these command-line arguments, and return the exit status."""
    return run_command(argv, "select.py", __doc__, Command(Options, select), COMMANDS)


if __name__ == "__main__":
    sys.exit(main())

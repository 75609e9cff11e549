"""Find the ensemble that retrieves best on the validation split, then look at test once.

python ensemble/select.py --metric map10 [--runs DIR] [--sweep NAME ...] [--out DIR]
python ensemble/select.py --pool DIR                        # score matrices of any system
python ensemble/select.py --evaluate ensemble.json --split test
python ensemble/select.py --export ensemble.json --split test       # as one index of embeddings
"""

if __name__ == "__main__" and not __package__:
    import _run_as_script  # noqa: F401

import argparse
import functools
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from data.errors import UserError, positive
from data.runtime.command_line import command
from data.store.files import appearing_whole, write_json
from ensemble.pool import candidates as pool
from ensemble.pool import evaluation, score_matrices
from ensemble.pool.candidates import Candidate, Which
from ensemble.pool.score_matrices import Matrices
from ensemble.record import build
from ensemble.record.build import COMPARED_EXACTLY, METHODS, members_of, one_hot
from ensemble.record.events import log_event
from ensemble.record.html_page import write_page
from ensemble.record.schema import FORMAT_VERSION, read_ensemble, weights_of
from ensemble.record.terminal_tables import show
from ensemble.selection import attribution, cross_validation, epoch_choice, exhaustive, greedy
from ensemble.selection.costs import costs_of
from ensemble.selection.greedy import Rules, Selection
from ensemble.selection.pruned_pool import Live, compress
from ensemble.serving import split_index
from trainables import retrieval
from trainables.records import mlflow_ledger as ledgers
from trainables.records.embeddings import write_embeddings
from trainables.records.ledger import Ledger, Sweep
from trainables.records.mlflow_ledger import create_ledger, open_ledger
from trainables.records.run_storage import Runs
from trainables.retrieval import METRICS, TITLES


def read(
    candidates: Sequence[Candidate],
    which: Which,
    ledger: Ledger,
    fusion: str,
    direction: str,
    files: Mapping[str, str] | None = None,
) -> Matrices:
    """The candidates' scores on a split, as they are fused, in a direction."""
    found = pool.load(ledger, candidates, which, files)
    return score_matrices.fused(score_matrices.transposed(found) if direction == "a2t" else found, fusion)


def compressed(source: Matrices, candidates: Sequence[Candidate], metric: str) -> Live:
    """What matters of a pool, its candidates called by their keys."""
    return replace(compress(source, metric), names=tuple(candidate.key for candidate in candidates))


def rules_of(arguments: argparse.Namespace) -> Rules:
    """The rules that the options ask for. A UserError for those that don't go together."""
    greedy_only = ("sorted_start", "bags", "without_replacement", "max_size")
    for name in greedy_only:
        if arguments.method != "greedy" and getattr(arguments, name):
            raise UserError(f"--{name.replace('_', '-')}: that is for --method greedy; leave it out")
    if arguments.method != "greedy" and arguments.stop != "best":
        raise UserError("--stop: that is for --method greedy; leave it out")
    for name in ("bag_share", "seed"):
        if getattr(arguments, name) is not None and not arguments.bags:
            raise UserError(f"--{name.replace('_', '-')}: that is for --bags; leave it out")
    if arguments.cost and (arguments.method == "all" or arguments.bags):
        raise UserError(
            "--cost: the mean of all, and bags, know no budget; take --method greedy without bags, or exact"
        )
    try:
        return Rules(
            method=arguments.method,
            max_size=arguments.max_size or Rules.max_size,
            replacement=not arguments.without_replacement,
            among=arguments.among,
            sorted_start=arguments.sorted_start,
            stop=arguments.stop,
            refine=arguments.refine,
            bags=arguments.bags,
            bag_share=Rules.bag_share if arguments.bag_share is None else arguments.bag_share,
            seed=Rules.seed if arguments.seed is None else arguments.seed,
        )
    except ValueError as error:
        raise UserError(str(error)) from error


def find(arguments: argparse.Namespace, runs: Runs) -> tuple[Ledger, list[Sweep], list[Candidate]]:
    """The ledger, the sweeps and the candidates: of sweeps, of folders of scores, or of both."""
    if arguments.pool and not arguments.sweep:
        ledger, sweeps = create_ledger(runs, arguments.tracking_uri), []
        if arguments.filter:
            raise UserError("--filter: files of scores have no parameters; leave it out, or name a --sweep")
    else:
        ledger = open_ledger(runs, arguments.tracking_uri)
        sweeps = [ledger.sweep(name) for name in arguments.sweep or [None]]
        arguments.sweep = [sweep.name for sweep in sweeps]
    trials = pool.find_candidates(ledger, sweeps, arguments.filter) if sweeps else []
    files = pool.find_files(arguments.pool)
    absent = [path for candidate in files if not (path := candidate.file("test")).exists()]
    if absent and not arguments.no_test:
        raise UserError(f"{absent[0]} is absent: add it, or choose without a look at test (--no-test)")
    candidates = [*trials, *files]
    return ledger, sweeps, candidates


def say_how_long(live: Live, rules: Sequence[Rules], folds: int, console: Console) -> None:
    """Before all subsets are scored: how many there are, and how long that takes, with cross-validation's rounds."""
    for own in rules:
        models = live.best_first()[: own.among or None]
        if own.method == "exact" and len(models) <= exhaustive.MOST_MODELS:
            once_s = exhaustive.expected_s(live, models)
            told = f"{2 ** len(models) - 1:,} subsets of {len(models)} candidates: about {once_s:.1f} s"
            if folds:
                told += f", and {once_s * (folds - 1):.1f} s in {folds} folds"  # each on all queries but a fold's
            console.print(told)


def redoing_epochs(
    ledger: Ledger, candidates: Sequence[Candidate], validation: Matrices, live: Live, arguments: argparse.Namespace
) -> tuple[cross_validation.LiveOf, bool]:
    """What gives the candidates with their epochs chosen on some queries, and whether all of them have theirs."""
    kept = epoch_choice.find(ledger, candidates)

    @functools.cache
    def of(seen: bytes) -> Live:
        seen_Q = np.frombuffer(seen, bool)
        captions = epoch_choice.captions_seen(validation, seen_Q) if arguments.direction == "a2t" else seen_Q
        files = epoch_choice.best_of(kept, captions)
        source = read(candidates, "validation", ledger, arguments.fusion, arguments.direction, files)
        return compressed(source, candidates, arguments.metric)

    def live_of(seen_Q: NDArray[np.bool_]) -> Live:
        return of(seen_Q.tobytes()) if kept else live

    return live_of, len(kept) == len(candidates)


def choose(arguments: argparse.Namespace) -> None:
    """Choose an ensemble, explain it, and look at test once."""
    rules, runs = rules_of(arguments), Runs.of(arguments.runs)
    console = Console(soft_wrap=True, highlight=False)
    ledger, sweeps, candidates = find(arguments, runs)
    validation = read(candidates, "validation", ledger, arguments.fusion, arguments.direction)
    live = compressed(validation, candidates, arguments.metric)
    others = build.compared(rules, len(candidates)) if arguments.compare else {}
    say_how_long(live, list(dict.fromkeys([rules, *others.values()])), arguments.folds, console)
    selection = greedy.select(live, rules)
    compared = {name: greedy.select(live, other) for name, other in others.items()}
    ensemble = describe(candidates, validation, live, selection, compared, ledger, arguments)
    if arguments.folds:
        live_of, redoes_epochs = redoing_epochs(ledger, candidates, validation, live, arguments)
        fold_Q = cross_validation.folds_of(live.group_Q, arguments.folds)

        def judged(by: Rules, value: float) -> dict[str, Any]:
            found = cross_validation.nested(live_of, by, fold_Q)
            return build.nested_json(found, live, arguments.folds, value, redoes_epochs)

        ensemble["nested"] = judged(rules, selection.value)
        add_to_methods(ensemble, "nested", {"best single": ensemble["nested"]["best_single"]} | {
            name: judged(others[name], other.value)["ensemble"] for name, other in compared.items()})  # fmt: skip
    if arguments.cost:
        ensemble["cost"] = arguments.cost
        ensemble["front"] = [
            {"cost": point.cost, "value": point.selection.value,
             "members": [candidates[model].key for model in point.selection.members]}
            for point in attribution.front(live, rules, costs_of(arguments.cost, candidates, runs))
        ]  # fmt: skip
    if not arguments.no_test:
        look_at_test(ensemble, candidates, selection, compared, live, ledger)
    name = sweeps[0].name if sweeps else Path(arguments.pool[0]).resolve().name
    folder = arguments.out or runs.local_folder / "ensembles" / name
    parent = sweeps[0].run_id if sweeps else ""
    with tempfile.TemporaryDirectory() as scratch:  # a look at test is logged before anybody can have had it
        written = write_files(Path(scratch), ensemble)
        earlier = log_event(ledger, "ensemble", f"ensemble of {name}", ensemble, written, parent)
        files = [copy_whole(path, folder / path.name) for path in written]
    show(ensemble, None if arguments.no_test else earlier)
    for path in files:
        console.print(f"Wrote {path}", markup=False)


def write_files(folder: Path, ensemble: Mapping[str, Any]) -> list[Path]:
    """Write an ensemble, and the page that explains it, into a folder."""
    files = [folder / "ensemble.json", folder / "ensemble.html"]
    write_page(files[1], ensemble, TITLES)
    write_json(files[0], ensemble)
    return files


def copy_whole(path: Path, to: Path) -> Path:
    """Copy a file, which appears whole or not at all; return where it is."""
    with appearing_whole(to) as temporary:
        shutil.copyfile(path, temporary)
    return to


def describe(
    candidates: Sequence[Candidate],
    validation: Matrices,
    live: Live,
    selection: Selection,
    compared: Mapping[str, Selection],
    ledger: Ledger,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """All that ensemble.json holds of the choice; test isn't looked at."""
    metrics = list(dict.fromkeys([arguments.metric, *METRICS]))
    best = live.best_first()[0]
    systems = {"ensemble": selection.counts, "best_single": one_hot(best, len(candidates))}
    found, others = build.figures_on(validation, systems | {n: s.counts for n, s in compared.items()}, metrics)
    shares = attribution.members(live, selection)
    ensemble = {
        "format_version": FORMAT_VERSION,
        "pool": " and ".join([*(arguments.sweep or []), *map(str, arguments.pool)]),
        "metric": arguments.metric,
        "metrics": metrics,
        "method": build.told(rules_of(arguments)),
        "fusion": build.FUSIONS_TOLD[arguments.fusion],
        "fusion_name": arguments.fusion,
        "direction": arguments.direction,
        "members": build.members_json(candidates, shares, selection, ledger),
        "best_single": build.member_json(candidates[best], 1.0),
        "validation": found,
        "share_kept": live.share,
        "likeness": attribution.likeness(live, [member.candidate for member in shares]).tolist(),
        "trajectory": build.trajectory_json(candidates, selection, arguments.metric),
        "sizes": {"validation": evaluation.along(validation, build.growth(selection), arguments.metric)},
        "candidates": [candidate.key for candidate in candidates],
    }
    if compared:
        ensemble["methods"] = [{"name": "best single", "members": [build.member_json(candidates[best], 1.0)]}] + [
            {"name": name, "members": [build.member_json(candidates[m], other.weights[m]) for m in other.members]}
            for name, other in compared.items()
        ]
        add_to_methods(ensemble, "validation", {"best single": found["best_single"]} | others)
    return ensemble


def add_to_methods(ensemble: dict[str, Any], where: str, found: Mapping[str, Any]) -> None:
    """Add to each of the compared methods what was found of it, on a split or by cross-validation."""
    for method in ensemble.get("methods", []):
        method[where] = found[method["name"]]


def look_at_test(
    ensemble: dict[str, Any],
    candidates: Sequence[Candidate],
    selection: Selection,
    compared: Mapping[str, Selection],
    live: Live,
    ledger: Ledger,
) -> None:
    """Add the figures on test: after the choice, of the ensemble, the best single candidate and all other methods'."""
    history, best = build.growth(selection), live.best_first()[0]
    members = {model for one in (selection, *compared.values()) for model in one.members}
    looked_at = sorted({*members, *history, best})
    source = read([candidates[m] for m in looked_at], "test", ledger, ensemble["fusion_name"], ensemble["direction"])
    places = {model: place for place, model in enumerate(looked_at)}
    systems = {"ensemble": selection.counts, "best_single": one_hot(best, len(candidates))}
    systems |= {name: other.counts for name, other in compared.items()}
    own = {name: [counts[model] for model in looked_at] for name, counts in systems.items()}
    ensemble["test"], others = build.figures_on(source, own, ensemble["metrics"])
    ensemble["sizes"]["test"] = evaluation.along(source, [places[model] for model in history], ensemble["metric"])
    add_to_methods(ensemble, "test", {"best single": ensemble["test"]["best_single"]} | others)


def evaluate(arguments: argparse.Namespace) -> None:
    """Evaluate an ensemble that was chosen before."""
    path: Path = arguments.evaluate
    ensemble, runs = read_ensemble(path), Runs.of(arguments.runs)
    ledger = (create_ledger if arguments.pool else open_ledger)(runs, arguments.tracking_uri)
    candidates, weights = members_of(ensemble, path, ledger, arguments.pool, arguments.split), weights_of(ensemble)
    source = read(
        candidates, arguments.split, ledger, ensemble.get("fusion_name", "mean"), ensemble.get("direction", "t2a")
    )
    names = list(dict.fromkeys([ensemble.get("metric", arguments.metric), *METRICS]))
    alone = max(range(len(candidates)), key=lambda place: weights[place])
    systems: dict[str, Sequence[float]] = {"ensemble": weights, "heaviest_member": one_hot(alone, len(candidates))}
    found = evaluation.compare(source, systems, names)
    event = {"metric": names[0], "metrics": names, "method": "evaluation", "fusion": ensemble.get("fusion", "mean"),
             "direction": ensemble.get("direction", "t2a"), "pool": ensemble.get("pool", ""), "trajectory": [],
             "members": [{key: member[key] for key in ("name", "weight", "signature") if key in member}
                         for member in ensemble["members"]],
             arguments.split: found}  # fmt: skip
    earlier = log_event(ledger, "evaluation", f"evaluation of {path.parent.name}", event, [], "")
    show(event, earlier if arguments.split == "test" else None)


def export(arguments: argparse.Namespace) -> None:
    """Write an ensemble that was chosen before as one index of embeddings."""
    path: Path = arguments.export
    ensemble = read_ensemble(path)
    if ensemble.get("fusion_name", "mean") != "mean":
        raise UserError(f"{path}: only the mean of scores can be an index, not the {ensemble['fusion']}")
    ledger = (create_ledger if arguments.pool else open_ledger)(Runs.of(arguments.runs), arguments.tracking_uri)
    candidates, weights = members_of(ensemble, path, ledger, arguments.pool, arguments.split), weights_of(ensemble)
    shares = [weight / sum(weights) for weight in weights]
    target = (arguments.out or path.parent) / f"{arguments.split}-index.arrow"
    target.parent.mkdir(parents=True, exist_ok=True)
    write_embeddings(target, split_index.concatenated(ledger, candidates, shares, arguments.split))
    Console(soft_wrap=True, highlight=False).print(f"Wrote {target}", markup=False)


def refuse_choosing(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Raise UserError for options of choosing, where an ensemble was chosen before."""
    way = "evaluate" if arguments.evaluate else "export"
    taken = {way, "split", "pool", "runs", "tracking_uri"} | ({"out"} if way == "export" else set())
    for name, value in vars(arguments).items():
        if name not in taken and value != parser.get_default(name):
            raise UserError(f"--{name.replace('_', '-')}: --{way} takes what ensemble.json says; leave it out")


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="select.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--metric", default="map10", help="map10, r1, ndcg10 (any number), mrr, ndcg (default: %(default)s)"
    )
    ledgers.add_arguments(parser)
    parser.add_argument("--sweep", nargs="+", help="names of sweeps (default: the newest; with --pool, none)")
    parser.add_argument("--filter", nargs="+", default=[], metavar="NAME=VALUE", help="only trials with these settings")
    parser.add_argument("--pool", nargs="+", type=Path, default=[], metavar="DIR",
                        help="folders of score matrices {validation,test}/NAME.npy with relevance.npy")  # fmt: skip
    parser.add_argument("--out", type=Path, help="where ensemble.json goes (default: RUNS/ensembles/NAME)")
    parser.add_argument("--fusion", choices=sorted(score_matrices.FUSIONS), default="mean",
                        help="what is averaged: scores, or their z-norms or ranks (default: %(default)s)")  # fmt: skip
    parser.add_argument("--direction", choices=["t2a", "a2t"], default="t2a",
                        help="text to audio, or audio to text (default: %(default)s)")  # fmt: skip
    parser.add_argument("--no-test", action="store_true", help="don't look at test")
    rules = parser.add_argument_group("how it is chosen")
    rules.add_argument("--method", choices=list(METHODS), default="greedy", help="(default: %(default)s)")
    rules.add_argument("--max-size", type=positive, help=f"steps of the selection (default: {Rules.max_size})")
    rules.add_argument("--without-replacement", action="store_true", help="take each candidate once at most")
    rules.add_argument("--sorted-start", type=positive, default=0, metavar="N", help="begin with the N best candidates")
    rules.add_argument(
        "--bags", type=positive, default=0, metavar="B", help="the mean of B selections from some candidates"
    )
    rules.add_argument("--bag-share", type=float, help=f"of the candidates in a bag (default: {Rules.bag_share})")
    rules.add_argument("--seed", type=int, help=f"of the bags (default: {Rules.seed})")
    rules.add_argument("--stop", choices=["best", "one-se"], default="best",
                       help="at the best size, or the smallest within one standard error of it")  # fmt: skip
    rules.add_argument("--refine", action="store_true", help="then take away and swap members while that helps")
    rules.add_argument("--among", type=positive, default=0, metavar="N", help="only the N best single candidates")
    rules.add_argument("--compare", action="store_true",
                       help="also what every other method would have chosen (exact: among the "
                       f"{COMPARED_EXACTLY} best, or --among), with one look at test for all of them")  # fmt: skip
    rules.add_argument("--folds", type=int, default=cross_validation.FOLDS,
                       help="of nested cross-validation; 0: none (default: %(default)s)")  # fmt: skip
    rules.add_argument("--cost", metavar="parameters|latency|FILE", help="also the front of accuracy and cost")
    later = parser.add_argument_group("an ensemble that was chosen before")
    later.add_argument("--evaluate", type=Path, metavar="FILE", help="evaluate this ensemble.json on --split")
    later.add_argument("--export", type=Path, metavar="FILE", help="write this ensemble.json's --split as one index")
    later.add_argument("--split", choices=get_args(Which), help="(default: test)")
    arguments = parser.parse_args(argv)
    retrieval.metric(arguments.metric)
    if arguments.folds < 0 or arguments.folds == 1:
        raise UserError(f"--folds {arguments.folds}: two or more, or 0 to do without")
    if arguments.evaluate or arguments.export:
        refuse_choosing(parser, arguments)
        arguments.split = arguments.split or "test"
        (evaluate if arguments.evaluate else export)(arguments)
        return
    if arguments.split:
        raise UserError("--split is for --evaluate and --export: validation chooses, then test is looked at")
    choose(arguments)


if __name__ == "__main__":
    sys.exit(main())

"""Find the ensemble that retrieves best on the validation split, then look at test once.

python ensemble/select.py --metric map10 [--runs DIR] [--sweep NAME ...] [--out DIR]
python ensemble/select.py --pool DIR                        # score matrices of any system
python ensemble/select.py --evaluate ensemble.json --split test
python ensemble/select.py --export ensemble.json --split test       # as one index of embeddings
"""

if __name__ == "__main__":
    # As a script, this file's folder comes first on the path, where its own name answers the standard library's
    # `import select`. The repository's root takes its place before anything else is imported, here and in children.
    import os
    import sys
    from pathlib import Path

    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parent), *(entry for entry in sys.path if Path(entry).resolve() != here)]
    os.environ["PYTHONSAFEPATH"] = "1"

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from rich.console import Console
from rich.table import Table

from data.errors import UserError, positive, run_command
from data.shards import read_json, write_json
from ensemble import exact, explanation, figures, greedy, honesty, index, matrices, pool
from ensemble.costs import costs_of
from ensemble.greedy import Rules, Selection
from ensemble.live import Live, compress
from ensemble.matrices import Matrices
from ensemble.page import percent, write_page
from ensemble.pool import Candidate, Which
from trainables import ledger as ledgers
from trainables import retrieval
from trainables.embed import write_embeddings
from trainables.ledger import Ledger, Sweep, create_ledger, open_ledger
from trainables.runs import Runs

REPORTED = ("map10", "r1", "r5", "r10")
TITLES = {"map10": "mAP@10", "map16": "mAP@16", "r1": "R@1", "r5": "R@5", "r10": "R@10", "mrr": "MRR", "ndcg": "nDCG"}
FORMAT_VERSION = 2
METHODS = {"greedy": "greedy forward selection", "exact": "the best of all subsets", "all": "the mean of all"}


def read(candidates: Sequence[Candidate], which: Which, ledger: Ledger, fusion: str, direction: str) -> Matrices:
    """The candidates' scores on a split, as they are fused, in a direction."""
    found = pool.load(ledger, candidates, which)
    return matrices.fused(matrices.transposed(found) if direction == "a2t" else found, fusion)


def describe(
    candidates: Sequence[Candidate],
    validation: Matrices,
    live: Live,
    selection: Selection,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """All that ensemble.json holds of the choice; test isn't looked at."""
    names = list(dict.fromkeys([arguments.metric, *REPORTED]))
    best = live.best_first()[0]
    systems = {"ensemble": selection.counts, "best_single": one_hot(best, len(candidates))}
    members = explanation.members(live, selection)
    return {
        "format_version": FORMAT_VERSION,
        "pool": " and ".join([*(arguments.sweep or []), *map(str, arguments.pool)]),
        "metric": arguments.metric,
        "metrics": names,
        "method": told_rules(rules_of(arguments)),
        "fusion": FUSIONS_TOLD[arguments.fusion],
        "fusion_name": arguments.fusion,
        "direction": arguments.direction,
        "members": [
            member_json(candidates[member.candidate], member.weight)
            | {
                "count": selection.counts[member.candidate],
                "alone": member.alone,
                "without": member.without,
                "shapley": member.shapley,
            }
            for member in members
        ],
        "best_single": member_json(candidates[best], 1.0),
        "validation": figures.compare(validation, systems, names),
        "share_kept": live.share,
        "likeness": explanation.likeness(live, [member.candidate for member in members]).tolist(),
        "trajectory": [
            {
                "added": None if step.added is None else candidates[step.added].key,
                "removed": None if step.removed is None else candidates[step.removed].key,
                arguments.metric: step.value,
            }
            for step in selection.trajectory
        ],
        "candidates": [candidate.key for candidate in candidates],
    }


FUSIONS_TOLD = {
    "mean": "weighted mean of scores",
    "zscore": "weighted mean of scores after z-norm of each query's",
    "rank": "weighted mean of the ranks of each query's scores",
}


def told_rules(rules: Rules) -> str:
    """How an ensemble was chosen, in words."""
    words = [METHODS[rules.method]]
    if rules.method == "greedy":
        words.append(f"{'with' if rules.replacement else 'without'} replacement, up to {rules.max_size} steps")
        words += [f"beginning with the {rules.sorted_start} best"] * bool(rules.sorted_start)
        words += [f"{rules.bags} bags of {rules.bag_share:.0%} of the candidates"] * bool(rules.bags)
        words += ["stopped by the one-standard-error rule"] * (rules.stop == "one-se")
    return ", ".join([*words, *["refined"] * rules.refine])


def one_hot(place: int, number: int) -> list[int]:
    """The weights of a single candidate."""
    return [int(other == place) for other in range(number)]


def member_json(candidate: Candidate, weight: float) -> dict[str, Any]:
    """A member as ensemble.json names it."""
    found: dict[str, Any] = {"name": candidate.name, "weight": weight}
    if candidate.run:
        return found | {"run_id": candidate.run.info.run_id, "signature": candidate.signature}
    return found | {"folder": str(candidate.folder)}


def sizes(
    source: Matrices, trajectory: Sequence[greedy.Step], places: Sequence[int], metric: str
) -> list[dict[str, Any]]:
    """The metric after each step of the forward selection, with its interval; `places` are the candidates' columns."""
    counts, found = [0] * len(source.names), []
    for step in trajectory:
        if step.removed is not None or step.added is None:
            break
        counts[places[step.added]] += 1
        summary = figures.summary(figures.values(source, counts, [metric]), source.relevance)
        found.append({"value": summary[metric], "interval": summary[f"{metric}_interval"]})
    return found


def look_at_test(
    ensemble: dict[str, Any], candidates: Sequence[Candidate], selection: Selection, live: Live, ledger: Ledger
) -> None:
    """Add the figures on test: after the choice, of the ensemble and the best single candidate."""
    taken = {step.added for step in selection.trajectory if step.added is not None}
    looked_at = sorted({*selection.members, *taken, live.best_first()[0]})
    source = read([candidates[m] for m in looked_at], "test", ledger, ensemble["fusion_name"], ensemble["direction"])
    places = {model: place for place, model in enumerate(looked_at)}
    systems = {
        "ensemble": [selection.counts[model] for model in looked_at],
        "best_single": one_hot(places[live.best_first()[0]], len(looked_at)),
    }
    ensemble["test"] = figures.compare(source, systems, ensemble["metrics"])
    columns = [places.get(model, 0) for model in range(len(candidates))]
    ensemble["sizes"]["test"] = sizes(source, selection.trajectory, columns, ensemble["metric"])


def log_event(
    ledger: Ledger, kind: str, name: str, ensemble: dict[str, Any], files: Sequence[Path], parent: str
) -> int:
    """Log a choice, or an evaluation, as a run; returns how many evaluations on this test split came before."""
    test = ensemble.get("test", {}).get("fingerprint", "")
    earlier = sum(
        1 for kind in ("ensemble", "evaluation") for _ in ledger.runs(kind, f"tags.test_fingerprint = '{test}'")
    )
    tags = {
        "kind": kind,
        "members": ",".join(member.get("signature", member["name"]) for member in ensemble["members"]),
    }
    tags |= {"test_fingerprint": test} if test else {}
    tags |= {"mlflow.parentRunId": parent} if parent else {}
    run_id = ledger.client.create_run(ledger.experiment_id, tags=tags, run_name=name).info.run_id
    for key in ("metric", "method", "fusion", "direction", "pool"):
        ledger.client.log_param(run_id, key, ensemble[key])
    for split in ("validation", "test"):
        for system in ("ensemble", "best_single", "difference"):
            for figure, value in ensemble.get(split, {}).get(system, {}).items():
                if isinstance(value, float):
                    ledger.client.log_metric(run_id, f"{split}_{system}_{figure}", value)
    for step, entry in enumerate(ensemble["trajectory"], start=1):
        ledger.client.log_metric(run_id, "trajectory", entry[ensemble["metric"]], step=step)
    if nested := ensemble.get("nested"):
        ledger.client.log_metric(run_id, "nested_ensemble", nested["ensemble"]["value"])
        ledger.client.log_metric(run_id, "nested_best_single", nested["best_single"]["value"])
    for file in files:
        ledger.client.log_artifact(run_id, str(file))
    ledger.finish(run_id)
    return earlier


def show(ensemble: dict[str, Any], earlier: int | None) -> None:
    """The members, and the figures of ensemble and best single candidate."""
    console = Console(width=max(160, Console().width), highlight=False)
    if ensemble["members"] and "shapley" in ensemble["members"][0]:
        members = Table(
            title=f"Ensemble by {ensemble['metric']} on {ensemble['validation']['split']}: {ensemble['method']}",
            title_justify="left", box=None,
        )  # fmt: skip
        for heading in ("weight", "member", "signature", "alone", "without it", "Shapley value"):
            side = "left" if heading in ("member", "signature") else "right"
            members.add_column(heading, justify=side, no_wrap=True)  # type: ignore[arg-type]
        for member in ensemble["members"]:
            members.add_row(
                f"{member['weight']:.3f}", member["name"], member.get("signature", ""), f"{100 * member['alone']:.2f}",
                f"{100 * member['without']:+.2f}", f"{100 * member['shapley']:.2f}",
            )  # fmt: skip
        console.print(members)
        console.print(f"Best single candidate: {ensemble['best_single']['name']}", markup=False)
    table = Table(title="In percent, with 95 % bootstrap intervals over clips", title_justify="left", box=None)
    table.add_column("split")
    table.add_column("system")
    for name in ensemble["metrics"]:
        table.add_column(TITLES.get(name, name), justify="right", no_wrap=True)
    for split in ("validation", "test"):
        for system in ("best_single", "ensemble", "difference"):
            if found := ensemble.get(split, {}).get(system):
                table.add_row(split, system.replace("_", " "), *(percent(found, name) for name in ensemble["metrics"]))
    console.print(table)
    if nested := ensemble.get("nested"):
        bound = "" if nested["redoes_epochs"] else " or more (epochs were chosen on the same split)"
        console.print(
            f"Nested cross-validation, {nested['folds']} folds: ensemble {percent(nested['ensemble'], 'value')}, best "
            f"single {percent(nested['best_single'], 'value')}; choosing flatters validation by "
            f"{100 * nested['optimism']:.2f}{bound}",
            markup=False,
        )  # fmt: skip
    if earlier is not None:
        console.print(f"Evaluations on {ensemble['test']['split']} that came before this one: {earlier}", markup=False)


def cross_validated(live: Live, arguments: argparse.Namespace, apparent: float) -> dict[str, Any]:
    """What nested cross-validation says of the way of choosing."""
    found = honesty.nested(live, rules_of(arguments), folds=arguments.folds)
    relevant = retrieval.Relevance(live.query_P, live.query_P, live.group_Q)
    return {
        "folds": found.folds,
        "ensemble": figures.summary({"value": found.ensemble_Q}, relevant),
        "best_single": figures.summary({"value": found.best_single_Q}, relevant),
        "optimism": apparent - found.ensemble,
        "redoes_epochs": found.redoes_epochs,
    }


def rules_of(arguments: argparse.Namespace) -> Rules:
    """The rules that the options ask for. A UserError for those that don't go together."""
    greedy_only = ("sorted_start", "bags", "without_replacement", "max_size")
    for name in greedy_only:
        if arguments.method != "greedy" and getattr(arguments, name):
            raise UserError(f"--{name.replace('_', '-')}: that is for --method greedy; leave it out")
    if arguments.method != "greedy" and arguments.stop != "best":
        raise UserError("--stop: that is for --method greedy; leave it out")
    if arguments.bag_share and not arguments.bags:
        raise UserError("--bag-share: that is for --bags; leave it out")
    try:
        return Rules(
            method=arguments.method,
            max_size=arguments.max_size or Rules.max_size,
            replacement=not arguments.without_replacement,
            sorted_start=arguments.sorted_start,
            stop=arguments.stop,
            refine=arguments.refine,
            bags=arguments.bags,
            bag_share=arguments.bag_share or Rules.bag_share,
            seed=arguments.seed,
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
    candidates = [*trials, *(candidate for folder in arguments.pool for candidate in pool.find_files(folder))]
    return ledger, sweeps, candidates


def choose(arguments: argparse.Namespace) -> None:
    """Choose an ensemble, explain it, and look at test once."""
    rules, runs = rules_of(arguments), Runs.of(arguments.runs)
    console = Console(soft_wrap=True, highlight=False)
    ledger, sweeps, candidates = find(arguments, runs)
    validation = read(candidates, "validation", ledger, arguments.fusion, arguments.direction)
    live = replace(compress(validation, arguments.metric), names=tuple(candidate.key for candidate in candidates))
    allowed = None
    if arguments.among:
        allowed = live.best_first()[: arguments.among]
    if rules.method == "exact":
        models = allowed or range(len(candidates))
        if len(models) <= exact.MOST_MODELS:
            expected = exact.expected_s(live, models)
            console.print(f"{2 ** len(models) - 1:,} subsets of {len(models)} candidates: about {expected:.1f} s")
    selection = greedy.select(live, rules, allowed=allowed)
    ensemble = describe(candidates, validation, live, selection, arguments)
    identity = range(len(candidates))
    ensemble["sizes"] = {"validation": sizes(validation, selection.trajectory, identity, arguments.metric)}
    if arguments.folds:
        ensemble["nested"] = cross_validated(live, arguments, selection.value)
    if arguments.cost:
        ensemble["cost"] = arguments.cost
        ensemble["front"] = [
            {"cost": point.cost, "value": point.selection.value,
             "members": [candidates[model].key for model in point.selection.members]}
            for point in explanation.front(live, rules, costs_of(arguments.cost, candidates, runs))
        ]  # fmt: skip
    if not arguments.no_test:
        look_at_test(ensemble, candidates, selection, live, ledger)
    name = sweeps[0].name if sweeps else Path(arguments.pool[0]).resolve().name
    folder = arguments.out or runs.local_folder / "ensembles" / name
    write_json(folder / "ensemble.json", ensemble)
    write_page(folder / "ensemble.html", ensemble, TITLES)
    files = [folder / "ensemble.json", folder / "ensemble.html"]
    parent = sweeps[0].run_id if sweeps else ""
    earlier = log_event(ledger, "ensemble", f"ensemble of {name}", ensemble, files, parent)
    show(ensemble, None if arguments.no_test else earlier)
    for path in files:
        console.print(f"Wrote {path}", markup=False)


def read_ensemble(path: Path) -> dict[str, Any]:
    """An ensemble.json. A UserError names what is wrong with it."""
    ensemble = read_json(path)
    members = ensemble.get("members") if isinstance(ensemble, dict) else None
    if not isinstance(members, list) or not members:
        raise UserError(f"{path} has no members")
    for number, member in enumerate(members, start=1):
        weight = member.get("weight") if isinstance(member, dict) else None
        if not isinstance(weight, int | float) or not np.isfinite(weight) or weight < 0 or "name" not in member:
            raise UserError(
                f"{path}, member {number}: it needs a name, and a weight that isn't negative, not {weight!r}"
            )
    if not sum(member["weight"] for member in members):
        raise UserError(f"{path}: all weights are 0")
    return dict(ensemble)


def members_of(ensemble: dict[str, Any], path: Path, ledger: Ledger, folders: Sequence[Path]) -> list[Candidate]:
    """The candidates that an ensemble's members are. A UserError names one that is gone."""
    found = []
    for member in ensemble["members"]:
        if signature := member.get("signature"):
            run = ledger.finished(signature)
            if run is None:
                raise UserError(
                    f"{path}: member {member['name']!r} ({signature}) is no finished trial of {ledger.tracking_uri}"
                )
            found.append(Candidate(member["name"], signature, run))
            continue
        places = folders or [Path(member["folder"])] if member.get("folder") or folders else []
        folder = next((place for place in places if (place / "validation" / f"{member['name']}.npy").exists()), None)
        if folder is None:
            raise UserError(f"{path}: no file of member {member['name']!r} was found; name its folder with --pool")
        found.append(Candidate(member["name"], folder=folder))
    return found


def evaluate(arguments: argparse.Namespace) -> None:
    """Evaluate, or export, an ensemble that was chosen before."""
    path: Path = arguments.evaluate or arguments.export
    ensemble, runs = read_ensemble(path), Runs.of(arguments.runs)
    ledger = (create_ledger if arguments.pool else open_ledger)(runs, arguments.tracking_uri)
    candidates = members_of(ensemble, path, ledger, arguments.pool)
    weights = [member.get("count", member["weight"]) for member in ensemble["members"]]
    console = Console(soft_wrap=True, highlight=False)
    if arguments.export:
        if ensemble.get("fusion_name", "mean") != "mean":
            raise UserError(f"{path}: only the mean of scores can be an index, not the {ensemble['fusion']}")
        whole = sum(weights)
        target = (arguments.out or path.parent) / f"{arguments.split}-index.arrow"
        shares = [weight / whole for weight in weights]
        target.parent.mkdir(parents=True, exist_ok=True)
        write_embeddings(target, index.concatenated(ledger, candidates, shares, arguments.split))
        console.print(f"Wrote {target}", markup=False)
        return
    source = read(
        candidates, arguments.split, ledger, ensemble.get("fusion_name", "mean"), ensemble.get("direction", "t2a")
    )
    names = list(dict.fromkeys([ensemble.get("metric", arguments.metric), *REPORTED]))
    alone = max(range(len(candidates)), key=lambda place: weights[place])
    systems = {"ensemble": weights, "heaviest_member": one_hot(alone, len(candidates))}
    found = figures.compare(source, systems, names)
    event = {"metric": names[0], "metrics": names, "method": "evaluation", "fusion": ensemble.get("fusion", "mean"),
             "direction": ensemble.get("direction", "t2a"), "pool": ensemble.get("pool", ""), "trajectory": [],
             "members": [{key: member[key] for key in ("name", "weight", "signature") if key in member}
                         for member in ensemble["members"]],
             arguments.split: found}  # fmt: skip
    earlier = log_event(ledger, "evaluation", f"evaluation of {path.parent.name}", event, [], "")
    show(event, earlier if arguments.split == "test" else None)


def main() -> None:
    """The command."""
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
    parser.add_argument("--fusion", choices=sorted(matrices.FUSIONS), default="mean",
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
    rules.add_argument("--seed", type=int, default=0, help="of the bags (default: %(default)s)")
    rules.add_argument("--stop", choices=["best", "one-se"], default="best",
                       help="at the best size, or the smallest within one standard error of it")  # fmt: skip
    rules.add_argument("--refine", action="store_true", help="then take away and swap members while that helps")
    rules.add_argument("--among", type=positive, metavar="N", help="only the N best single candidates")
    rules.add_argument("--folds", type=int, default=honesty.FOLDS,
                       help="of nested cross-validation; 0: none (default: %(default)s)")  # fmt: skip
    rules.add_argument("--cost", metavar="parameters|latency|FILE", help="also the front of accuracy and cost")
    later = parser.add_argument_group("an ensemble that was chosen before")
    later.add_argument("--evaluate", type=Path, metavar="FILE", help="evaluate this ensemble.json on --split")
    later.add_argument("--export", type=Path, metavar="FILE", help="write this ensemble.json's --split as one index")
    later.add_argument("--split", choices=get_args(Which), help="(default: test)")
    arguments = parser.parse_args()
    retrieval.metric(arguments.metric)
    if arguments.folds < 0 or arguments.folds == 1:
        raise UserError(f"--folds {arguments.folds}: two or more, or 0 to do without")
    if arguments.evaluate or arguments.export:
        arguments.split = arguments.split or "test"
        evaluate(arguments)
        return
    if arguments.split:
        raise UserError("--split is for --evaluate and --export: validation chooses, then test is looked at")
    choose(arguments)


if __name__ == "__main__":
    run_command(main)

"""Find the ensemble that retrieves best on the validation split, then look at test once.

python ensemble/select.py --metric map10 [--runs DIR] [--sweep NAME] [--out DIR]
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
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from data.errors import positive, run_command
from data.shards import write_json
from ensemble import greedy
from ensemble.pool import Candidate, SplitScores, find_candidates, load_scores
from trainables import ledger as ledgers
from trainables import retrieval, tracking
from trainables.ledger import Ledger, Sweep, open_ledger
from trainables.runs import Runs

REPORTED = ("map10", "r1", "r5", "r10")
TITLES = {"map10": "mAP@10", "r1": "R@1", "r5": "R@5", "r10": "R@10"}
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Choice:
    """What validation chose: the ensemble, and the best single trial, both as weights over the candidates."""

    selection: greedy.Selection
    best_single: int


def choose(validation: SplitScores, metric_name: str, max_size: int) -> Choice:
    """Choose on validation alone."""
    measure = retrieval.metric(metric_name)

    def evaluate(scores_QA: Any) -> float:
        return float(measure(retrieval.ranks(scores_QA, validation.relevance), validation.relevance).mean())

    selection = greedy.select(validation.scores, evaluate, max_size)
    return Choice(selection, selection.trajectory[0].added)


def figures(scores_QA: Any, relevance: retrieval.Relevance, names: Sequence[str]) -> dict[str, Any]:
    """Each metric's mean over queries, and under NAME_interval its 95 % bootstrap interval over clips."""
    ranks_P = retrieval.ranks(scores_QA, relevance)
    found: dict[str, Any] = {}
    for name in names:
        per_query = retrieval.metric(name)(ranks_P, relevance)
        found[name] = float(per_query.mean())
        found[f"{name}_interval"] = list(retrieval.bootstrap_interval(per_query, relevance))
    return found


def describe(
    sweep: Sweep,
    candidates: Sequence[Candidate],
    choice: Choice,
    metric_name: str,
    validation: SplitScores,
    ledger: Ledger,
) -> dict[str, Any]:
    """All that ensemble.json holds, test included: this is the one look at it."""
    names = list(dict.fromkeys([metric_name, *REPORTED]))
    weights, best = choice.selection.weights, choice.best_single
    members = sorted((index for index, weight in enumerate(weights) if weight), key=lambda index: -weights[index])
    looked_at = list(dict.fromkeys([*members, best]))
    test = load_scores(ledger, [candidates[index] for index in looked_at], tracking.TEST_FILE)
    systems = {
        "ensemble": [choice.selection.counts[index] for index in looked_at],
        "best_single": [int(index == best) for index in looked_at],
    }
    return {
        "format_version": FORMAT_VERSION,
        "sweep": sweep.name,
        "metric": metric_name,
        "method": "greedy forward selection with replacement",
        "fusion": "weighted mean of cosine scores",
        "members": [member_json(candidates[index], weights[index]) for index in members],
        "best_single": member_json(candidates[best], 1.0),
        "validation": compare(validation, looked_at, systems, names),
        "test": compare(test, range(len(looked_at)), systems, names),
        "trajectory": [
            {"added": candidates[step.added].signature, metric_name: step.value} for step in choice.selection.trajectory
        ],
        "candidates": [candidate.signature for candidate in candidates],
    }


def compare(
    split: SplitScores, rows: Sequence[int], systems: dict[str, list[int]], names: Sequence[str]
) -> dict[str, Any]:
    """The figures of each system on a split; a system is how often it takes each of the candidates at `rows`."""
    scores = [split.scores[row] for row in rows]
    return {"split": split.split, "fingerprint": split.fingerprint} | {
        system: figures(greedy.fuse(scores, weights), split.relevance, names) for system, weights in systems.items()
    }


def member_json(candidate: Candidate, weight: float) -> dict[str, Any]:
    """A member as ensemble.json names it."""
    return {
        "name": candidate.name,
        "weight": weight,
        "run_id": candidate.run.info.run_id,
        "signature": candidate.signature,
    }


def log_ensemble(ledger: Ledger, sweep: Sweep, ensemble: dict[str, Any]) -> int:
    """Log the ensemble as a run; returns how many evaluations on this test split came before."""
    test = ensemble["test"]["fingerprint"]
    earlier = sum(1 for _ in ledger.runs("ensemble", f"tags.test_fingerprint = '{test}'"))
    tags = {
        "kind": "ensemble",
        "sweep": sweep.name,
        "test_fingerprint": test,
        "members": ",".join(member["signature"] for member in ensemble["members"]),
        "mlflow.parentRunId": sweep.run_id,
    }
    run_id = ledger.client.create_run(ledger.experiment_id, tags=tags, run_name=f"ensemble of {sweep.name}").info.run_id
    ledger.client.log_param(run_id, "metric", ensemble["metric"])
    for split in ("validation", "test"):
        for system in ("ensemble", "best_single"):
            for name, value in ensemble[split][system].items():
                if isinstance(value, float):
                    ledger.client.log_metric(run_id, f"{split}_{system}_{name}", value)
    for step, entry in enumerate(ensemble["trajectory"], start=1):
        ledger.client.log_metric(run_id, "trajectory", entry[ensemble["metric"]], step=step)
    with tempfile.TemporaryDirectory() as folder:
        write_json(Path(folder) / "ensemble.json", ensemble)
        ledger.client.log_artifacts(run_id, folder)
    ledger.finish(run_id)
    return earlier


def show(ensemble: dict[str, Any], earlier: int) -> None:
    """The members, and the figures of ensemble and best single trial on both splits."""
    console = Console(width=max(160, Console().width), highlight=False)
    members = Table(
        title=f"Ensemble by {ensemble['metric']} on {ensemble['validation']['split']}", title_justify="left", box=None
    )
    for heading in ("weight", "member", "signature"):
        members.add_column(heading, justify="right" if heading == "weight" else "left", no_wrap=True)
    for member in ensemble["members"]:
        members.add_row(f"{member['weight']:.3f}", member["name"], member["signature"])
    console.print(members)
    console.print(f"Best single trial: {ensemble['best_single']['name']}", markup=False)

    names = [name for name in ensemble["validation"]["ensemble"] if not name.endswith("_interval")]
    table = Table(title="In percent, with 95 % bootstrap intervals over clips", title_justify="left", box=None)
    table.add_column("split")
    table.add_column("system")
    for name in names:
        table.add_column(TITLES.get(name, name), justify="right", no_wrap=True)
    for split in ("validation", "test"):
        for system in ("best_single", "ensemble"):
            found = ensemble[split][system]
            table.add_row(split, system.replace("_", " "), *(percent(found, name) for name in names))
    console.print(table)
    console.print(f"Evaluations on {ensemble['test']['split']} that came before this one: {earlier}", markup=False)


def percent(found: dict[str, Any], name: str) -> str:
    """A figure and its interval, for people."""
    low, high = (100 * limit for limit in found[f"{name}_interval"])
    return f"{100 * found[name]:.2f} ({low:.1f} to {high:.1f})"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="select.py", description="Select the ensemble that retrieves best.")
    parser.add_argument(
        "--metric", default="map10", help="map10, r1, r5, r10, map16 (any number), mrr (default: %(default)s)"
    )
    ledgers.add_arguments(parser)
    parser.add_argument("--sweep", help="name of the sweep (default: the newest)")
    parser.add_argument("--out", type=Path, help="where ensemble.json goes (default: RUNS/ensembles/SWEEP)")
    parser.add_argument("--max-size", type=positive, default=20, help="steps of the selection (default: %(default)s)")
    arguments = parser.parse_args()
    retrieval.metric(arguments.metric)

    runs = Runs.of(arguments.runs)
    ledger = open_ledger(runs, arguments.tracking_uri)
    sweep = ledger.sweep(arguments.sweep)
    candidates = find_candidates(ledger, sweep)
    validation = load_scores(ledger, candidates, tracking.VALIDATION_FILE)
    choice = choose(validation, arguments.metric, arguments.max_size)
    ensemble = describe(sweep, candidates, choice, arguments.metric, validation, ledger)
    earlier = log_ensemble(ledger, sweep, ensemble)
    path = (arguments.out or runs.local_folder / "ensembles" / sweep.name) / "ensemble.json"
    write_json(path, ensemble)
    show(ensemble, earlier)
    Console(soft_wrap=True, highlight=False).print(f"Wrote {path}", markup=False)


if __name__ == "__main__":
    run_command(main)

"""A chosen ensemble, as ensemble.json holds it: its members, how they were chosen, and what they come to."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.errors import UserError
from ensemble.pool import evaluation
from ensemble.pool.candidates import Candidate, Which
from ensemble.pool.score_matrices import Matrices
from ensemble.selection import attribution
from ensemble.selection.cross_validation import Nested
from ensemble.selection.greedy import Rules, Selection
from ensemble.selection.pruned_pool import Live
from trainables import retrieval
from trainables.records.ledger import Ledger

METHODS = {"greedy": "greedy forward selection", "exact": "the best of all subsets", "all": "the mean of all"}

FUSIONS_TOLD = {
    "mean": "weighted mean of scores",
    "zscore": "weighted mean of scores after z-norm of each query's",
    "rank": "weighted mean of the ranks of each query's scores",
}

COMPARED_EXACTLY = 16
"""The best single candidates among which all subsets are scored where methods are compared: a second's work."""


def told(rules: Rules) -> str:
    """How an ensemble was chosen, in words."""
    words = [METHODS[rules.method]]
    words += [f"among the {rules.among} best candidates"] * bool(rules.among)
    if rules.method == "greedy":
        words.append(f"{'with' if rules.replacement else 'without'} replacement, up to {rules.max_size} steps")
        words += [f"beginning with the {rules.sorted_start} best"] * bool(rules.sorted_start)
        words += [f"{rules.bags} bags of {rules.bag_share:.0%} of the candidates"] * bool(rules.bags)
        words += ["stopped by the one-standard-error rule"] * (rules.stop == "one-se")
    return ", ".join([*words, *["refined"] * rules.refine])


def compared(rules: Rules, num_candidates: int) -> dict[str, Rules]:
    """The methods that a choice is compared with, by name, with the choice's own settings as far as they have them."""
    greedy = replace(rules, refine=False) if rules.method == "greedy" else Rules(among=rules.among)
    among = rules.among
    if not among and num_candidates > COMPARED_EXACTLY and rules.method != "exact":
        among = COMPARED_EXACTLY
    return {
        "all": Rules("all", among=rules.among),
        "greedy": greedy,
        "greedy, refined": replace(greedy, refine=True),
        f"exact among {among}" if among and not rules.among else "exact": Rules("exact", among=among),
    }


def member_json(candidate: Candidate, weight: float) -> dict[str, Any]:
    """A member as ensemble.json names it."""
    found: dict[str, Any] = {"name": candidate.name, "weight": weight}
    if candidate.run:
        return found | {"run_id": candidate.run.run_id, "signature": candidate.signature}
    return found | {"folder": str(candidate.folder)}


def members_json(
    candidates: Sequence[Candidate], shares: Sequence[attribution.Member], selection: Selection, ledger: Ledger
) -> list[dict[str, Any]]:
    """Return the members with their shares in the ensemble, in that order, and what it takes to train them again."""
    return [
        member_json(candidates[member.candidate], member.weight)
        | {
            "count": selection.counts[member.candidate],
            "alone": member.alone,
            "without": member.without,
            "shapley": member.shapley,
        }
        | (ledger.recipe(run) if (run := candidates[member.candidate].run) else {})
        for member in shares
    ]


def trajectory_json(candidates: Sequence[Candidate], selection: Selection, metric: str) -> list[dict[str, Any]]:
    """The whole way of a selection: who joined or left, and how good the ensemble then was."""
    return [
        {
            "added": None if step.added is None else candidates[step.added].key,
            "removed": None if step.removed is None else candidates[step.removed].key,
            metric: step.value,
        }
        for step in selection.trajectory
    ]


def growth(selection: Selection) -> list[int]:
    """The candidates in the order in which they joined, before any left."""
    history = []
    for step in selection.trajectory:
        if step.removed is not None or step.added is None:
            break
        history.append(step.added)
    return history


def nested_json(found: Nested, live: Live, folds: int, apparent: float, redoes_epochs: bool) -> dict[str, Any]:
    """What nested cross-validation says of a way of choosing; `apparent` is what validation says."""
    relevant = retrieval.Relevance(live.query_P, live.query_P, live.group_Q)
    return {
        "folds": folds,
        "ensemble": evaluation.summary({"value": found.ensemble_Q}, relevant),
        "best_single": evaluation.summary({"value": found.best_single_Q}, relevant),
        "optimism": apparent - found.ensemble,
        "redoes_epochs": redoes_epochs,
    }


def one_hot(place: int, number: int) -> list[int]:
    """The weights of a single candidate."""
    return [int(other == place) for other in range(number)]


def figures_on(
    source: Matrices, systems: Mapping[str, Sequence[float]], metrics: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """On a split: the figures of the systems 'ensemble' and 'best_single' with their difference, and of all others."""
    found = evaluation.compare(source, systems, metrics)
    others = {name: found.pop(name) for name in list(systems)[2:]}
    return found, others


def members_of(
    ensemble: Mapping[str, Any], path: Path, ledger: Ledger, folders: Sequence[Path], which: Which
) -> list[Candidate]:
    """The candidates that an ensemble's members are, to be read on a split. A UserError names one that is gone.

    Files are looked for in `folders`, first in the one that the ensemble names, or in that alone where none are given.
    """
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
        own = Path(member.get("folder", ""))
        places = sorted(folders, key=lambda folder: folder.resolve() != own.resolve()) or [own]
        files = [Candidate(member["name"], folder=place) for place in places]
        file = next((file for file in files if file.file(which).exists()), None)
        if file is None:
            raise UserError(
                f"{path}: no {which} scores of member {member['name']!r} were found; name its folder with --pool"
            )
        found.append(file)
    return found

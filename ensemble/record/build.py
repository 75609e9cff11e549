"""Construction of an ensemble's record from a selection: members, metrics, and the selection method."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from data.errors import UserError
from ensemble.pool import evaluation
from ensemble.pool.candidates import Candidate, Which
from ensemble.pool.score_matrices import Matrices
from ensemble.selection import attribution
from ensemble.selection.cross_validation import Nested
from ensemble.selection.greedy import Rules, Selection
from ensemble.selection.pruned_pool import Live
from trainables import retrieval
from trainables.records.ensemble_file import Ensemble, Estimates, Member, NestedFigures, SplitFigures, Step
from trainables.records.ledger import Ledger

METHODS = {"greedy": "greedy forward selection", "exact": "the best of all subsets", "all": "the mean of all"}

COMPARED_EXACTLY = 16
"""Number of best single candidates among which all subsets are scored when methods are compared: one second of
computation.
"""


def told(rules: Rules) -> str:
    """Return a description of the selection method."""
    words = [METHODS[rules.method]]
    words += [f"among the {rules.among} best candidates"] * bool(rules.among)
    if rules.method == "greedy":
        words.append(f"{'with' if rules.replacement else 'without'} replacement, up to {rules.max_size} steps")
        words += [f"beginning with the {rules.sorted_start} best"] * bool(rules.sorted_start)
        words += [f"{rules.bags} bags of {rules.bag_share:.0%} of the candidates"] * bool(rules.bags)
        words += ["stopped by the one-standard-error rule"] * (rules.stop == "one-se")
    return ", ".join([*words, *["refined"] * rules.refine])


def compared(rules: Rules, num_candidates: int) -> dict[str, Rules]:
    """Return the methods that a selection is compared with, by name, with the selection's own settings where they
    apply.
    """
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


def member_of(candidate: Candidate, weight: float) -> Member:
    """Return a candidate as a member of an ensemble."""
    if candidate.run:
        return Member(candidate.name, weight, candidate.signature, candidate.run.run_id)
    return Member(candidate.name, weight, folder=str(candidate.folder))


def members_with_shares(
    candidates: Sequence[Candidate], shares: Sequence[attribution.Member], selection: Selection, ledger: Ledger
) -> tuple[Member, ...]:
    """Return the members with their attributions, the highest weight first, and what is needed to train them again."""
    return tuple(
        replace(
            member_of(candidate := candidates[share.candidate], share.weight),
            count=selection.counts[share.candidate],
            alone=share.alone,
            without=share.without,
            shapley=share.shapley,
            **(ledger.recipe(candidate.run) if candidate.run else {}),
        )
        for share in shares
    )


def trajectory_of(candidates: Sequence[Candidate], selection: Selection) -> tuple[Step, ...]:
    """Return the steps of a selection, with the candidates' keys."""
    keys = {None: None} | {place: candidate.key for place, candidate in enumerate(candidates)}
    return tuple(Step(step.value, keys[step.added], keys[step.removed]) for step in selection.trajectory)


def growth(selection: Selection) -> list[int]:
    """Return the candidates in the order in which they were added, before any was removed."""
    history = []
    for step in selection.trajectory:
        if step.removed is not None or step.added is None:
            break
        history.append(step.added)
    return history


def nested_figures(found: Nested, live: Live, folds: int, apparent: float, redoes_epochs: bool) -> NestedFigures:
    """Return the metrics of nested cross-validation; `apparent` is the metric on the validation split itself."""
    relevant = retrieval.Relevance(live.query_P, live.query_P, live.group_Q)
    ensemble, best_single = (evaluation.estimate(own_Q, relevant) for own_Q in (found.ensemble_Q, found.best_single_Q))
    return NestedFigures(folds, ensemble, best_single, apparent - found.ensemble, redoes_epochs)


def one_hot(place: int, number: int) -> list[int]:
    """Return the weights of an ensemble of one candidate."""
    return [int(other == place) for other in range(number)]


def figures_on(
    source: Matrices, systems: Mapping[str, Sequence[float]], metrics: Sequence[str]
) -> tuple[SplitFigures, dict[str, Estimates]]:
    """Return the metrics of the first two systems with their difference, and those of all others, on a split."""
    found = evaluation.compare(source, systems, metrics)
    others = {name: found.systems[name] for name in list(systems)[2:]}
    own = {name: estimates for name, estimates in found.systems.items() if name not in others}
    return replace(found, systems=own), others


def candidates_of(
    ensemble: Ensemble, path: Path, ledger: Ledger, folders: Sequence[Path], which: Which
) -> list[Candidate]:
    """Return the candidates of an ensemble's members on a split. Raises UserError that names a missing one.

    Files are looked for in `folders`, first in the one that the ensemble names, or in that alone where none are given.
    """
    found = []
    for member in ensemble.members:
        if member.signature:
            run = ledger.finished(member.signature)
            if run is None:
                raise UserError(
                    f"{path}: member {member.name!r} ({member.signature}) is no finished trial of {ledger.tracking_uri}"
                )
            found.append(Candidate(member.name, member.signature, run))
            continue
        own = Path(member.folder)
        places = sorted(folders, key=lambda folder: folder.resolve() != own.resolve()) or [own]
        files = [Candidate(member.name, folder=place) for place in places]
        file = next((file for file in files if file.file(which).exists()), None)
        if file is None:
            raise UserError(
                f"{path}: no {which} scores of member {member.name!r} were found; name its folder with --pool"
            )
        found.append(file)
    return found

"""Construction of an ensemble's record from a selection: members, metrics, and the selection method."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from data.errors import UserError
from ensemble.pool import evaluation
from ensemble.pool.candidates import Candidate, Role
from ensemble.pool.score_matrices import ScoreMatrices
from ensemble.selection import attribution
from ensemble.selection.cross_validation import NestedCvResult
from ensemble.selection.greedy import Selection, SelectionConfig
from ensemble.selection.pruned_pool import PrunedPool
from trainables import retrieval
from trainables.records.ensemble_file import Ensemble, Estimates, Member, NestedMetrics, SelectionStep, SplitMetrics
from trainables.records.ledger import Ledger

METHOD_LABELS = {"greedy": "greedy forward selection", "exact": "the best of all subsets", "all": "the mean of all"}

MAX_COMPARED_EXACTLY = 16
"""Number of best single candidates whose subsets are scored when methods are compared; they take about a second."""


def describe_method(config: SelectionConfig) -> str:
    """Return a description of the selection method in words, such as 'the best of all subsets, refined'."""
    words = [METHOD_LABELS[config.method]]
    words += [f"among the {config.among} best candidates"] * bool(config.among)
    if config.method == "greedy":
        words.append(f"{'with' if config.replacement else 'without'} replacement, up to {config.max_size} steps")
        words += [f"starting from the {config.sorted_start} best"] * bool(config.sorted_start)
        words += [f"{config.bags} bags of {config.bag_share:.0%} of the candidates"] * bool(config.bags)
        words += ["stopped by the one-standard-error rule"] * (config.stop == "one-se")
    return ", ".join([*words, *["refined"] * config.refine])


def list_compared_methods(config: SelectionConfig, num_candidates: int) -> dict[str, SelectionConfig]:
    """Return, by name, the configs of the methods with which a selection by `config` is compared. Each of them has
    those settings of `config` that its method uses. If there are many candidates (`num_candidates`), the method that
    scores all subsets may be limited to the best ones.
    """
    greedy = replace(config, refine=False) if config.method == "greedy" else SelectionConfig(among=config.among)
    among = config.among
    if not among and num_candidates > MAX_COMPARED_EXACTLY and config.method != "exact":
        among = MAX_COMPARED_EXACTLY
    return {
        "all": SelectionConfig("all", among=config.among),
        "greedy": greedy,
        "greedy, refined": replace(greedy, refine=True),
        f"exact among {among}" if among and not config.among else "exact": SelectionConfig("exact", among=among),
    }


def build_member(candidate: Candidate, weight: float) -> Member:
    """Return a candidate as a member of an ensemble with this weight, without its contribution to the metric."""
    if candidate.run:
        run = candidate.run
        relations = run.relations
        return Member(
            candidate.name, weight, candidate.signature, run.run_id, teachers=relations.teachers,
            snapshot_of=relations.snapshot_of or "", average_of=relations.average_of,
        )  # fmt: skip
    return Member(candidate.name, weight, folder=str(candidate.folder))


def build_members(
    candidates: Sequence[Candidate], shares: Sequence[attribution.Attribution], selection: Selection, ledger: Ledger
) -> tuple[Member, ...]:
    """Return the members of a selected ensemble, the highest weight first, each with its contribution to the metric (in
    `shares`) and what the ledger has of its training, which is needed to train it again.
    """
    return tuple(
        replace(
            build_member(candidate := candidates[share.candidate], share.weight),
            count=selection.counts[share.candidate],
            alone=share.alone,
            without=share.without,
            shapley=share.shapley,
            **(ledger.load_recipe(candidate.run) if candidate.run else {}),
        )
        for share in shares
    )


def build_trajectory(candidates: Sequence[Candidate], selection: Selection) -> tuple[SelectionStep, ...]:
    """Return the steps of a selection for ensemble.json, in which candidates are given by key instead of index."""
    keys = {None: None} | {index: candidate.key for index, candidate in enumerate(candidates)}
    return tuple(SelectionStep(step.value, keys[step.added], keys[step.removed]) for step in selection.trajectory)


def list_additions(selection: Selection) -> list[int]:
    """Return the indices of the candidates in the order in which they were added, up to the first step that removed
    one.
    """
    history = []
    for step in selection.trajectory:
        if step.removed is not None or step.added is None:
            break
        history.append(step.added)
    return history


def build_nested_metrics(
    result: NestedCvResult, pruned: PrunedPool, folds: int, apparent: float, redoes_epochs: bool
) -> NestedMetrics:
    """Return the metrics of nested cross-validation with their intervals, and the selection optimism: `apparent`, the
    metric on the split that was selected on, minus the cross-validated metric. The number of folds, and whether each
    trial's epoch was chosen anew in each fold (`redoes_epochs`), are recorded with them.
    """
    relevant = retrieval.Relevance(pruned.query_P, pruned.query_P, pruned.group_Q)
    ensemble, best_single = (
        evaluation.estimate(values_Q, relevant) for values_Q in (result.ensemble_Q, result.best_single_Q)
    )
    return NestedMetrics(folds, ensemble, best_single, apparent - result.ensemble, redoes_epochs)


def make_single_weights(index: int, num_candidates: int) -> list[int]:
    """Return `num_candidates` weights: 1 for the candidate with this index, and 0 for all others."""
    return [int(other == index) for other in range(num_candidates)]


def compute_split_metrics(
    source: ScoreMatrices, systems: Mapping[str, Sequence[float]], metrics: Sequence[str]
) -> tuple[SplitMetrics, dict[str, Estimates]]:
    """Return two values for a split: the metrics of the first two of `systems` with their difference, and a dict of the
    metrics of the remaining systems by name. A system is given by a weight for each candidate of `source`; `metrics`
    are the names of the metrics.
    """
    split_metrics = evaluation.compare_systems(source, systems, metrics)
    others = {name: split_metrics.systems[name] for name in list(systems)[2:]}
    compared = {name: estimates for name, estimates in split_metrics.systems.items() if name not in others}
    return replace(split_metrics, systems=compared), others


def find_member_candidates(
    ensemble: Ensemble, path: Path, ledger: Ledger, folders: Sequence[Path], role: Role
) -> list[Candidate]:
    """Return the members of the ensemble in the file `path` as candidates. Trials are found in the ledger. A file of
    scores must exist for the split with this role. It is searched in `folders`, starting with the folder that the
    ensemble names if that is one of them; if `folders` is empty, only in the folder that the ensemble names. Raises
    UserError with the name of a member that no longer exists.
    """
    candidates = []
    for member in ensemble.members:
        if member.signature:
            run = ledger.find_finished_trial(member.signature)
            if run is None:
                raise UserError(
                    f"{path}: member {member.name!r} ({member.signature}) isn't a finished trial "
                    f"in {ledger.tracking_uri}"
                )
            candidates.append(Candidate(member.name, member.signature, run))
            continue
        recorded_folder = Path(member.folder)
        search_folders = sorted(folders, key=lambda folder: folder.resolve() != recorded_folder.resolve()) or [
            recorded_folder
        ]
        files = [Candidate(member.name, folder=folder) for folder in search_folders]
        file = next((file for file in files if file.locate_scores(role).exists()), None)
        if file is None:
            raise UserError(f"{path}: no {role} scores of {member.name!r} exist: give its folder with --pool")
        candidates.append(file)
    return candidates

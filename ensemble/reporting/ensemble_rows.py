"""Ensembles in a report: those selected from its trials, with their metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data.errors import UserError
from ensemble.pool import evaluation, score_matrices
from ensemble.pool.candidates import EMBEDDINGS_FILES, Candidate, Role, load_trial_scores
from ensemble.pool.score_matrices import ScoreMatrices
from ensemble.reporting import paper_results
from ensemble.reporting.trial_rows import EvaluatedTrials, TrialRow
from ensemble.selection.pool_choice import make_loader
from trainables.records.embeddings import Embeddings
from trainables.records.ensemble_file import Ensemble, Estimates, Member, read_ensemble
from trainables.records.ledger import EventRun, Ledger, MissingArtifactError, Sweep


@dataclass(frozen=True)
class EnsembleRow:
    """Ensemble in the report: the rows of its members, in the ensemble's order, and its metrics."""

    name: str  # name of its MLflow run
    ensemble: Ensemble
    members: list[TrialRow]
    metrics: Estimates  # metrics; empty if there are none
    missing: str = ""  # reason why there are none, or why they are those logged at selection
    scores: ScoreMatrices | None = None  # of the members, with the fusion applied, if their embeddings exist

    @property
    def numbers(self) -> list[int]:
        """Numbers of the members' rows in the table."""
        return sorted(row.number for row in self.members)

    @property
    def matches_paper_ensemble(self) -> bool:
        """Whether the members are trials that reproduce those of the paper's ensemble."""
        published = [row for row in self.members if paper_results.find_published(row.trial)]
        return (
            sorted(row.key for row in published) == sorted(paper_results.ENSEMBLE_MEMBERS) and published == self.members
        )


def read_ensembles(ledger: Ledger, sweeps: Sequence[Sweep]) -> tuple[list[tuple[str, Ensemble]], list[str]]:
    """Return two values: the text-to-audio ensembles selected from sweeps, the newest first, each after a text that
    names it; and a sentence with the reason for each ensemble that can't be read.
    """
    ensembles, problems = [], []
    for run in iter_ensemble_runs(ledger, sweeps):
        name = f"{run.name} ({run.run_id[:8]})"
        try:
            with ledger.open_event_file(run, "ensemble.json") as path:
                ensemble = read_ensemble(path)
        except MissingArtifactError:
            problems.append(f"{name} isn't shown: its ensemble.json no longer exists")
        except UserError as error:
            problems.append(f"{name} isn't shown: {error}")
        else:
            ensembles += [(name, ensemble)] if ensemble.direction == "t2a" else []
    return ensembles, problems


def find_soups(ledger: Ledger, ensembles: Sequence[tuple[str, Ensemble]]) -> list[Candidate]:
    """Return the soups that are members of the ensembles as candidates, each once: they belong to no sweep."""
    members = [member for _, ensemble in ensembles for member in ensemble.members if member.average_of]
    runs = {member.signature: ledger.find_finished_trial(member.signature) for member in members}
    return [Candidate(run.name, signature, run) for signature, run in runs.items() if run]


def build_ensemble_rows(
    ledger: Ledger, ensembles: Sequence[tuple[str, Ensemble]], evaluated: EvaluatedTrials, role: Role
) -> tuple[list[EnsembleRow], list[str]]:
    """Return two values: a row for each of the named ensembles whose members are evaluated trials, with its metrics on
    the split with this role, in the order of `ensembles`; and a sentence with the reason for each other ensemble. Equal
    ensembles have one row.
    """
    by_signature = {row.candidate.signature: row for row in evaluated.rows}
    rows: dict[tuple[Any, ...], EnsembleRow] = {}
    problems = []
    for name, ensemble in ensembles:
        member_rows = [find_row(member, by_signature) for member in ensemble.members]
        unknown_members = [
            member.name for member, row in zip(ensemble.members, member_rows, strict=True) if row is None
        ]
        if unknown_members:
            problems.append(
                f"{name} isn't shown: its member {unknown_members[0]!r} isn't a trial in this report; "
                "--sweep takes several names"
            )
            continue
        weighted = sorted((member.signature, member.weight) for member in ensemble.members)
        key = (ensemble.metric, ensemble.fusion, ensemble.temperature, *weighted)
        if key not in rows:
            members = [row for row in member_rows if row]
            rows[key] = evaluate_ensemble(name, ensemble, members, evaluated, role, ledger)
    return list(rows.values()), problems


def find_row(member: Member, by_signature: Mapping[str, TrialRow]) -> TrialRow | None:
    """Return the row of a member; None if it has none. `by_signature` has the rows of trials. The row of a snapshot
    after the best epoch is that of its training, since it is the same model.
    """
    training = by_signature.get(member.snapshot_of)
    is_best = training is not None and training.candidate.trial_run.metrics.get("best_epoch") == member.epoch
    return by_signature.get(member.signature) or (training if is_best else None)


def iter_ensemble_runs(ledger: Ledger, sweeps: Sequence[Sweep]) -> Iterator[EventRun]:
    """Return an iterator over the ledger's records of the ensembles selected from the sweeps, the newest first."""
    parents = {sweep.run_id for sweep in sweeps}
    return (run for run in ledger.iter_events("ensemble") if run.sweep_run_id in parents)


def evaluate_ensemble(
    name: str, ensemble: Ensemble, members: list[TrialRow], evaluated: EvaluatedTrials, role: Role, ledger: Ledger
) -> EnsembleRow:
    """Return the row of an ensemble with its metrics on the split with this role, computed from the scores in
    `evaluated`. If embeddings or the query bank of a member are missing, the metrics are those logged when the ensemble
    was selected.
    """
    missing_numbers = [str(row.number) for row in members if row.candidate.signature not in evaluated.indices]
    problem = f"the embeddings of {', '.join(missing_numbers)} are missing"
    if not missing_numbers:
        try:
            source = select_member_scores(evaluated, members, ensemble, role, ledger)
        except UserError as error:
            problem = str(error)
        else:
            values = evaluation.compute_per_query(source, ensemble.weights, paper_results.METRICS)
            return EnsembleRow(
                name, ensemble, members, evaluation.estimate_all(values, source.relevance), scores=source
            )
    recorded = ensemble.metrics_on(role)
    if recorded and (evaluated.source is None or recorded.fingerprint == evaluated.source.fingerprint):
        metrics = recorded.systems.get("ensemble", {})
        if all(metric in metrics for metric in paper_results.METRICS):
            return EnsembleRow(
                name, ensemble, members, metrics, f"{problem}: its metrics are those logged at selection"
            )
    return EnsembleRow(name, ensemble, members, {}, f"{problem}: it has no metrics")


def select_member_scores(
    evaluated: EvaluatedTrials, members: Sequence[TrialRow], ensemble: Ensemble, role: Role, ledger: Ledger
) -> ScoreMatrices:
    """Return the score matrices of an ensemble's members with its fusion applied, with queries and clips in the order
    of `evaluated.source`. The scores are taken from there or, if the fusion is by a query bank, computed from the
    embeddings in the ledger for the split with this role.

    Raises UserError if a member has no query bank, though the fusion needs it.
    """
    assert evaluated.source is not None
    normalised = make_loader(ledger, ensemble.fusion, ensemble.temperature)
    if normalised is None:
        member_scores = evaluated.source.select([evaluated.indices[row.candidate.signature] for row in members])
        return score_matrices.apply_fusion(member_scores, ensemble.fusion)
    candidates, split = [row.candidate for row in members], evaluated.split

    def load(candidate: Candidate, file: str) -> Embeddings:
        return split if candidate is REFERENCE and split else normalised(candidate, file)

    file = EMBEDDINGS_FILES[role]
    source = load_trial_scores(ledger, [(candidate, file) for candidate in (REFERENCE, *candidates)], load)
    return source.select(range(1, len(candidates) + 1))


REFERENCE = Candidate("the report's first trial")
"""Candidate that stands for the embeddings by which queries and clips are ordered."""

"""Trials in a report, read from the ledger: rows of a table with metrics, learning curves and costs.

Shapes: Q queries, A clips.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from data.errors import UserError
from ensemble.pool import evaluation
from ensemble.pool.candidates import EMBEDDINGS_FILES, Candidate, Role, load_trial_scores
from ensemble.pool.score_matrices import ScoreMatrices
from ensemble.record.build import make_single_weights
from ensemble.reporting import main_effects, paper_results
from trainables import trial as trials
from trainables.records.embeddings import Embeddings
from trainables.records.ensemble_file import Estimates
from trainables.records.ledger import Ledger, MissingArtifactError
from trainables.trial import Trial


@dataclass(frozen=True)
class TrialRow:
    """Row of the report's table: a trial with its metrics, learning curves and cost."""

    number: int
    candidate: Candidate
    trial: Trial
    curves: Mapping[str, Mapping[int, float]]  # by metric and epoch
    hours: float  # from the first start of its run to the end
    gpus: float | None = None  # None if unknown
    cpus: float | None = None
    metrics: Estimates = field(default_factory=dict)  # metrics; empty if there are none
    missing: str = ""  # reason why there are none
    is_snapshot: bool = False  # whether the training in another row has published it

    @property
    def key(self) -> paper_results.TableKey:
        """Key of the row in the paper's Table 2 that the trial corresponds to."""
        return paper_results.make_key(self.trial)

    @property
    def overlap(self) -> str:
        """Overlap of neighbouring spectrogram patches as text: 'mel bands x frames', 'none' without overlap, '-'
        without patches.
        """
        shared = self.trial.audio.patch_overlap
        if shared is None:
            return "-"
        return " x ".join(map(str, shared)) if any(shared) else "none"

    @property
    def best_map10(self) -> float:
        """Best mAP@10 on validation; NaN if nothing was validated."""
        return max(self.curves["map10"].values(), default=float("nan"))


def reset_seeds(trial: Trial) -> Trial:
    """Return a copy of a trial with seed 0, also in its pretraining. The copies of trials that differ only in their
    seeds are equal.
    """
    return replace(trial, seed=0, pretraining=reset_seeds(trial.pretraining) if trial.pretraining else None)


def build_rows(ledger: Ledger, candidates: Sequence[Candidate]) -> tuple[list[TrialRow], list[str]]:
    """Return the candidates' trials as rows of the table, without metrics, and a list of messages about candidates that
    are left out because their configs can't be read.

    Rows are grouped by pair of encoders, with pretrainings before fine-tunings, seeds next to each other and snapshots
    after their training.
    """
    by_signature = {candidate.signature: candidate.trial_run for candidate in candidates}
    readable, problems = [], []
    for candidate in candidates:
        try:
            trial = trials.from_json(ledger.load_config(candidate.trial_run))
        except UserError as error:
            is_gone = isinstance(error, MissingArtifactError)
            reason = f"it no longer exists in {candidate.trial_run.artifacts}" if is_gone else str(error)
            problems.append(f"{candidate.name} is left out: its config can't be read: {reason}")
            continue
        readable.append((make_sort_key(trial), candidate, trial))
    readable.sort(key=lambda entry: (entry[0], entry[1].key))
    rows = []
    for number, (_, candidate, trial) in enumerate(readable, start=1):
        run = candidate.trial_run
        training = by_signature.get(run.relations.snapshot_of or "")
        is_snapshot = training is not None and run.snapshot_epoch in training.cycle_ends
        curves = ledger.load_curves(run)
        rows.append(TrialRow(number, candidate, trial, curves, run.hours, run.gpus, run.cpus, is_snapshot=is_snapshot))
    return rows, problems


def leave_out_snapshots(rows: Sequence[TrialRow]) -> list[TrialRow]:
    """Return the rows without the snapshots that the training of another row has published: they are no independent
    trials, and their hours and learning curves are those of the training.
    """
    return [row for row in rows if not row.is_snapshot]


def make_sort_key(trial: Trial) -> tuple[Any, ...]:
    """Return the key by which trials are sorted in the table: by encoders, stage, paraphrase probability, learning rate
    and all settings but the seeds, then by seeds and by the epoch of a snapshot.
    """
    rate = trial.schedule.peak_rate
    return (
        paper_results.make_key(trial),
        trial.paraphrase_probability,
        rate,
        repr(reset_seeds(replace(trial, snapshot_epoch=None))),
        list_seeds(trial),
        trial.snapshot_epoch or 0,
    )


def list_seeds(trial: Trial) -> tuple[int, ...]:
    """Return the seeds of a trial's stages, from the first to the last."""
    return (*(list_seeds(trial.pretraining) if trial.pretraining else ()), trial.seed)


@dataclass(frozen=True)
class EvaluatedTrials:
    """Rows with their metrics on a split, and the scores of the rows that have metrics."""

    rows: list[TrialRow]
    source: ScoreMatrices | None = None  # None if no row has metrics
    indices: dict[str, int] = field(default_factory=dict)  # indices in the source, by signature
    split: Embeddings | None = None  # embeddings with queries and clips in the source's order


def evaluate_rows(ledger: Ledger, rows: Sequence[TrialRow], role: Role) -> EvaluatedTrials:
    """Return the rows with their metrics on the split with this role; rows without metrics have the reason in
    `missing`.
    """
    embedded_rows, reasons = [], {}
    for row in rows:
        try:
            split = ledger.load_embeddings(row.candidate.trial_run, EMBEDDINGS_FILES[role])
            embedded_rows.append((row, split))
        except MissingArtifactError as error:
            reasons[row.number] = f"its embeddings of {role} can't be found in {error.where}"
        except UserError as error:
            reasons[row.number] = str(error)
    if not embedded_rows:
        return EvaluatedTrials([replace(row, missing=reasons[row.number]) for row in rows])
    source = load_trial_scores(ledger, [(row.candidate, EMBEDDINGS_FILES[role]) for row, _ in embedded_rows])
    estimates: dict[int, Estimates] = {}
    for index, (row, _) in enumerate(embedded_rows):
        try:
            values = evaluation.compute_per_query(
                source.select([index]), make_single_weights(0, 1), paper_results.METRICS
            )
            estimates[row.number] = evaluation.estimate_all(values, source.relevance)
        except UserError as error:
            reasons[row.number] = str(error)
    evaluated = [
        replace(row, metrics=estimates.get(row.number, {}), missing=reasons.get(row.number, "")) for row in rows
    ]
    indices = {
        row.candidate.signature: index for index, (row, _) in enumerate(embedded_rows) if row.number in estimates
    }
    return EvaluatedTrials(evaluated, source, indices, embedded_rows[0][1]) if indices else EvaluatedTrials(evaluated)


def group_by_settings(rows: Sequence[TrialRow]) -> dict[Trial, list[TrialRow]]:
    """Return groups of rows whose trials differ only in their seeds. The keys are the trials with seed 0."""
    groups: dict[Trial, list[TrialRow]] = {}
    for row in rows:
        groups.setdefault(reset_seeds(row.trial), []).append(row)
    return groups


def describe_other_settings(rows: Sequence[TrialRow]) -> dict[int, str]:
    """Return, by the number of a row, text with those settings that vary within its stage but have no column of their
    own. The text of a snapshot is that of its training, with the epoch; that of a soup says of how many models it is.
    """
    descriptions = {row.number: f"soup of {len(row.trial.average_of)}" for row in rows if row.trial.average_of}
    trained = [row for row in rows if not row.trial.average_of]
    configs = {row.number: replace(row.trial, snapshot_epoch=None) if row.is_snapshot else row.trial for row in rows}
    for stage in dict.fromkeys(row.trial.stage for row in trained):
        stage_rows = [row for row in trained if row.trial.stage == stage]
        varying = main_effects.find_varying_factors([configs[row.number] for row in stage_rows])
        shares = {row.trial.paraphrase_probability for row in stage_rows} - {0.0}
        hidden = {"audio", "text", *(() if len(shares) > 1 else ("paraphrases",))}
        names = [name for name in varying if name not in hidden and not name.endswith("seed")]
        for index, row in enumerate(stage_rows):
            levels = [(name, varying[name][index]) for name in names]
            texts = [level if name == "paraphrases" else f"{name} {level}" for name, level in levels]
            texts += [f"epoch {row.trial.snapshot_epoch}"] * row.is_snapshot
            descriptions[row.number] = ", ".join(texts)
    return descriptions


@dataclass(frozen=True)
class SeedBand:
    """Mean, minimum and maximum of a learning curve over trials that differ only in their seeds."""

    share: float  # paraphrase probability
    seeds: int  # number of trials
    points: Mapping[int, tuple[float, float, float]]  # mean, minimum and maximum by epoch


def build_bands(rows: Sequence[TrialRow], metric: str = "validation_loss") -> dict[str, list[SeedBand]]:
    """Return the data of plots like the paper's Figure 2, by title: for fine-tunings that differ only in seeds and
    paraphrase probability, a band of the metric's learning curves for each probability.
    """
    settings = {
        setting: rows_with_curve
        for setting, group in group_by_settings(rows).items()
        if setting.pretraining and (rows_with_curve := [row for row in group if row.curves[metric]])
    }
    names = build_titles([replace(setting, paraphrase_probability=0.0) for setting in settings])
    bands: dict[str, list[SeedBand]] = {}
    for (setting, group), title in zip(settings.items(), names, strict=True):
        curve = average_curves([row.curves[metric] for row in group])
        if curve:
            bands.setdefault(title, []).append(SeedBand(setting.paraphrase_probability, len(group), curve))
    return bands


def build_titles(settings: Sequence[Trial]) -> list[str]:
    """Return a title for each trial: its encoders, and the other settings in which the trials differ."""
    varying = main_effects.find_varying_factors(settings)
    titles = []
    for index, setting in enumerate(settings):
        more = [f"{name} {levels[index]}" for name, levels in varying.items() if name not in ("audio", "text")]
        titles.append(", ".join([paper_results.make_key(setting).audio, paper_results.make_key(setting).text, *more]))
    return titles


def average_curves(curves: Sequence[Mapping[int, float]]) -> dict[int, tuple[float, float, float]]:
    """Return the mean, the minimum and the maximum of some curves by epoch, as triples, for the epochs that all of them
    have.
    """
    shared = sorted(set.intersection(*(set(curve) for curve in curves)))
    values = {epoch: [curve[epoch] for curve in curves] for epoch in shared}
    return {
        epoch: (float(np.mean(epoch_values)), min(epoch_values), max(epoch_values))
        for epoch, epoch_values in values.items()
    }

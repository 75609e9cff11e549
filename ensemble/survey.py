"""What a sweep has come to, read from the ledger: its trials as rows of a table, their curves, effects and costs.

Shapes: Q queries, A clips.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from mlflow.exceptions import MlflowException
from numpy.typing import NDArray

from ensemble import figures, paper
from ensemble.chosen import one_hot
from ensemble.matrices import Matrices
from ensemble.pool import FILES, Candidate, Which, load_trials
from trainables import encoders
from trainables import trial as trials
from trainables.ledger import Ledger
from trainables.trial import Trial

FACTORS: dict[str, Callable[[Trial], str]] = {
    "audio": lambda trial: encoders.label(trial.audio),
    "text": lambda trial: encoders.label(trial.text),
    "paraphrases": lambda trial: f"p {trial.paraphrase_probability:g}",
    "stage": lambda trial: trial.stage,
    "peak rate / pretraining's": lambda trial: (
        f"{trial.schedule.peak_rate / trial.pretraining.schedule.peak_rate:.2g}" if trial.pretraining else "1"
    ),
    "seed": lambda trial: str(trial.seed),
}
"""What trials of a grid differ in."""

LEVEL_DRAWS = 2000


@dataclass(frozen=True)
class Row:
    """A trial of the table."""

    number: int
    candidate: Candidate
    trial: Trial
    curves: Mapping[str, Mapping[int, float]]  # of each metric, by epoch
    hours: float  # from its run's first start to its end
    gpus: float  # 0: none, or not known
    figures: dict[str, Any] = field(default_factory=dict)  # as `figures.summary` has them; empty where there are none
    missing: str = ""  # why there are none

    @property
    def key(self) -> paper.Key:
        """The row of the paper's table that it would be."""
        audio, text = encoders.label(self.trial.audio), encoders.label(self.trial.text)
        return paper.Key(audio, text, self.trial.pretraining is not None, self.trial.paraphrase_probability > 0)

    @property
    def overlap(self) -> str:
        """By how much patches of a spectrogram overlap: none, or the stride that makes them."""
        stride, patch = getattr(self.trial.audio, "stride", None), getattr(self.trial.audio, "patch", None)
        if stride is None or patch is None:
            return "-"
        shared = [max(0, size - step) for size, step in zip(patch, stride, strict=True)]
        return " x ".join(map(str, shared)) if any(shared) else "none"

    @property
    def published(self) -> paper.Figures | None:
        """The paper's figures of that row."""
        return paper.TABLE_2.get(self.key)


def rows_of(ledger: Ledger, candidates: Sequence[Candidate]) -> list[Row]:
    """The trials as rows without figures: pairs together, pretrainings before fine-tunings."""
    found = []
    for candidate in candidates:
        assert candidate.run is not None
        trial = trials.from_json(ledger.recipe(candidate.run)["trial"])
        found.append((order_of(trial), candidate, trial))
    found.sort(key=lambda entry: (entry[0], entry[1].key))
    return [
        Row(number, candidate, trial, curves_of(ledger, candidate), hours_of(candidate), gpus_of(candidate))
        for number, (_, candidate, trial) in enumerate(found, start=1)
    ]


def order_of(trial: Trial) -> tuple[str, str, bool, float, int]:
    """Where a trial stands in the table."""
    pair = encoders.label(trial.audio), encoders.label(trial.text)
    return (*pair, trial.pretraining is not None, trial.paraphrase_probability, trial.seed)


def curves_of(ledger: Ledger, candidate: Candidate) -> dict[str, dict[int, float]]:
    """A trial's losses and its mAP@10 after each epoch."""
    assert candidate.run is not None
    names = ("train_loss", "validation_loss", "map10")
    history = {name: ledger.client.get_metric_history(candidate.run.info.run_id, name) for name in names}
    return {name: {entry.step: entry.value for entry in entries} for name, entries in history.items()}


def hours_of(candidate: Candidate) -> float:
    """How long a trial took, from its first start to its end."""
    assert candidate.run is not None
    info = candidate.run.info
    return max(0.0, float((info.end_time or info.start_time) - info.start_time) / 3.6e6)


def gpus_of(candidate: Candidate) -> float:
    """How many GPUs a trial used; 0 where it used none, or nothing says how many."""
    assert candidate.run is not None
    return float(candidate.run.data.tags.get("gpus", 0))


def judge(ledger: Ledger, rows: Sequence[Row], which: Which) -> tuple[Matrices | None, list[Row]]:
    """The rows with their figures on a split, and its scores; a row whose embeddings aren't there says why.

    Without any, there are no scores.
    """
    there, reasons = [], {}
    for row in rows:
        try:
            assert row.candidate.run is not None
            ledger.embeddings(row.candidate.run, FILES[which])
            there.append(row)
        except (MlflowException, OSError, ValueError) as error:
            reasons[row.number] = str(error).partition("\n")[0]
    if not there:
        return None, [with_figures(row, {}, reasons[row.number]) for row in rows]
    source = load_trials(ledger, [(row.candidate, FILES[which]) for row in there])
    found = {}
    for place, row in enumerate(there):
        values = figures.values(source.only([place]), one_hot(0, 1), paper.METRICS)
        found[row.number] = figures.summary(values, source.relevance)
    return source, [with_figures(row, found.get(row.number, {}), reasons.get(row.number, "")) for row in rows]


def with_figures(row: Row, found: dict[str, Any], missing: str) -> Row:
    """The row with figures, or with why it has none."""
    return Row(row.number, row.candidate, row.trial, row.curves, row.hours, row.gpus, found, missing)


@dataclass(frozen=True)
class Level:
    """The trials that share a level of a factor."""

    factor: str
    level: str
    number: int
    mean: float
    interval: tuple[float, float]  # 95 %, by drawing trials with replacement


def effects(rows: Sequence[Row], metric: str = "map10") -> list[Level]:
    """Each factor's main effects: the mean best mAP@10 on validation over the trials at each of its levels.

    Factors that don't vary are left out. In a full grid the other factors are the same at each level.
    """
    best = np.array([max(row.curves[metric].values(), default=np.nan) for row in rows])
    rng = np.random.default_rng(0)
    found = []
    for factor, level_of in FACTORS.items():
        levels = np.array([level_of(row.trial) for row in rows])
        if len(set(levels)) < 2:
            continue
        for level in sorted(set(levels)):
            values = best[levels == level]
            found.append(Level(factor, str(level), len(values), float(values.mean()), spread(values, rng)))
    return found


def spread(values: NDArray[np.float64], rng: np.random.Generator) -> tuple[float, float]:
    """The bootstrap interval of a mean over trials."""
    means = values[rng.integers(len(values), size=(LEVEL_DRAWS, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


@dataclass(frozen=True)
class Band:
    """Trials that differ in their seed alone: a curve's mean, and its least and greatest."""

    label: str
    seeds: int
    points: Mapping[int, tuple[float, float, float]]  # by epoch


def bands(rows: Sequence[Row], metric: str = "validation_loss") -> dict[str, list[Band]]:
    """Figure 2: the fine-tunings of each pair of encoders by their share of paraphrases, over seeds."""
    groups: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        if row.trial.pretraining:
            pair = f"{row.key.audio}, {row.key.text}, rate {row.trial.schedule.peak_rate:g}"
            groups.setdefault(pair, {}).setdefault(f"p {row.trial.paraphrase_probability:g}", []).append(row)
    return {
        pair: [Band(label, len(own), points([row.curves[metric] for row in own])) for label, own in by_share.items()]
        for pair, by_share in groups.items()
    }


def points(curves: Sequence[Mapping[int, float]]) -> dict[int, tuple[float, float, float]]:
    """Mean, least and greatest of the curves at each epoch that all of them have."""
    shared = sorted(set.intersection(*(set(curve) for curve in curves)))
    values = {epoch: [curve[epoch] for curve in curves] for epoch in shared}
    return {epoch: (float(np.mean(own)), min(own), max(own)) for epoch, own in values.items()}

"""Main effects: the factors in which the trials of a grid differ, and the effect of each on a metric.

Shapes: N trials, K coefficients.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainables import encoders
from trainables import trial as trials
from trainables.records.mlflow_ledger import flatten_settings
from trainables.trial import Trial

CONFIDENCE_LEVEL = 0.95
"""Confidence level of intervals."""

NO_LEVEL = "none"
"""Level of a trial that lacks a setting."""

NON_FACTORS = ("validation", "test")
"""Settings of a trial in which the trials of a sweep do not differ."""


def list_factors(trial: Trial) -> dict[str, str]:
    """Return all settings in which a trial could differ from others, by name, the most important first and seeds last.

    A rate is told as a share of the one that it goes with, since encoders have rates of their own.
    """
    found = {
        "audio": encoders.format_label(trial.audio),
        "text": encoders.format_label(trial.text),
        "stage": trial.stage,
    }
    own = list_own_settings(trial, "")
    before = list_own_settings(trial.pretraining, "pretraining's ") if trial.pretraining else {}
    found |= {"paraphrases": f"p {trial.paraphrase_probability:g}", **own, **before}
    for name in [name for name in found if name.endswith("seed")]:
        found[name] = found.pop(name)
    return found


def list_own_settings(trial: Trial, prefix: str) -> dict[str, str]:
    """Return a trial's settings without those of its pretraining, relative to whose rate its own is given."""
    given: dict[str, Any] = dict(flatten_settings(trials.to_json(trial) | {"pretraining": None}))
    for name in (*NON_FACTORS, "pretraining", "paraphrase_probability", "audio.family", "text.family"):
        del given[name]
    peak, final = trial.schedule.peak_rate, trial.schedule.final_rate
    share = {"peak_rate": ("", peak), "final_rate": (" / peak rate", final / peak)}
    if trial.pretraining:
        share["peak_rate"] = (" / pretraining's", peak / trial.pretraining.schedule.peak_rate)
    found = {}
    for key, value in given.items():
        stem = key.rpartition(".")[2] if key.startswith("schedule.") else key
        ending, shown = share.get(stem, ("", value))
        found[f"{prefix}{stem.replace('_', ' ')}{ending}"] = format_setting(shown)
    return found


def format_setting(value: Any) -> str:
    """Return a setting, human-readable."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return " + ".join(map(format_setting, value)) if isinstance(value, list | tuple) else str(value)


def find_varying_factors(those: Sequence[Trial]) -> dict[str, list[str]]:
    """Return the factors in which some trials differ, each with its level in every trial.

    Left out is what is the same in all trials, and what follows from a factor before it: PaSST-S15's segments are
    longer than those of PaSST-N, but that is what it is called for.
    """
    every = [list_factors(trial) for trial in those]
    found: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for one in every for name in one):
        levels = [one.get(name, NO_LEVEL) for one in every]
        if len(set(levels)) > 1 and not any(is_determined_by(levels, earlier) for earlier in found.values()):
            found[name] = levels
    return found


def is_determined_by(levels: Sequence[str], earlier: Sequence[str]) -> bool:
    """Return whether an earlier factor's level determines this factor's level."""
    return len(set(zip(levels, earlier, strict=True))) == len(set(earlier))


@dataclass(frozen=True)
class Level:
    """Trials that share a level of a factor."""

    factor: str
    level: str
    number: int
    mean: float
    interval: tuple[float, float] | None  # 95 %; None where there are too few trials


@dataclass(frozen=True)
class InteractionTable:
    """Two factors crossed: the mean of a metric for each combination of their levels."""

    factors: tuple[str, str]  # of rows, and of columns
    levels: tuple[list[str], list[str]]
    means: NDArray[np.float64]  # [rows, columns]; not a number where no trial has both levels


def estimate_main_effects(those: Sequence[Trial], values_N: Sequence[float]) -> tuple[list[Level], list[str]]:
    """Return each factor's main effects on a metric: its mean at each level, adjusted for the other factors.

    That is the fit of a sum of factors by least squares, whose means in a full grid are plain means. With r the row of
    the design that a level's mean is, its interval is the t-interval of ordinary least squares: the variance is s^2 r
    (X'X)^+ r', with s^2 what the fit leaves unexplained, by the degrees of freedom that are left (any textbook on
    linear models). It takes trials to scatter alike, and independently. The factor with the widest means comes first;
    seeds, which tell how much is chance, come last.

    Also the names of factors that are left out because those before them can't be told apart from them, as batch sizes
    of which each was tried with one encoder alone: their means would be made up.
    """
    known = [place for place, value in enumerate(values_N) if np.isfinite(value)]
    found = find_varying_factors([those[place] for place in known])
    if not found:
        return [], []
    metric_N = np.array([values_N[place] for place in known])
    names = {name: sorted(set(levels), key=level_sort_key) for name, levels in found.items()}
    codes = {name: np.array([names[name].index(level) for level in levels]) for name, levels in found.items()}
    design_NK, columns = build_design(codes)
    fitted_K = np.linalg.lstsq(design_NK, metric_N, rcond=None)[0]
    freedom = design_NK.shape[0] - design_NK.shape[1]
    left_N = metric_N - design_NK @ fitted_K
    variance = float(left_N @ left_N) / freedom if freedom else None
    inverse_KK = np.linalg.pinv(design_NK.T @ design_NK)
    by_factor: dict[str, list[Level]] = {}
    for name, own in columns.items():
        by_factor[name] = []
        for code, level in enumerate(names[name]):
            row_K = np.zeros(design_NK.shape[1])
            row_K[0], row_K[own] = 1, sum_contrasts(np.array([code]), len(names[name]))[0]
            mean, number = float(row_K @ fitted_K), int((codes[name] == code).sum())
            spread = None if variance is None else variance * float(row_K @ inverse_KK @ row_K)
            by_factor[name].append(Level(name, level, number, mean, compute_interval(mean, spread, freedom)))
    return sort_by_range(by_factor), [name for name in found if name not in columns]


def build_design(codes: Mapping[str, NDArray[np.int64]]) -> tuple[NDArray[np.float64], dict[str, slice]]:
    """Return the columns of a sum of factors [N, K] without linear dependence, and the columns of each factor.

    A factor that would bring a column that follows from those before it is left out: so every level's mean lies in the
    space of the rows, and can be estimated.
    """
    (first, *_) = codes.values()
    design_NK = np.ones((len(first), 1))
    columns = {}
    for name, codes_N in codes.items():
        wider_NK = np.concatenate([design_NK, sum_contrasts(codes_N, int(codes_N.max()) + 1)], axis=1)
        if np.linalg.matrix_rank(wider_NK) == wider_NK.shape[1]:
            columns[name] = slice(design_NK.shape[1], wider_NK.shape[1])
            design_NK = wider_NK
    return design_NK, columns


def compute_interval(mean: float, variance: float | None, freedom: int) -> tuple[float, float] | None:
    """Return the t-interval of a mean; None if no degrees of freedom are left to estimate its variance."""
    if variance is None:
        return None
    from scipy.special import stdtrit  # Student's quantiles; scipy.stats takes 0.7 s to import

    reach = float(stdtrit(freedom, (1 + CONFIDENCE_LEVEL) / 2)) * variance**0.5
    return mean - reach, mean + reach


def cross_factors(
    those: Sequence[Trial], values_N: Sequence[float], levels: Sequence[Level]
) -> InteractionTable | None:
    """Return the first two factors of some effects crossed, seeds excluded; None if there are fewer than two.

    The one with more levels goes down, where a narrow screen has room.
    """
    names = [name for name in dict.fromkeys(level.factor for level in levels) if not name.endswith("seed")][:2]
    if len(names) < 2:
        return None
    own = {name: [level.level for level in levels if level.factor == name] for name in names}
    down, across = sorted(names, key=lambda name: -len(own[name]))
    found = [list_factors(trial) for trial in those]
    means = np.full((len(own[down]), len(own[across])), np.nan)
    for row, column in np.ndindex(*means.shape):
        met = [
            value
            for one, value in zip(found, values_N, strict=True)
            if np.isfinite(value)
            and (one.get(down, NO_LEVEL), one.get(across, NO_LEVEL)) == (own[down][row], own[across][column])
        ]
        if met:
            means[row, column] = np.mean(met)
    return InteractionTable((down, across), (own[down], own[across]), means)


def sum_contrasts(codes_N: NDArray[np.int64], number: int) -> NDArray[np.float64]:
    """Return sum-to-zero contrasts of a factor [N, number - 1]; the effect of the last level follows from the others."""
    one_hot = np.eye(number)[codes_N]
    columns: NDArray[np.float64] = one_hot[:, :-1] - one_hot[:, -1:]
    return columns


def level_sort_key(level: str) -> tuple[float, str]:
    """Return a sort key of levels: by the number in them if there is one, otherwise by name."""
    words = level.split()
    try:
        return float(words[-1]), level
    except (ValueError, IndexError):
        return float("inf"), level


def sort_by_range(by_factor: Mapping[str, Sequence[Level]]) -> list[Level]:
    """Return all levels, those of the factor with the largest range first, and seeds last."""

    def place(name: str) -> tuple[bool, float]:
        means = [level.mean for level in by_factor[name]]
        return name.endswith("seed"), min(means) - max(means)

    return [level for name in sorted(by_factor, key=place) for level in by_factor[name]]

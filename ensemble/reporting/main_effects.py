"""Main effects: the factors in which the trials of a grid differ, and the effect of each on a metric.

Shapes: N trials, K coefficients.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainables import encoders
from trainables import trial as trials
from trainables.records.settings import describe_teachers, flatten_settings
from trainables.trial import Trial

CONFIDENCE_LEVEL = 0.95
"""Confidence level of intervals."""

NO_LEVEL = "none"
"""Level of a trial that lacks a setting."""

NON_FACTORS = ("validation", "test")
"""Settings of a trial that are the same in all trials of a sweep."""


def list_factors(trial: Trial) -> dict[str, str]:
    """Return all settings in which a trial could differ from others, as text by name, the most important first and
    seeds last.

    Learning rates are relative to a reference rate, since encoders differ in their rates.
    """
    factors = {
        "audio": encoders.format_label(trial.audio),
        "text": encoders.format_label(trial.text),
        "stage": trial.stage,
    }
    settings = list_stage_settings(trial, "")
    pretraining_settings = list_stage_settings(trial.pretraining, "pretraining's ") if trial.pretraining else {}
    factors |= {"paraphrases": f"p {trial.paraphrase_probability:g}", **settings, **pretraining_settings}
    for name in [name for name in factors if name.endswith("seed")]:
        factors[name] = factors.pop(name)
    return factors


def list_stage_settings(trial: Trial, prefix: str) -> dict[str, str]:
    """Return a trial's settings, without those of its pretraining, as text by name. Names begin with `prefix`.

    The peak rate of a fine-tuning is relative to that of its pretraining, and the final rate to the peak rate.
    """
    own_settings = {field.name: getattr(trial, field.name) for field in dataclasses.fields(trial)}
    described = {
        "schedule": dataclasses.asdict(trial.schedule),
        "teachers": describe_teachers(trial) or NO_LEVEL,
    }
    settings: dict[str, Any] = dict(
        flatten_settings(own_settings | trials.to_json(trial) | described | {"pretraining": None})
    )
    for name in (*NON_FACTORS, "pretraining", "paraphrase_probability", "audio.family", "text.family"):
        del settings[name]
    peak, final = trial.schedule.peak_rate, trial.schedule.final_rate
    rates = {"peak_rate": ("", peak), "final_rate": (" / peak rate", final / peak)}
    if trial.pretraining:
        rates["peak_rate"] = (" / pretraining's", peak / trial.pretraining.schedule.peak_rate)
    formatted = {}
    for key, value in settings.items():
        stem = key.rpartition(".")[2] if key.startswith("schedule.") else key
        ending, shown = rates.get(stem, ("", value))
        formatted[f"{prefix}{stem.replace('_', ' ')}{ending}"] = format_setting(shown)
    return formatted


def format_setting(value: Any) -> str:
    """Return a setting as human-readable text."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return " + ".join(map(format_setting, value)) if isinstance(value, list | tuple) else str(value)


def find_varying_factors(configs: Sequence[Trial]) -> dict[str, list[str]]:
    """Return the factors, that is, the settings in which the trials differ: by name, the factor's value (its level) in
    each trial.

    Settings that are the same in all trials are left out, and so are those determined by an earlier factor: the length
    of segments differs between PaSST-S15 and PaSST-N, but it follows from the audio encoder.
    """
    factors_of_trials = [list_factors(trial) for trial in configs]
    varying: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for factors in factors_of_trials for name in factors):
        levels = [factors.get(name, NO_LEVEL) for factors in factors_of_trials]
        if len(set(levels)) > 1 and not any(is_determined_by(levels, earlier) for earlier in varying.values()):
            varying[name] = levels
    return varying


def is_determined_by(levels: Sequence[str], earlier: Sequence[str]) -> bool:
    """Return whether a factor follows from an earlier one: whether all trials with the same level of the earlier factor
    have the same level of this one. `levels` has this factor's level in each trial, and `earlier` that of the earlier
    factor.
    """
    return len(set(zip(levels, earlier, strict=True))) == len(set(earlier))


@dataclass(frozen=True)
class Level:
    """Mean of a metric over the trials with one value (level) of a setting (factor), adjusted for the settings in which
    they differ.
    """

    factor: str
    level: str
    number: int
    mean: float
    interval: tuple[float, float] | None  # 95 % interval; None if there are too few trials


@dataclass(frozen=True)
class InteractionTable:
    """Mean of a metric for each combination of the values (levels) of two settings (factors)."""

    factors: tuple[str, str]  # the factor of the rows, and that of the columns
    levels: tuple[list[str], list[str]]
    means: NDArray[np.float64]  # [rows, columns]; NaN if no trial has both levels


def estimate_main_effects(configs: Sequence[Trial], values_N: Sequence[float]) -> tuple[list[Level], list[str]]:
    """Return the main effects of trials' settings on a metric, and the names of the settings (factors) that are left
    out since they can't be told apart from others. An effect is the mean at one value of a factor, adjusted for the
    other factors; `values_N` has the metric of each trial.

    The effects are those of an additive model fitted by ordinary least squares; for a full grid the means are plain
    means. With r the row of the design matrix that corresponds to a level's mean, its t-interval has the variance
    s^2 r (X'X)^+ r', where s^2 is the residual sum of squares divided by the residual degrees of freedom (any textbook
    on linear models). The intervals assume equal, independent noise per trial. The factor with the largest range of
    means comes first; seeds, which show the size of the noise, come last.

    Also returned are the names of factors that are left out because they are confounded with earlier ones, such as the
    batch size if each batch size was tried with one encoder only: their effects cannot be estimated.

    Args:
        configs: the trials.
        values_N: the metric of each trial; trials with NaN are left out.
    """
    finite = [index for index, value in enumerate(values_N) if np.isfinite(value)]
    varying = find_varying_factors([configs[index] for index in finite])
    if not varying:
        return [], []
    metric_N = np.array([values_N[index] for index in finite])
    names = {name: sorted(set(levels), key=make_level_sort_key) for name, levels in varying.items()}
    codes = {name: np.array([names[name].index(level) for level in levels]) for name, levels in varying.items()}
    design_NK, columns = build_design(codes)
    fitted_K = np.linalg.lstsq(design_NK, metric_N, rcond=None)[0]
    degrees_of_freedom = design_NK.shape[0] - design_NK.shape[1]
    residual_N = metric_N - design_NK @ fitted_K
    variance = float(residual_N @ residual_N) / degrees_of_freedom if degrees_of_freedom else None
    inverse_KK = np.linalg.pinv(design_NK.T @ design_NK)
    by_factor: dict[str, list[Level]] = {}
    for name, factor_columns in columns.items():
        by_factor[name] = []
        for code, level in enumerate(names[name]):
            row_K = np.zeros(design_NK.shape[1])
            row_K[0], row_K[factor_columns] = 1, sum_contrasts(np.array([code]), len(names[name]))[0]
            mean, number = float(row_K @ fitted_K), int((codes[name] == code).sum())
            mean_variance = None if variance is None else variance * float(row_K @ inverse_KK @ row_K)
            by_factor[name].append(
                Level(name, level, number, mean, compute_interval(mean, mean_variance, degrees_of_freedom))
            )
    return sort_by_range(by_factor), [name for name in varying if name not in columns]


def build_design(codes: Mapping[str, NDArray[np.int64]]) -> tuple[NDArray[np.float64], dict[str, slice]]:
    """Return the design matrix [N, K] of a linear model, with a row for each of N trials and K linearly independent
    columns, and a dict with each factor's slice of the columns by name. `codes` has, by factor, the level of each trial
    as a number from 0.

    A factor with a column that depends linearly on those of earlier factors is left out, so that the mean of every
    level is estimable.
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


def compute_interval(mean: float, variance: float | None, degrees_of_freedom: int) -> tuple[float, float] | None:
    """Return the lower and the upper limit of the 95 % t-interval of a mean with this variance. Return None if
    `variance` is None, which means that there are too few trials to estimate it.
    """
    if variance is None:
        return None
    from scipy.special import stdtrit  # Student's quantiles; scipy.stats takes 0.7 s to import

    half_width = float(stdtrit(degrees_of_freedom, (1 + CONFIDENCE_LEVEL) / 2)) * variance**0.5
    return mean - half_width, mean + half_width


def compute_interaction(
    configs: Sequence[Trial], values_N: Sequence[float], levels: Sequence[Level]
) -> InteractionTable | None:
    """Return the mean of a metric (`values_N`, one per trial) for each combination of the values of two settings: the
    first two settings in `levels` that aren't seeds. Return None if there are fewer than two.

    The factor with more levels is that of the rows, which suits narrow screens.
    """
    names = [name for name in dict.fromkeys(level.factor for level in levels) if not name.endswith("seed")][:2]
    if len(names) < 2:
        return None
    levels_of = {name: [level.level for level in levels if level.factor == name] for name in names}
    row_factor, column_factor = sorted(names, key=lambda name: -len(levels_of[name]))
    factors_of_trials = [list_factors(trial) for trial in configs]
    means = np.full((len(levels_of[row_factor]), len(levels_of[column_factor])), np.nan)
    for row, column in np.ndindex(*means.shape):
        values = [
            value
            for factors, value in zip(factors_of_trials, values_N, strict=True)
            if np.isfinite(value)
            and (factors.get(row_factor, NO_LEVEL), factors.get(column_factor, NO_LEVEL))
            == (levels_of[row_factor][row], levels_of[column_factor][column])
        ]
        if values:
            means[row, column] = np.mean(values)
    return InteractionTable((row_factor, column_factor), (levels_of[row_factor], levels_of[column_factor]), means)


def sum_contrasts(codes_N: NDArray[np.int64], number: int) -> NDArray[np.float64]:
    """Return sum-to-zero contrasts [N, number - 1] of a factor with `number` levels, for trials with the levels
    `codes_N`; the last level's effect follows from the others.
    """
    one_hot = np.eye(number)[codes_N]
    columns: NDArray[np.float64] = one_hot[:, :-1] - one_hot[:, -1:]
    return columns


def make_level_sort_key(level: str) -> tuple[float, str]:
    """Return the pair by which the levels of a factor are sorted: the number at the end of the text, or infinity if
    there is none, and the text.
    """
    words = level.split()
    try:
        return float(words[-1]), level
    except (ValueError, IndexError):
        return float("inf"), level


def sort_by_range(by_factor: Mapping[str, Sequence[Level]]) -> list[Level]:
    """Return the levels of all factors, those of the factor with the largest range of means first, and seeds last."""

    def range_key(name: str) -> tuple[bool, float]:
        means = [level.mean for level in by_factor[name]]
        return name.endswith("seed"), min(means) - max(means)

    return [level for name in sorted(by_factor, key=range_key) for level in by_factor[name]]

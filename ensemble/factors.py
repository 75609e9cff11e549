"""What the trials of a grid differ in, and what each of these factors does: its main effects.

Shapes: N trials, K coefficients.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainables import encoders
from trainables import trial as trials
from trainables.ledger import flattened
from trainables.trial import Trial

LEVEL_DRAWS = 2000
"""Bootstrap resamples."""

JUDGED = ("validation", "test")
"""Of a trial's settings, those in which the trials of a sweep don't differ."""


def settings(trial: Trial) -> dict[str, str]:
    """All that a trial could differ in from others, by name, what matters most first and seeds last.

    A rate is told as a share of the one that it goes with, since encoders have rates of their own.
    """
    found = {"audio": encoders.label(trial.audio), "text": encoders.label(trial.text), "stage": trial.stage}
    own = plain(trial, "")
    before = plain(trial.pretraining, "pretraining's ") if trial.pretraining else {}
    found |= {"paraphrases": f"p {trial.paraphrase_probability:g}", **own, **before}
    for name in [name for name in found if name.endswith("seed")]:
        found[name] = found.pop(name)
    return found


def plain(trial: Trial, prefix: str) -> dict[str, str]:
    """A trial's settings without those of its pretraining, of whose rate its own is told as a share."""
    given: dict[str, Any] = dict(flattened(trials.to_json(trial) | {"pretraining": None}))
    for name in (*JUDGED, "pretraining", "paraphrase_probability", "audio.family", "text.family"):
        del given[name]
    peak, final = trial.schedule.peak_rate, trial.schedule.final_rate
    share = {"peak_rate": ("", peak), "final_rate": (" / peak rate", final / peak)}
    if trial.pretraining:
        share["peak_rate"] = (" / pretraining's", peak / trial.pretraining.schedule.peak_rate)
    found = {}
    for key, value in given.items():
        stem = key.rpartition(".")[2] if key.startswith("schedule.") else key
        ending, shown = share.get(stem, ("", value))
        found[f"{prefix}{stem.replace('_', ' ')}{ending}"] = told(shown)
    return found


def told(value: Any) -> str:
    """A setting, for people."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return " + ".join(map(told, value)) if isinstance(value, list | tuple) else str(value)


def varying(those: Sequence[Trial]) -> dict[str, list[str]]:
    """The factors of some trials, each with its level in every trial.

    Left out is what is the same in all trials, and what follows from a factor before it: PaSST-S15's segments are
    longer than those of PaSST-N, but that is what it is called for.
    """
    every = [settings(trial) for trial in those]
    found: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for one in every for name in one):
        levels = [one.get(name, "none") for one in every]
        if len(set(levels)) > 1 and not any(follows(levels, earlier) for earlier in found.values()):
            found[name] = levels
    return found


def follows(levels: Sequence[str], earlier: Sequence[str]) -> bool:
    """Whether an earlier factor's level says which level this one has."""
    return len(set(zip(levels, earlier, strict=True))) == len(set(earlier))


@dataclass(frozen=True)
class Level:
    """The trials that share a level of a factor."""

    factor: str
    level: str
    number: int
    mean: float
    interval: tuple[float, float] | None  # 95 %; None where there are too few trials


def effects(those: Sequence[Trial], values_N: Sequence[float]) -> list[Level]:
    """Each factor's main effects on a metric: its mean at each level, as if all else were the same at all levels.

    That is the fit of a sum of factors by least squares, whose means in a full grid are plain means. Intervals come
    from drawing, with replacement, what the fit leaves unexplained of the level's trials, widened for the
    coefficients that were fitted. The factor with the widest means comes first; seeds, which tell how much is chance,
    come last.
    """
    known = [place for place, value in enumerate(values_N) if np.isfinite(value)]
    found = varying([those[place] for place in known])
    if not found:
        return []
    metric_N = np.array([values_N[place] for place in known])
    names = {name: sorted(set(levels), key=in_order) for name, levels in found.items()}
    codes = {name: np.array([names[name].index(level) for level in levels]) for name, levels in found.items()}
    design_NK = np.concatenate(
        [np.ones((len(known), 1)), *(contrasts(codes[name], len(names[name])) for name in found)], axis=1
    )
    fitted_K, _, rank, _ = np.linalg.lstsq(design_NK, metric_N, rcond=None)
    left_N = metric_N - design_NK @ fitted_K
    freedom = len(known) - int(rank)
    rng = np.random.default_rng(0)
    by_factor: dict[str, list[Level]] = {}
    start = 1
    for name, levels in names.items():
        own_K = fitted_K[start : start + len(levels) - 1]
        start += len(levels) - 1
        means = fitted_K[0] + np.append(own_K, -own_K.sum())
        by_factor[name] = [
            level_of(name, level, float(means[code]), left_N[codes[name] == code], freedom, len(known), rng)
            for code, level in enumerate(levels)
        ]
    return in_order_of_width(by_factor)


def contrasts(codes_N: NDArray[np.int64], number: int) -> NDArray[np.float64]:
    """Columns whose coefficients are a factor's effects, which sum to zero [N, number - 1]; the last one's follows."""
    one_hot = np.eye(number)[codes_N]
    columns: NDArray[np.float64] = one_hot[:, :-1] - one_hot[:, -1:]
    return columns


def level_of(
    factor: str,
    level: str,
    mean: float,
    left: NDArray[np.float64],
    freedom: int,
    number: int,
    rng: np.random.Generator,
) -> Level:
    """A level with its interval."""
    if freedom < 1 or len(left) < 2:
        return Level(factor, level, len(left), mean, None)
    wide = left * np.sqrt(number / freedom)
    means = mean + wide[rng.integers(len(wide), size=(LEVEL_DRAWS, len(wide)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Level(factor, level, len(left), mean, (float(low), float(high)))


def in_order(level: str) -> tuple[float, str]:
    """Sorts levels by the number in them, if there is one, else by name."""
    words = level.split()
    try:
        return float(words[-1]), level
    except (ValueError, IndexError):
        return float("inf"), level


def in_order_of_width(by_factor: Mapping[str, Sequence[Level]]) -> list[Level]:
    """All levels, those of the factor that does most first, and seeds last."""

    def place(name: str) -> tuple[bool, float]:
        means = [level.mean for level in by_factor[name]]
        return name.endswith("seed"), min(means) - max(means)

    return [level for name in sorted(by_factor, key=place) for level in by_factor[name]]

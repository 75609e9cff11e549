"""Plots of the report: Figure 2 of the paper, learning curves, main effects and interactions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ensemble.record.html_page import HEIGHT
from ensemble.reporting.main_effects import InteractionTable, Level
from ensemble.reporting.trial_rows import SeedBand, TrialRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINE_STYLES = ("-", "--", ":", "-.")
"""Line styles of the paraphrase probabilities, in ascending order."""


def assign_colours(rows: Sequence[TrialRow]) -> dict[str, Any]:
    """Return matplotlib's colour for each pair of encoders, by the pair as text."""
    pairs = list(dict.fromkeys(format_pair(row) for row in rows))
    import matplotlib

    palette = matplotlib.colormaps["tab10" if len(pairs) <= 10 else "tab20"]
    return {pair: palette(index % palette.N) for index, pair in enumerate(pairs)}


def format_pair(row: TrialRow) -> str:
    """Return the pair of a trial's encoders as text, such as 'passt:N, huggingface:roberta-large'."""
    return f"{row.key.audio}, {row.key.text}"


def set_integer_ticks(axes: Axes) -> None:
    """Label the x axis with integers."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def draw_bands(axes: Axes, title: str, bands: Sequence[SeedBand], shares: Sequence[float]) -> None:
    """Draw the validation loss by epoch for one pair of encoders: for each of `bands`, the mean over seeds, and a band
    from minimum to maximum. `shares` are all paraphrase probabilities, which determine the colours.

    A paraphrase probability has the same colour in all plots with the same `shares`.
    """
    for band in bands:
        epochs = list(band.points)
        means, lows, highs = zip(*band.points.values(), strict=True)
        colour = f"C{shares.index(band.share)}"
        label = f"p {band.share:g} ({band.seeds} seed{'s' if band.seeds > 1 else ''})"
        axes.plot(epochs, means, color=colour, marker="o", markersize=3, label=label)
        axes.fill_between(epochs, lows, highs, color=colour, alpha=0.15, linewidth=0)
    axes.set_title(title, fontsize=9, wrap=True)
    axes.set_xlabel("epoch of fine-tuning")
    axes.set_ylabel("validation loss")
    set_integer_ticks(axes)
    axes.legend(fontsize=8)


def draw_curves(axes: Axes, rows: Sequence[TrialRow], colours: Mapping[str, Any], metric: str) -> None:
    """Draw a metric after each epoch. Each of the trials in `rows` has a line, each pair of encoders a colour (in
    `colours`), and each paraphrase probability a line style.
    """
    shares = sorted({row.trial.paraphrase_probability for row in rows})
    for row in rows:
        curve = row.curves[metric]
        factor = 100 if metric == "map10" else 1
        style = LINE_STYLES[shares.index(row.trial.paraphrase_probability) % len(LINE_STYLES)]
        marker = "o" if len(curve) == 1 else None
        axes.plot(list(curve), [factor * value for value in curve.values()], style, color=colours[format_pair(row)],
                  linewidth=1, marker=marker)  # fmt: skip
    for pair in dict.fromkeys(map(format_pair, rows)):
        axes.plot([], [], color=colours[pair], label=pair)
    if len(shares) > 1:
        for index, share in enumerate(shares):
            axes.plot([], [], LINE_STYLES[index % len(LINE_STYLES)], color="0.3", label=f"p {share:g}")
    axes.set_xlabel(f"epoch of {rows[0].trial.stage}")
    axes.set_ylabel({"map10": "mAP@10 on validation (%)", "train_loss": "training loss"}[metric])
    set_integer_ticks(axes)
    axes.legend(fontsize=7.5, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.2), frameon=False)


def draw_hours(axes: Axes, rows: Sequence[TrialRow], colours: Mapping[str, Any]) -> None:
    """Draw mAP@10 after each epoch by hours of training, the pretraining's included. Each of the trials in `rows` has a
    line, dashed for pretrainings, and each pair of encoders a colour (in `colours`).

    The hours of a trial are spread evenly over its epochs.
    """
    starts = find_start_hours(rows)
    for row in rows:
        curve = row.curves["map10"]
        hours = [starts[row.number] + row.hours * epoch / max(curve) for epoch in curve]
        axes.plot(hours, [100 * value for value in curve.values()], "-" if row.trial.pretraining else "--",
                  color=colours[format_pair(row)], linewidth=1)  # fmt: skip
    for pair in dict.fromkeys(map(format_pair, rows)):
        axes.plot([], [], color=colours[pair], label=pair)
    axes.set_xlabel("hours of training, with pretraining")
    axes.set_ylabel("mAP@10 on validation (%)")
    axes.legend(fontsize=7.5, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.2), frameon=False)


def find_start_hours(rows: Sequence[TrialRow]) -> dict[int, float]:
    """Return, by the number of a row, the hours of training before its trial: those of its pretraining, and of that
    one's pretraining, as far as they are among the rows.
    """
    by_signature = {row.candidate.signature: row for row in rows}
    starts = {}
    for row in rows:
        starts[row.number], parent = 0.0, by_signature.get(row.candidate.trial_run.relations.pretraining or "")
        while parent:
            starts[row.number] += parent.hours
            parent = by_signature.get(parent.candidate.trial_run.relations.pretraining or "")
    return starts


def draw_effects(axes: Axes, levels: Sequence[Level]) -> None:
    """Draw the mean of the metric for each value of each setting as a point with its interval, one below the other,
    grouped by setting.
    """
    y, previous = 0.0, levels[0].factor
    positions: list[float] = []
    for level in levels:
        y -= 0.0 if not positions else (1.0 if level.factor == previous else 1.8)
        previous = level.factor
        positions.append(y)
        if level.interval:
            axes.plot([100 * limit for limit in level.interval], [y, y], color="C0", linewidth=1.5)
        axes.plot([100 * level.mean], [y], "o", color="C0", markersize=4)
    axes.set_yticks(positions, [format_level(level) for level in levels], fontsize=8)
    axes.set_xlabel("mAP@10 on validation (%)")
    axes.grid(axis="x", linewidth=0.3)


def format_level(level: Level) -> str:
    """Return the label of a setting's value in the plot of main effects: the setting, its value and the number of
    trials in the mean. A long label has two lines.
    """
    parts = (level.factor, level.level)
    return ("\n" if sum(map(len, parts)) > 28 else ": ").join(parts) + f" ({level.number})"


def draw_interaction(axes: Axes, interaction: InteractionTable) -> None:
    """Draw a heat map with a row for each value of one setting, a column for each value of another, and the mean of the
    metric in each cell; cells without a trial stay blank.
    """
    percent = 100 * interaction.means
    low, high = np.nanmin(percent), np.nanmax(percent)
    axes.imshow(np.ma.masked_invalid(percent), cmap="viridis", aspect="auto")
    for (row, column), value in np.ndenumerate(percent):
        if np.isfinite(value):
            is_dark = value <= low + 0.6 * (high - low)
            axes.text(column, row, f"{value:.2f}", color="white" if is_dark else "black", ha="center", va="center")
    rows, columns = interaction.levels
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.set_xticks(range(len(columns)), columns, fontsize=8, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_ylabel(interaction.factors[0])
    axes.set_xlabel(interaction.factors[1])


def compute_interaction_height(interaction: InteractionTable) -> float:
    """Return the height of the heat map in inches."""
    return 1.4 + 0.45 * len(interaction.levels[0])


def compute_effects_height(levels: Sequence[Level]) -> float:
    """Return the height of the plot of main effects in inches."""
    return 1.0 + 0.36 * len(levels)


def make_curve_panels(rows: Sequence[TrialRow]) -> list[tuple[Callable[[Axes], None], float]]:
    """Return the plots of learning curves: for each stage, functions that draw mAP@10 and the training loss by epoch,
    then one that draws mAP@10 by hours, each with the height of its plot in inches.
    """
    colours = assign_colours(rows)
    panels: list[tuple[Callable[[Axes], None], float]] = []
    for stage in dict.fromkeys(row.trial.stage for row in rows):
        for metric in ("map10", "train_loss"):
            shown_rows = [row for row in rows if row.trial.stage == stage and row.curves[metric]]
            if shown_rows:
                names = len({format_pair(row) for row in shown_rows}) + len(
                    {row.trial.paraphrase_probability for row in shown_rows}
                )
                draw = partial(draw_curves, rows=shown_rows, colours=colours, metric=metric)
                panels.append((draw, HEIGHT + 0.1 * names))
    if timed_rows := [row for row in rows if row.curves["map10"] and row.hours > 0]:
        draw_by_hours = partial(draw_hours, rows=timed_rows, colours=colours)
        panels.append((draw_by_hours, HEIGHT + 0.1 * len(colours)))
    return panels

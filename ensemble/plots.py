"""The report's plots: Figure 2 of the paper, learning curves, and what each factor of a grid does."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ensemble.survey import Band, Level, Row


def draw_bands(axes: Axes, pair: str, bands: Sequence[Band]) -> None:
    """Validation loss of one pair of encoders: the mean over seeds, with a band from the least to the greatest."""
    for place, band in enumerate(bands):
        epochs = list(band.points)
        means, least, greatest = zip(*band.points.values(), strict=True)
        colour = f"C{place}"
        axes.plot(epochs, means, color=colour, marker="o", markersize=3, label=f"{band.label} ({band.seeds} seeds)")
        axes.fill_between(epochs, least, greatest, color=colour, alpha=0.15, linewidth=0)
    axes.set_title(pair, fontsize=9)
    axes.set_xlabel("epoch of fine-tuning")
    axes.set_ylabel("validation loss")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize=8)


def draw_curves(axes: Axes, rows: Sequence[Row]) -> None:
    """mAP@10 on validation after each epoch, a line a trial, a colour a pair of encoders."""
    colours: dict[str, str] = {}
    for row in rows:
        curve = row.curves["map10"]
        pair = f"{row.key.audio}, {row.key.text}"
        is_first = pair not in colours
        colour = colours.setdefault(pair, f"C{len(colours)}")
        style = "-" if row.trial.pretraining is None else "--"
        axes.plot(list(curve), [100 * value for value in curve.values()], style, color=colour, linewidth=1,
                  label=pair if is_first else None)  # fmt: skip
    axes.set_xlabel("epoch (fine-tunings dashed)")
    axes.set_ylabel("mAP@10 on validation (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize=8)


def draw_effects(axes: Axes, levels: Sequence[Level]) -> None:
    """Each factor's levels as dots with intervals, one below the other."""
    for place, level in enumerate(levels):
        low, high = (100 * limit for limit in level.interval)
        axes.plot([low, high], [-place, -place], color="C0", linewidth=1.5)
        axes.plot([100 * level.mean], [-place], "o", color="C0", markersize=4)
    names = [f"{level.factor}: {level.level} ({level.number})" for level in levels]
    axes.set_yticks([-place for place in range(len(levels))], names, fontsize=8)
    axes.set_xlabel("mean best mAP@10 on validation (%)")
    axes.grid(axis="x", linewidth=0.3)


def height_of(levels: Sequence[Level] | Mapping[str, object]) -> float:
    """Inches for so many lines."""
    return 1.0 + 0.3 * len(levels)

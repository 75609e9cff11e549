"""HTML page of an ensemble: one self-contained file, with plots as SVG."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
import numpy as np
from markupsafe import Markup

from data.store.files import atomic_write
from ensemble.record.relations import describe_relations
from ensemble.record.terminal_tables import SOUP_SYSTEMS
from trainables.records.ensemble_file import FUSION_LABELS, Ensemble, Estimate, ParetoPoint
from trainables.retrieval import METRIC_TITLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TEMPLATE = Path(__file__).with_name("html_page.html")
"""Template of the page."""

WIDTH, HEIGHT = 5.5, 3.2
"""Width and height of most plots in inches; their text is readable on a phone."""


def write_page(path: Path, ensemble: Ensemble) -> None:
    """Write the HTML page of an ensemble atomically."""
    metric = METRIC_TITLES.get(ensemble.metric, ensemble.metric)
    plots = draw_plots(ensemble, metric)
    environment = jinja2.Environment(autoescape=True)
    text = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        ensemble=ensemble, plots=plots, titles=METRIC_TITLES, metric=metric, fusion=FUSION_LABELS[ensemble.fusion],
        relations=describe_relations(ensemble), soup_systems=SOUP_SYSTEMS,
    )  # fmt: skip
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def draw_plots(ensemble: Ensemble, metric: str, numbers: Sequence[int] = ()) -> dict[str, Markup]:
    """Return those plots of an ensemble that there are data for, as SVG by name: 'size', the metric after each step of
    the selection; 'likeness', the error correlation of the members; and 'front', the Pareto front of cost and metric.
    `metric` is the name of the metric, for the axes.

    The members are labelled with `numbers`, by default with 1, 2, ...
    """
    labels = [str(number) for number in numbers or range(1, len(ensemble.members) + 1)]
    plots = {}
    if any(ensemble.sizes.values()):
        plots["size"] = render_svg(lambda axes: draw_sizes(axes, ensemble.sizes, metric), WIDTH, HEIGHT)
    if len(labels) > 1 and ensemble.likeness:
        side = max(4.0, 0.45 * len(labels) + 2.5)
        plots["likeness"] = render_svg(
            lambda axes: draw_error_correlation(axes, ensemble.likeness, labels), side, side - 0.6
        )
    if ensemble.front:
        plots["front"] = render_svg(
            lambda axes: draw_pareto_front(axes, ensemble.front, metric, ensemble.cost), WIDTH, HEIGHT
        )
    return plots


def render_svg(draw: Callable[[Axes], None], width: float, height: float) -> Markup:
    """Return a plot as SVG. `draw` draws it on matplotlib's axes; width and height are in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    draw(figure.subplots())
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    return Markup(text[text.index("<svg") :])


def draw_sizes(axes: Axes, sizes: Mapping[str, Sequence[Estimate]], metric: str) -> None:
    """Draw the metric, with intervals, against the number of steps of the selection. `sizes` has the metric after each
    step by split; each split has a line.
    """
    from matplotlib.ticker import MaxNLocator

    for (split, points), colour in zip(sizes.items(), ("C0", "C1"), strict=False):
        steps = np.arange(1, len(points) + 1)
        axes.plot(steps, [100 * point.value for point in points], color=colour, label=split, marker="o", markersize=3)
        low, high = np.array([point.interval for point in points]).T * 100
        axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set_xlabel("steps of the selection")
    axes.set_ylabel(f"{metric} (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()


def draw_error_correlation(axes: Axes, correlation: Sequence[Sequence[float]], labels: Sequence[str]) -> None:
    """Draw a heat map of the error correlation of each two members: the correlation of their metric values over
    queries. `labels` are the members' names at its edges.
    """
    image = axes.imshow(correlation, vmin=0, vmax=1, cmap="viridis")
    axes.set_xticks(range(len(labels)), labels)
    axes.set_yticks(range(len(labels)), labels)
    axes.figure.colorbar(image, ax=axes, label="correlation")


def draw_pareto_front(axes: Axes, front: Sequence[ParetoPoint], metric: str, cost: str | None) -> None:
    """Draw the Pareto front of metric and cost. `metric` and `cost` are their names, for the axes."""
    costs = [point.cost for point in front]
    axes.step(costs, [100 * point.value for point in front], where="post", marker="o", markersize=4)
    axes.set_xlabel(cost or "cost")
    axes.set_ylabel(f"{metric} on validation (%)")

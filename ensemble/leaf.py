"""The report's page: one HTML file that needs nothing else, with plots as SVG and sounds as data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from data.shards import appearing_whole
from ensemble import page, survey
from ensemble.plots import draw_bands, draw_curves, draw_effects, height_of
from ensemble.retrieved import Retrieved
from ensemble.survey import Row
from ensemble.tables import TITLES

TEMPLATE = Path(__file__).with_name("report.html")


@dataclass(frozen=True)
class Leaf:
    """What the page shows."""

    title: str
    headings: Sequence[str]
    lines: Sequence[Sequence[str]]
    columns: Sequence[int]  # those in which something stands
    rows: Sequence[Row]
    ensemble: Mapping[str, Any] | None  # the newest
    retrieved: Retrieved | None


def write_leaf(path: Path, leaf: Leaf) -> None:
    """Write the page."""
    fine_tunings = [row for row in leaf.rows if row.trial.pretraining]
    levels = survey.effects(fine_tunings or leaf.rows)
    bands = survey.bands(leaf.rows)
    figure_2 = [page.drawn(partial(draw_bands, pair=pair, bands=own), 5, 3) for pair, own in bands.items()]
    plots = {
        "curves": page.drawn(lambda axes: draw_curves(axes, leaf.rows), 7, 4),
        **({"effects": page.drawn(lambda axes: draw_effects(axes, levels), 7, height_of(levels))} if levels else {}),
        **ensemble_plots(leaf.ensemble),
    }
    environment = jinja2.Environment(autoescape=True)
    text = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        leaf=leaf, figure_2=figure_2, plots=plots, costs=costs(leaf.rows), titles=TITLES
    )
    with appearing_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def ensemble_plots(ensemble: Mapping[str, Any] | None) -> dict[str, Markup]:
    """The plots of the ensemble's own page."""
    return {} if ensemble is None else page.plots_of(ensemble, TITLES.get(ensemble["metric"], ensemble["metric"]))


def costs(rows: Sequence[Row]) -> list[tuple[str, int, float, float]]:
    """By stage: the trials, their hours, and GPU hours."""
    found = []
    for stage in dict.fromkeys(row.trial.stage for row in rows):
        own = [row for row in rows if row.trial.stage == stage]
        found.append((stage, len(own), sum(row.hours for row in own), sum(row.hours * row.gpus for row in own)))
    return found

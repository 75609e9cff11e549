"""HTML page of the report: one self-contained file, with plots as SVG and recordings as data URIs."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jinja2
from markupsafe import Markup

from ensemble.record import html_page
from ensemble.reporting import main_effects, trial_rows
from ensemble.reporting.ensemble_rows import Chosen
from ensemble.reporting.plots import draw_bands, draw_crossed, draw_effects, height_of, height_of_crossed, panels
from ensemble.reporting.retrieval_examples import Answer, Heard
from ensemble.reporting.tables import Tabulated
from ensemble.reporting.trial_rows import Row
from trainables.retrieval import TITLES

TEMPLATE = Path(__file__).with_name("report_page.html")


@dataclass(frozen=True)
class Leaf:
    """Content of the page."""

    title: str
    tables: Sequence[Tabulated]
    notes: Sequence[str]  # on what is missing
    rows: Sequence[Row]
    chosen: Chosen | None  # the ensemble that is explained
    answers: Sequence[Answer]
    heard: Heard


@dataclass(frozen=True)
class Cost:
    """Cost of the trials of a stage; None where it is unknown."""

    stage: str
    number: int
    hours: float
    gpu_hours: float | None
    cpu_hours: float | None  # of those without a GPU


def page_of(leaf: Leaf) -> str:
    """Return the page as HTML."""
    fine_tunings = [row for row in leaf.rows if row.trial.pretraining]
    compared = fine_tunings or leaf.rows
    trials, values = [row.trial for row in compared], [row.best for row in compared]
    levels, left_out = main_effects.effects(trials, values)
    crossed = main_effects.crossed(trials, values, levels)
    shares = sorted({row.trial.paraphrase_probability for row in fine_tunings})
    figure_2 = [
        html_page.drawn(partial(draw_bands, title=title, bands=own, shares=shares), html_page.WIDTH, html_page.HEIGHT)
        for title, own in trial_rows.bands(leaf.rows).items()
    ]
    curves = [html_page.drawn(draw, html_page.WIDTH, height) for draw, height in panels(leaf.rows)]
    effects = (
        html_page.drawn(partial(draw_effects, levels=levels), html_page.WIDTH, height_of(levels)) if levels else None
    )
    heat_map = (
        html_page.drawn(partial(draw_crossed, found=crossed), html_page.WIDTH, height_of_crossed(crossed))
        if crossed
        else None
    )
    environment = jinja2.Environment(autoescape=True)
    text: str = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        leaf=leaf, figure_2=figure_2, curves=curves, effects=effects, left_out=left_out,
        crossed=crossed, heat_map=heat_map, are_fine_tunings=bool(fine_tunings),
        plots=ensemble_plots(leaf.chosen), costs=costs(leaf.rows), titles=TITLES,
    )  # fmt: skip
    return text


def ensemble_plots(chosen: Chosen | None) -> dict[str, Markup]:
    """Return the plots of the ensemble's own page, with members named by their numbers in the table."""
    if chosen is None:
        return {}
    ensemble = chosen.ensemble
    return html_page.plots_of(
        ensemble, TITLES.get(ensemble.metric, ensemble.metric), [row.number for row in chosen.members]
    )


def costs(rows: Sequence[Row]) -> list[Cost]:
    """Return the cost of each stage."""
    found = []
    for stage in dict.fromkeys(row.trial.stage for row in rows):
        own = [row for row in rows if row.trial.stage == stage]
        hours = sum(row.hours for row in own)
        gpus = [row.hours * row.gpus for row in own if row.gpus is not None]
        cpus = [0.0 if row.gpus else row.hours * row.cpus for row in own if row.cpus is not None]
        known = [sum(part) if len(part) == len(own) else None for part in (gpus, cpus)]
        found.append(Cost(stage, len(own), hours, *known))
    return found

"""HTML page of the report: one self-contained file, with plots as SVG and recordings as data URIs."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jinja2
from markupsafe import Markup

from ensemble.record import html_page
from ensemble.record.relations import describe_relations
from ensemble.reporting import main_effects, trial_rows
from ensemble.reporting.ensemble_rows import EnsembleRow
from ensemble.reporting.plots import (
    compute_effects_height,
    compute_interaction_height,
    draw_bands,
    draw_effects,
    draw_interaction,
    make_curve_panels,
)
from ensemble.reporting.retrieval_examples import PlayableClips, RetrievalExample
from ensemble.reporting.tables import ReportTable
from ensemble.reporting.trial_rows import TrialRow
from trainables.retrieval import METRIC_TITLES

TEMPLATE = Path(__file__).with_name("report_page.html")


@dataclass(frozen=True)
class ReportContent:
    """Content of the report's HTML page."""

    title: str
    tables: Sequence[ReportTable]
    notes: Sequence[str]  # notes on missing metrics
    rows: Sequence[TrialRow]
    newest: EnsembleRow | None  # ensemble that is shown in detail
    examples: Sequence[RetrievalExample]
    clips: PlayableClips


@dataclass(frozen=True)
class StageCost:
    """Total cost of the trials of a stage, in hours; None where the cost of one of them is unknown."""

    stage: str
    num_trials: int
    hours: float
    gpu_hours: float | None
    cpu_hours: float | None  # of trials without a GPU


def render_page(content: ReportContent) -> str:
    """Return the report's page as HTML."""
    # Soups are trained in no way of their own, and have no learning curves.
    rows = [row for row in trial_rows.leave_out_snapshots(content.rows) if not row.trial.average_of]
    fine_tunings = [row for row in rows if row.trial.pretraining]
    compared = fine_tunings or rows
    trials, values = [row.trial for row in compared], [row.best_map10 for row in compared]
    levels, left_out = main_effects.estimate_main_effects(trials, values)
    interaction = main_effects.compute_interaction(trials, values, levels)
    shares = sorted({row.trial.paraphrase_probability for row in fine_tunings})
    figure_2 = [
        html_page.render_svg(
            partial(draw_bands, title=title, bands=bands, shares=shares), html_page.WIDTH, html_page.HEIGHT
        )
        for title, bands in trial_rows.build_bands(rows).items()
    ]
    curves = [html_page.render_svg(draw, html_page.WIDTH, height) for draw, height in make_curve_panels(rows)]
    effects = (
        html_page.render_svg(partial(draw_effects, levels=levels), html_page.WIDTH, compute_effects_height(levels))
        if levels
        else None
    )
    heat_map = (
        html_page.render_svg(
            partial(draw_interaction, interaction=interaction), html_page.WIDTH, compute_interaction_height(interaction)
        )
        if interaction
        else None
    )
    environment = jinja2.Environment(autoescape=True)
    text: str = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        content=content, figure_2=figure_2, curves=curves, effects=effects, left_out=left_out,
        crossed=interaction, heat_map=heat_map, are_fine_tunings=bool(fine_tunings),
        plots=draw_ensemble_plots(content.newest), costs=summarise_costs(rows), titles=METRIC_TITLES,
        relations=describe_relations(content.newest.ensemble) if content.newest else [],
    )  # fmt: skip
    return text


def draw_ensemble_plots(newest: EnsembleRow | None) -> dict[str, Markup]:
    """Return the plots of an ensemble as SVG by name, with members labelled by their numbers in the table; {} without
    an ensemble.
    """
    if newest is None:
        return {}
    ensemble = newest.ensemble
    return html_page.draw_plots(
        ensemble, METRIC_TITLES.get(ensemble.metric, ensemble.metric), [row.number for row in newest.members]
    )


def summarise_costs(rows: Sequence[TrialRow]) -> list[StageCost]:
    """Return, for each stage, the total hours, GPU hours and CPU hours of its trials."""
    costs = []
    for stage in dict.fromkeys(row.trial.stage for row in rows):
        stage_rows = [row for row in rows if row.trial.stage == stage]
        hours = sum(row.hours for row in stage_rows)
        gpus = [row.hours * row.gpus for row in stage_rows if row.gpus is not None]
        cpus = [0.0 if row.gpus else row.hours * row.cpus for row in stage_rows if row.cpus is not None]
        known = [sum(part) if len(part) == len(stage_rows) else None for part in (gpus, cpus)]
        costs.append(StageCost(stage, len(stage_rows), hours, *known))
    return costs

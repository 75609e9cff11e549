"""The ensembles that were chosen from the trials of a report, and what they come to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import UserError, unknown_name
from ensemble.pool import evaluation, score_matrices
from ensemble.pool.candidates import Which
from ensemble.pool.score_matrices import Matrices
from ensemble.record.schema import read_ensemble, require_version, weights_of
from ensemble.reporting import paper_results
from ensemble.reporting.trial_rows import Judged, Row
from trainables.records.ledger import EventRun, Ledger, MissingArtifactError, Sweep

SHOWN = ("metric", "method", "sizes", "likeness")
"""Of an ensemble, what its part of the page is made of."""


@dataclass(frozen=True)
class Chosen:
    """An ensemble: its members' rows in its own order, and its figures."""

    name: str  # of its run
    ensemble: dict[str, Any]
    members: list[Row]
    figures: dict[str, Any]  # as `figures.summary` has them; empty where there are none
    missing: str = ""  # why there are none, or why they are those of when it was chosen

    @property
    def numbers(self) -> list[int]:
        """Its members' in the table."""
        return sorted(row.number for row in self.members)

    @property
    def is_the_papers(self) -> bool:
        """Whether its members are those of the paper's ensemble."""
        published = [row for row in self.members if paper_results.published(row.trial)]
        return sorted(row.key for row in published) == sorted(paper_results.ENSEMBLE_OF) and published == self.members


def ensembles_of(
    ledger: Ledger, sweeps: Sequence[Sweep], judged: Judged, which: Which
) -> tuple[list[Chosen], list[str]]:
    """The text-to-audio ensembles that were chosen from these trials, the newest first, each once.

    Also what is wrong with those that can't be shown.
    """
    by_signature = {row.candidate.signature: row for row in judged.rows}
    found: dict[tuple[Any, ...], Chosen] = {}
    problems = []
    for run in runs_of(ledger, sweeps):
        name = f"{run.name} ({run.run_id[:8]})"
        try:
            ensemble = read_shown(ledger.event_file(run, "ensemble.json"))
        except MissingArtifactError:
            problems.append(f"{name} isn't shown: its ensemble.json is gone")
            continue
        except UserError as error:
            problems.append(f"{name} isn't shown: {error}")
            continue
        if ensemble.get("direction", "t2a") != "t2a":
            continue
        strangers = [one["name"] for one in ensemble["members"] if one.get("signature") not in by_signature]
        if strangers:
            problems.append(f"{name} isn't shown: its member {strangers[0]!r} is no trial of this report's; --sweep "
                            "takes several names")  # fmt: skip
            continue
        key = (ensemble.get("metric"), ensemble.get("fusion_name", "mean"), *weighted(ensemble))
        if key not in found:
            members = [by_signature[one["signature"]] for one in ensemble["members"]]
            found[key] = judge_ensemble(name, ensemble, members, judged, which)
    return list(found.values()), problems


def read_shown(path: Path) -> dict[str, Any]:
    """An ensemble.json with all that is shown of it. Raises UserError that says what is wrong with it."""
    ensemble = read_ensemble(path)
    require_version(ensemble, path)
    absent = [name for name in SHOWN if name not in ensemble]
    if absent:
        raise UserError(f"{path} lacks {', '.join(absent)}: another version of this code wrote it; choose it again")
    if ensemble.get("fusion_name", "mean") not in score_matrices.FUSIONS:
        raise unknown_name(f"fusion in {path}:", ensemble["fusion_name"], sorted(score_matrices.FUSIONS))
    return ensemble


def runs_of(ledger: Ledger, sweeps: Sequence[Sweep]) -> Iterator[EventRun]:
    """The runs of the ensembles that were chosen from the sweeps, the newest first."""
    parents = {sweep.run_id for sweep in sweeps}
    return (run for run in ledger.events("ensemble") if run.sweep_run_id in parents)


def weighted(ensemble: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Its members and how much they count, in an order of their own."""
    return sorted((one["signature"], one["weight"]) for one in ensemble["members"])


def judge_ensemble(name: str, ensemble: dict[str, Any], members: list[Row], judged: Judged, which: Which) -> Chosen:
    """An ensemble with its figures: from its members' embeddings, or as they were told when it was chosen."""
    gone = [str(row.number) for row in members if row.candidate.signature not in judged.places]
    if not gone:
        assert judged.source is not None
        source = pool_of(judged.source, judged.places, members, ensemble)
        values = evaluation.values(source, weights_of(ensemble), paper_results.METRICS)
        return Chosen(name, ensemble, members, evaluation.summary(values, source.relevance))
    lacks = f"the embeddings of {', '.join(gone)} aren't there"
    told = ensemble.get(which, {})
    of_the_same = judged.source is None or told.get("fingerprint") == judged.source.fingerprint
    if of_the_same and all(metric in told.get("ensemble", {}) for metric in paper_results.METRICS):
        return Chosen(
            name, ensemble, members, told["ensemble"], f"{lacks}: the figures are those of when it was chosen"
        )
    return Chosen(name, ensemble, members, {}, f"{lacks}: there are no figures of it")


def pool_of(
    source: Matrices, places: Mapping[str, int], members: Sequence[Row], ensemble: Mapping[str, Any]
) -> Matrices:
    """The members' scores, as they are averaged."""
    own = source.only([places[row.candidate.signature] for row in members])
    return score_matrices.fused(own, ensemble.get("fusion_name", "mean"))

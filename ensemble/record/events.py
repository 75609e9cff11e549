"""Logging of selections and evaluations, and the number of looks at a test split."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from trainables.records.ensemble_file import FUSION_LABELS, Ensemble, NestedMetrics, Normalisation, SoupComparison
from trainables.records.ledger import Event, EventKind, Ledger

KINDS: tuple[EventKind, ...] = ("ensemble", "evaluation")
SETTINGS = ("metric", "method", "direction", "pool")


def count_looks_at_test(ledger: Ledger, fingerprint: str) -> int:
    """Return the number of logged selections and evaluations with metrics on the test split that has this
    fingerprint.
    """
    return sum(1 for kind in KINDS for _ in ledger.iter_events(kind, fingerprint))


def log_event(
    ledger: Ledger, kind: EventKind, name: str, ensemble: Ensemble, files: Sequence[Path], sweep_run_id: str
) -> int:
    """Log a selection or an evaluation (`kind`) of an ensemble in the ledger as an MLflow run `name` with these files.
    The run is a child of the run `sweep_run_id` of its sweep; '' if there is no sweep. Return the number of earlier
    looks at its test split; 0 without test metrics.
    """
    test = ensemble.test.fingerprint if ensemble.test else ""
    members = ",".join(member.signature or member.name for member in ensemble.members)
    settings = {key: str(getattr(ensemble, key)) for key in SETTINGS} | {"fusion": FUSION_LABELS[ensemble.fusion]}
    event = Event(kind, name, members, test, sweep_run_id, settings, list(iter_metrics(ensemble)), files)
    return log_and_count(ledger, event)


def log_and_count(ledger: Ledger, event: Event) -> int:
    """Log a selection or an evaluation in the ledger. Return the number of earlier looks at its test split; 0 without
    test metrics.
    """
    earlier = count_looks_at_test(ledger, event.test_fingerprint) if event.test_fingerprint else 0
    ledger.log_event(event)
    return earlier


def iter_metrics(ensemble: Ensemble) -> Iterator[tuple[str, float, int]]:
    """Yield the metrics of an ensemble as MLflow takes them, as triples of name, value and step."""
    metric = ensemble.metric
    for split in ("validation", "test"):
        if split_metrics := ensemble.metrics_on(split):
            for system, estimates in split_metrics.systems.items():
                yield from ((f"{split}_{system}_{name}", estimate.value, 0) for name, estimate in estimates.items())
        yield from iter_steps(f"size_{split}", [point.value for point in ensemble.sizes.get(split, ())])
    yield from iter_steps("trajectory", [step.value for step in ensemble.trajectory])
    for key in ("weight", "alone", "without", "shapley"):
        yield from iter_steps(f"member_{key}", [getattr(member, key) for member in ensemble.members])
    for key in ("cost", "value"):
        yield from iter_steps(f"front_{key}", [getattr(point, key) for point in ensemble.front])
    yield from iter_nested_metrics(ensemble.nested)
    yield from iter_normalisation_metrics(ensemble.normalisation)
    yield from iter_soup_metrics(ensemble.soups)
    for method in ensemble.methods:
        name = method.name.replace(", ", "_").replace(" ", "_")
        yield f"method_{name}_validation", method.validation[metric].value, 0
        if method.nested:
            yield f"method_{name}_nested", method.nested.value, 0
        if method.test:
            yield f"method_{name}_test", method.test[metric].value, 0


def iter_nested_metrics(nested: NestedMetrics | None) -> Iterator[tuple[str, float, int]]:
    """Yield the metrics of nested cross-validation as triples of name, value and step."""
    if nested:
        yield "nested_ensemble", nested.ensemble.value, 0
        yield "nested_best_single", nested.best_single.value, 0
        yield "nested_optimism", nested.optimism, 0


def iter_normalisation_metrics(normalisation: Normalisation | None) -> Iterator[tuple[str, float, int]]:
    """Yield the metrics of the forms of normalisation as triples of name, value and step."""
    for form in normalisation.forms if normalisation else ():
        name = f"normalisation_{form.name.replace(' ', '_')}"
        yield f"{name}_validation", form.validation.value, 0
        yield f"{name}_skewness", form.skewness, 0
        if form.test and form.test_skewness is not None:
            yield f"{name}_test", form.test.value, 0
            yield f"{name}_test_skewness", form.test_skewness, 0


def iter_soup_metrics(soups: Sequence[SoupComparison]) -> Iterator[tuple[str, float, int]]:
    """Yield the metrics of soups, and of what they are compared with, as triples of name, value and step."""
    for number, soup in enumerate(soups, start=1):
        for split, estimates in (("validation", soup.validation), ("test", soup.test or {})):
            yield from ((f"soup_{number}_{split}_{name}", estimate.value, 0) for name, estimate in estimates.items())


def iter_steps(name: str, values: Sequence[float | None]) -> Iterator[tuple[str, float, int]]:
    """Yield a triple of name, value and step for each value that isn't None. The step is the position of the value,
    from 1.
    """
    for step, value in enumerate(values, start=1):
        if value is not None:
            yield name, value, step

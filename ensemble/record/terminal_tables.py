"""Terminal tables of an ensemble."""

from data.runtime import tables
from data.runtime.console import PlainConsole
from data.runtime.tables import Column, TextTable
from ensemble.record.relations import describe_relations
from trainables.records.ensemble_file import Ensemble, SplitMetrics
from trainables.retrieval import METRIC_TITLES


def print_ensemble(ensemble: Ensemble, earlier: int | None) -> None:
    """Print an ensemble's members and metrics on the terminal.

    `earlier` is the number of earlier looks at the test split; None if this is no look.
    """
    console = PlainConsole()

    def say(text: str) -> None:
        console.print_line(text, soft_wrap=not console.is_terminal)

    if ensemble.best_single:
        tables.print_table(console, build_member_table(ensemble))
        say(f"Best single candidate: {ensemble.best_single.name}")
    for sentence in describe_relations(ensemble):
        say(sentence)
    tables.print_table(console, build_metric_table(ensemble))
    if ensemble.test:
        say(describe_difference(ensemble, ensemble.test))
    if ensemble.methods:
        tables.print_table(console, build_method_table(ensemble))
    if ensemble.soups:
        tables.print_table(console, build_soup_table(ensemble))
    if ensemble.normalisation and ensemble.normalisation.forms:
        tables.print_table(console, build_normalisation_table(ensemble))
    if nested := ensemble.nested:
        bound = "" if nested.redoes_epochs else " or more (epochs were chosen on the same split)"
        say(
            f"Nested cross-validation, {nested.folds} folds: ensemble {nested.ensemble.percent}, best single "
            f"{nested.best_single.percent}; selection optimism: {100 * nested.optimism:.2f}{bound}"
        )
    if earlier is not None and ensemble.test:
        say(f"Looks at {ensemble.test.split} before this one: {earlier}")


def build_member_table(ensemble: Ensemble) -> TextTable:
    """Return the table of members, with their weights and contributions to the metric."""
    headings = ("member", "signature", "weight", "alone", "without it", "Shapley value")
    columns = [Column(heading, is_numeric=heading not in ("member", "signature")) for heading in headings]
    rows = [
        (
            member.name, member.signature, f"{member.weight:.3f}", f"{100 * (member.alone or 0):.2f}",
            f"{100 * (member.without or 0):+.2f}", f"{100 * (member.shapley or 0):.2f}",
        )
        for member in ensemble.members
    ]  # fmt: skip
    split = ensemble.validation.split if ensemble.validation else "validation"
    return TextTable(f"Ensemble by {ensemble.metric} on {split}: {ensemble.method}", columns, rows)


def build_metric_table(ensemble: Ensemble) -> TextTable:
    """Return the table of the metrics on each split: of the ensemble, of what it is compared with, and of their
    difference.
    """
    columns = [
        Column("system", is_numeric=False),
        *(Column(METRIC_TITLES.get(name, name)) for name in ensemble.metrics),
    ]
    rows = [
        (f"{split}, {system.replace('_', ' ')}", *(estimates[name].percent for name in ensemble.metrics))
        for split in ("validation", "test")
        if (split_metrics := ensemble.metrics_on(split))
        for system in ("best_single", "heaviest_member", "ensemble", "difference")
        if (estimates := split_metrics.systems.get(system))
    ]
    return TextTable("Metrics in percent, with 95 % bootstrap intervals over clips", columns, rows)


def describe_difference(ensemble: Ensemble, test: SplitMetrics) -> str:
    """Return a sentence on the ensemble's metric on test minus that of the system that it was compared with, and on
    whether the interval of the difference includes zero. That system is the best single candidate or, if `test` lacks
    that one, the heaviest member.
    """
    metric = ensemble.metrics[0]
    difference = test.systems["difference"][metric]
    other = "best single candidate" if "best_single" in test.systems else "heaviest member"
    low, high = difference.interval
    verdict = (
        "the interval excludes zero" if low > 0 or high < 0 else "it may be due to chance: the interval includes zero"
    )
    name = METRIC_TITLES.get(metric, metric)
    return f"On test, {name} of the ensemble minus that of the {other} is {difference.percent}: {verdict}."


def build_method_table(ensemble: Ensemble) -> TextTable:
    """Return the table of the compared selection methods, with their metrics on the validation and the test split."""
    metric = ensemble.metric
    rows = [
        (
            method.name, str(len(method.members)), method.validation[metric].percent,
            method.nested.percent if method.nested else "", method.test[metric].percent if method.test else "",
        )
        for method in ensemble.methods
    ]  # fmt: skip
    headings = ("method", "members", "validation", "nested cross-validation", "test")
    columns = [Column(heading, is_numeric=heading != "method") for heading in headings]
    return TextTable(f"{METRIC_TITLES.get(metric, metric)} by method", columns, rows)


def build_normalisation_table(ensemble: Ensemble) -> TextTable:
    """Return the table of the forms of normalisation by a query bank, with the ensemble's metric and hubness."""
    forms = ensemble.normalisation.forms if ensemble.normalisation else ()
    rows = [
        (
            form.name, f"{form.temperature:g}" if form.temperature else "", form.validation.percent,
            f"{form.skewness:.2f}", form.test.percent if form.test else "",
            "" if form.test_skewness is None else f"{form.test_skewness:.2f}",
        )
        for form in forms
    ]  # fmt: skip
    headings = ("normalisation", "temperature", "validation", "skewness", "test", "skewness on test")
    columns = [Column(heading, is_numeric=heading != "normalisation") for heading in headings]
    metric = METRIC_TITLES.get(ensemble.metric, ensemble.metric)
    return TextTable(f"{metric} and skewness of the 10-occurrence of clips by normalisation", columns, rows)


SOUP_SYSTEMS = {
    "best_part": "best part",
    "greedy": "greedy soup",
    "kept_ensemble": "ensemble of its parts",
    "uniform": "uniform soup",
    "ensemble": "ensemble of all parts",
    "greedy_minus_best_part": "greedy soup minus best part",
    "greedy_minus_kept_ensemble": "greedy soup minus ensemble of its parts",
    "uniform_minus_ensemble": "uniform soup minus ensemble of all parts",
}
"""Titles of the systems that are compared with soups, and of their differences."""


def build_soup_table(ensemble: Ensemble) -> TextTable:
    """Return the table of the soups and what they are compared with: for each group of parts, a row for each system."""
    rows = [
        (
            "" if index else f"{soup.origin}: {len(soup.kept)} of {len(soup.parts)} kept", title,
            soup.validation[name].percent, soup.test[name].percent if soup.test else "",
        )
        for soup in ensemble.soups
        for index, (name, title) in enumerate(SOUP_SYSTEMS.items())
    ]  # fmt: skip
    headings = ("parts from", "system", "validation", "test")
    columns = [Column(heading, is_numeric=heading in ("validation", "test")) for heading in headings]
    metric = METRIC_TITLES.get(ensemble.metric, ensemble.metric)
    return TextTable(f"{metric} of soups in percent, with 95 % bootstrap intervals", columns, rows)

"""Comparison of soups with the best of their parts and with the ensemble of their parts."""

from collections.abc import Sequence
from dataclasses import replace

from ensemble.pool import evaluation
from ensemble.pool.candidates import Role
from ensemble.soups.choice import ChosenSoup, SoupChooser
from ensemble.soups.options import PoolSoups
from trainables.records.ensemble_file import Estimates, SoupComparison, SoupPart

DIFFERENCES = (("greedy", "best_part"), ("greedy", "kept_ensemble"), ("uniform", "ensemble"))
"""Pairs of systems whose difference is recorded."""


def describe_soups(soups: PoolSoups) -> tuple[SoupComparison, ...]:
    """Return the soups of a pool as ensemble.json describes them, with metrics on the validation split."""
    return tuple(
        SoupComparison(
            soup.group.origin,
            tuple(SoupPart(part.name, part.signature) for part in soup.order),
            tuple(part.signature for part in soup.kept),
            soup.greedy.signature if soup.greedy else soup.order[0].signature,
            soup.uniform.signature,
            compare_systems(soups.chooser, soup, "validation"),
        )
        for soup in soups.chosen
    )


def add_test_metrics(comparisons: Sequence[SoupComparison], soups: PoolSoups) -> tuple[SoupComparison, ...]:
    """Return the descriptions of a pool's soups with their metrics on the test split added, which is part of a look at
    test.
    """
    return tuple(
        replace(comparison, test=compare_systems(soups.chooser, soup, "test"))
        for comparison, soup in zip(comparisons, soups.chosen, strict=True)
    )


def compare_systems(chooser: SoupChooser, soup: ChosenSoup, role: Role) -> Estimates:
    """Return the metric of the systems that `SoupComparison` names, on the split with this role."""
    parts = [chooser.averages.embed([part], role) for part in soup.order]
    source = chooser.load_scores([*parts, soup.greedy or parts[0], soup.uniform], role)
    is_kept = [int(part in soup.kept) for part in soup.order]
    nothing = [0] * len(parts)
    weights = {
        "best_part": [1, *nothing[1:], 0, 0],
        "greedy": [*nothing, 1, 0],
        "kept_ensemble": [*is_kept, 0, 0],
        "uniform": [*nothing, 0, 1],
        "ensemble": [*[1] * len(parts), 0, 0],
    }
    metric = chooser.metric
    values = {name: evaluation.compute_per_query(source, one, [metric])[metric] for name, one in weights.items()}
    values |= {f"{first}_minus_{second}": values[first] - values[second] for first, second in DIFFERENCES}
    return evaluation.estimate_all(values, source.relevance)

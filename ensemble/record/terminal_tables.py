"""An ensemble's tables for the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from data.runtime import tables
from data.runtime.tables import Column, Sheet
from ensemble.record.html_page import percent
from trainables.retrieval import TITLES


def show(ensemble: Mapping[str, Any], earlier: int | None) -> None:
    """Print the members, and the figures of ensemble and best single candidate; `earlier` looks at test came before."""
    console = Console(highlight=False)

    def say(text: str) -> None:
        console.print(text, markup=False, soft_wrap=not console.is_terminal)

    if ensemble["members"] and "shapley" in ensemble["members"][0]:
        tables.show(console, members(ensemble))
        say(f"Best single candidate: {ensemble['best_single']['name']}")
    tables.show(console, figures(ensemble))
    if "test" in ensemble:
        say(lead(ensemble))
    if "methods" in ensemble:
        tables.show(console, methods(ensemble))
    if nested := ensemble.get("nested"):
        bound = "" if nested["redoes_epochs"] else " or more (epochs were chosen on the same split)"
        say(
            f"Nested cross-validation, {nested['folds']} folds: ensemble {percent(nested['ensemble'], 'value')}, best "
            f"single {percent(nested['best_single'], 'value')}; choosing flatters validation by "
            f"{100 * nested['optimism']:.2f}{bound}"
        )
    if earlier is not None:
        say(f"Evaluations on {ensemble['test']['split']} that came before this one: {earlier}")


def members(ensemble: Mapping[str, Any]) -> Sheet:
    """Return each member's weight and share."""
    headings = ("member", "signature", "weight", "alone", "without it", "Shapley value")
    columns = [Column(heading, is_figure=heading not in ("member", "signature")) for heading in headings]
    rows = [
        (
            member["name"], member.get("signature", ""), f"{member['weight']:.3f}", f"{100 * member['alone']:.2f}",
            f"{100 * member['without']:+.2f}", f"{100 * member['shapley']:.2f}",
        )
        for member in ensemble["members"]
    ]  # fmt: skip
    title = f"Ensemble by {ensemble['metric']} on {ensemble['validation']['split']}: {ensemble['method']}"
    return Sheet(title, columns, rows)


def figures(ensemble: Mapping[str, Any]) -> Sheet:
    """Return the systems' figures on each split."""
    columns = [Column("system", is_figure=False), *(Column(TITLES.get(name, name)) for name in ensemble["metrics"])]
    rows = [
        (f"{split}, {system.replace('_', ' ')}", *(percent(found, name) for name in ensemble["metrics"]))
        for split in ("validation", "test")
        for system in ("best_single", "heaviest_member", "ensemble", "difference")
        if (found := ensemble.get(split, {}).get(system))
    ]
    return Sheet("In percent, with 95 % bootstrap intervals over clips", columns, rows)


def lead(ensemble: Mapping[str, Any]) -> str:
    """Return a sentence that says whether the ensemble and the other system can be told apart on test."""
    metric, found = ensemble["metrics"][0], ensemble["test"]["difference"]
    other = "best single candidate" if "best_single" in ensemble["test"] else "heaviest member"
    low, high = found[f"{metric}_interval"]
    verdict = "the interval excludes zero" if low > 0 or high < 0 else "it may be chance, as the interval includes zero"
    name = TITLES.get(metric, metric)
    return f"On test, {name} of the ensemble minus that of the {other} is {percent(found, metric)}: {verdict}."


def methods(ensemble: Mapping[str, Any]) -> Sheet:
    """Return what each method would have chosen, and what that comes to."""
    headings = ("method", "members", "validation", "nested cross-validation", "test")
    keys = (ensemble["metric"], "value", ensemble["metric"])
    rows = [
        (
            method["name"], str(len(method["members"])),
            *(percent(method[where], key) if where in method else ""
              for where, key in zip(("validation", "nested", "test"), keys, strict=True)),
        )
        for method in ensemble["methods"]
    ]  # fmt: skip
    name = TITLES.get(ensemble["metric"], ensemble["metric"])
    return Sheet(f"{name} by method", [Column(heading, is_figure=heading != "method") for heading in headings], rows)

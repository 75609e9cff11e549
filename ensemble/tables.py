"""An ensemble's tables for the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from ensemble.page import percent

TITLES = {"map10": "mAP@10", "map16": "mAP@16", "r1": "R@1", "r5": "R@5", "r10": "R@10", "mrr": "MRR", "ndcg": "nDCG"}


def show(ensemble: Mapping[str, Any], earlier: int | None) -> None:
    """The members, and the figures of ensemble and best single candidate; `earlier` looks at test came before."""
    console = Console(width=max(160, Console().width), highlight=False)
    if ensemble["members"] and "shapley" in ensemble["members"][0]:
        console.print(members(ensemble))
        console.print(f"Best single candidate: {ensemble['best_single']['name']}", markup=False)
    console.print(figures(ensemble))
    if "test" in ensemble:
        console.print(lead(ensemble), markup=False)
    if "methods" in ensemble:
        console.print(methods(ensemble))
    if nested := ensemble.get("nested"):
        bound = "" if nested["redoes_epochs"] else " or more (epochs were chosen on the same split)"
        console.print(
            f"Nested cross-validation, {nested['folds']} folds: ensemble {percent(nested['ensemble'], 'value')}, best "
            f"single {percent(nested['best_single'], 'value')}; choosing flatters validation by "
            f"{100 * nested['optimism']:.2f}{bound}",
            markup=False,
        )  # fmt: skip
    if earlier is not None:
        console.print(f"Evaluations on {ensemble['test']['split']} that came before this one: {earlier}", markup=False)


def members(ensemble: Mapping[str, Any]) -> Table:
    """Each member's weight and share."""
    table = Table(
        title=f"Ensemble by {ensemble['metric']} on {ensemble['validation']['split']}: {ensemble['method']}",
        title_justify="left", box=None,
    )  # fmt: skip
    for heading in ("weight", "member", "signature", "alone", "without it", "Shapley value"):
        table.add_column(heading, justify="left" if heading in ("member", "signature") else "right", no_wrap=True)
    for member in ensemble["members"]:
        table.add_row(
            f"{member['weight']:.3f}", member["name"], member.get("signature", ""), f"{100 * member['alone']:.2f}",
            f"{100 * member['without']:+.2f}", f"{100 * member['shapley']:.2f}",
        )  # fmt: skip
    return table


def figures(ensemble: Mapping[str, Any]) -> Table:
    """The systems' figures on each split."""
    table = Table(title="In percent, with 95 % bootstrap intervals over clips", title_justify="left", box=None)
    table.add_column("split")
    table.add_column("system")
    for name in ensemble["metrics"]:
        table.add_column(TITLES.get(name, name), justify="right", no_wrap=True)
    for split in ("validation", "test"):
        for system in ("best_single", "heaviest_member", "ensemble", "difference"):
            if found := ensemble.get(split, {}).get(system):
                table.add_row(split, system.replace("_", " "), *(percent(found, name) for name in ensemble["metrics"]))
    return table


def lead(ensemble: Mapping[str, Any]) -> str:
    """Return a sentence that says whether the ensemble and the other system can be told apart on test."""
    metric, found = ensemble["metrics"][0], ensemble["test"]["difference"]
    other = "best single candidate" if "best_single" in ensemble["test"] else "heaviest member"
    low, high = found[f"{metric}_interval"]
    verdict = "the interval excludes zero" if low > 0 or high < 0 else "it may be chance, as the interval includes zero"
    name = TITLES.get(metric, metric)
    return f"On test, {name} of the ensemble minus that of the {other} is {percent(found, metric)}: {verdict}."


def methods(ensemble: Mapping[str, Any]) -> Table:
    """What each method would have chosen, and what that comes to."""
    name = TITLES.get(ensemble["metric"], ensemble["metric"])
    table = Table(title=f"{name} by method", title_justify="left", box=None)
    for heading in ("method", "members", "validation", "nested cross-validation", "test"):
        table.add_column(heading, justify="left" if heading == "method" else "right", no_wrap=True)
    keys = (ensemble["metric"], "value", ensemble["metric"])
    for method in ensemble["methods"]:
        table.add_row(
            method["name"], str(len(method["members"])),
            *(percent(method[where], key) if where in method else ""
              for where, key in zip(("validation", "nested", "test"), keys, strict=True)),
        )  # fmt: skip
    return table

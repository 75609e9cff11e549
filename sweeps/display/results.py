"""The table of a sweep's finished trials."""

from rich.console import Console

from data.runtime.tables import Column, Sheet, show
from sweeps.planning.stages import Stages
from trainables.records.ledger import Ledger

COLUMNS = {"map10": "mAP@10", "r1": "R@1", "r5": "R@5", "r10": "R@10"}


def say(message: str = "") -> None:
    """A line for whoever runs the command."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(message)


def show_results(ledger: Ledger, stages: Stages) -> int:
    """A table of the trials, the best by validation mAP@10 first; returns how many aren't finished."""
    rows, unfinished = [], []
    for signature, trial in (item for stage in stages for item in stage.items()):
        run = ledger.finished(signature)
        if run is None:
            unfinished.append(trial.name)
        else:
            rows.append((ledger.best_metrics(run), trial.name, signature))
    rows.sort(key=lambda row: (-row[0].get("map10", 0.0), row[2]))
    columns = [
        Column("trial", is_figure=False),
        *(Column(heading) for heading in ("best epoch", *COLUMNS.values())),
        Column("signature", is_figure=False),
    ]
    shown = []
    for metrics, name, signature in rows:
        values = [f"{100 * metrics[column]:.2f}" if column in metrics else "-" for column in COLUMNS]
        shown.append((name, f"{metrics['best_epoch']:.0f}", *values, signature))
    show(Console(), Sheet("Finished trials, on the validation split", columns, shown))
    for name in unfinished:
        say(f"not finished: {name}")
    return len(unfinished)

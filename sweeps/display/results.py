"""Table of a sweep's finished trials, and the commands that a user may run next."""

import shlex
from typing import Any

from data.runtime.console import PlainConsole
from data.runtime.options import changed_options, flag
from data.runtime.tables import Column, TextTable, print_table
from sweeps.planning.stages import Stages
from trainables.records.ledger import Ledger
from trainables.records.mlflow_ledger import LedgerOptions
from trainables.retrieval import METRIC_TITLES, METRICS


def print_line(message: str = "") -> None:
    """Print a message to the user as one line."""
    PlainConsole().print_line(message)


def show_results(ledger: Ledger, stages: Stages) -> int:
    """Print a table of a sweep's finished trials, the best by validation mAP@10 first, and the names of those that
    have not finished. Return the number of trials that have not finished.
    """
    rows, unfinished = [], []
    for signature, trial in (item for stage in stages for item in stage.items()):
        run = ledger.find_finished_trial(signature)
        if run is None:
            unfinished.append(trial.name)
        else:
            rows.append((ledger.load_best_metrics(run), trial.name, signature))
    rows.sort(key=lambda row: (-row[0].get("map10", 0.0), row[2]))
    columns = [
        Column("trial", is_numeric=False),
        *(Column(heading) for heading in ("best epoch", *(METRIC_TITLES[name] for name in METRICS))),
        Column("signature", is_numeric=False),
    ]
    formatted_rows = []
    for metrics, name, signature in rows:
        values = [f"{100 * metrics[name]:.2f}" if name in metrics else "-" for name in METRICS]
        formatted_rows.append((name, f"{metrics['best_epoch']:.0f}", *values, signature))
    print_table(PlainConsole(), TextTable("Finished trials, on the validation split", columns, formatted_rows))
    for name in unfinished:
        print_line(f"not finished: {name}")
    return len(unfinished)


def format_mlflow_command(tracking_uri: str) -> str:
    """Return the command that shows the runs in MLflow, or an MLflow server's address for a browser."""
    if tracking_uri.startswith("http"):
        return f"{tracking_uri} in a browser"
    return f"mlflow ui --backend-store-uri {tracking_uri}"


def format_resume_command(options: Any, *words: str) -> str:
    """Return the command line of grid.py, with `words` after the program's name, that resumes the sweep with these
    options.
    """
    command = ["python", "sweeps/grid.py", *words]
    for name, value in changed_options(options).items():
        if name != "ensemble":
            values = value if isinstance(value, tuple) else [] if value is True else [value]
            command += [flag(name), *map(str, values)]
    return shlex.join(command)


def format_select_command(ledger: LedgerOptions, sweep: str) -> str:
    """Return the command line that selects an ensemble from the trials of the sweep with this name."""
    words = ["python", "ensemble/select.py", "--metric", "map10", "--runs", ledger.runs, "--sweep", sweep]
    return shlex.join([*words, *(["--tracking-uri", ledger.tracking_uri] if ledger.tracking_uri else [])])

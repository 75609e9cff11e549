"""Progress of a sweep: a table that is updated on a terminal, a line per epoch elsewhere, and the table that `status`
prints.
"""

from __future__ import annotations

import datetime
import statistics
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from rich.live import Live

from data.runtime.console import PlainConsole
from data.runtime.tables import Column, TextTable
from trainables.records.ledger import Ledger, TrialRun
from trainables.records.mlflow_log import STEP

ASK_EVERY_S = 3.0
"""Interval in seconds between reads of the running trials' metrics."""

STATES = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "stopped", "RUNNING": "running"}
"""States of a trial by the status of its MLflow run."""

SHOWN = ("running", "failed", "stopped", "interrupted", "held by another command")
"""States of the trials that have a row in the table."""


@dataclass
class TrialProgress:
    """Progress of one trial of a sweep, as shown to the user."""

    name: str
    stage: str
    epochs: int
    cost: float = 1.0  # expected duration, in a unit shared by the sweep's trials
    state: str = "waiting"
    epoch: float = 0.0
    loss: float | None = None
    best_map10: float | None = None
    pairs_per_second: float | None = None
    left_s: float | None = None
    started: float = 0.0

    def update(self, metrics: Mapping[str, float]) -> None:
        """Update the fields from the newest metrics of the trial's MLflow run; a field without a metric keeps
        its value.
        """
        self.epoch = max(self.epoch, metrics.get(f"{STEP}epoch", 0.0))
        self.loss = metrics.get(f"{STEP}loss", metrics.get("train_loss", self.loss))
        self.best_map10 = metrics.get("best_map10", self.best_map10)
        self.pairs_per_second = metrics.get(
            f"{STEP}pairs_per_second", metrics.get("pairs_per_second", self.pairs_per_second)
        )
        self.left_s = metrics.get(f"{STEP}left_s", self.left_s)


COLUMNS = (
    Column("trial", is_numeric=False),
    Column("stage", is_numeric=False),
    Column("state", is_numeric=False),
    *(Column(heading) for heading in ("epoch", "loss", "best mAP@10", "pairs/s", "time left")),
)


def build_table(lines: Sequence[TrialProgress], heading: str) -> TextTable:
    """Return a table of the trials (`lines`) that are running or ended without finishing. Its title consists of
    `heading`, the number of trials in each state, and the estimated time left.
    """
    states = [line.state for line in lines]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(["finished", "running", *states]))
    rows = [
        (
            line.name, line.stage, line.state, f"{line.epoch:.2f}/{line.epochs}", format_number(line.loss, ".3f"),
            format_number(line.best_map10, ".4f"), format_number(line.pairs_per_second, ".1f"),
            format_duration(line.left_s),
        )
        for line in lines
        if line.state in SHOWN
    ]  # fmt: skip
    return TextTable(
        f"{heading}{len(states)} trials: {counts}; about {format_duration(estimate_time_left(lines))} left",
        COLUMNS,
        rows,
    )


def format_number(value: float | None, form: str) -> str:
    """Return a number in the format `form`, such as '.3f'; '' for None, a number that isn't known yet."""
    return "" if value is None else f"{value:{form}}"


def format_duration(seconds: float | None) -> str:
    """Return seconds as hours, minutes and seconds, such as '1:02:03'; '?' for None."""
    return "?" if seconds is None else str(datetime.timedelta(seconds=round(seconds)))


def estimate_time_left(lines: Sequence[TrialProgress]) -> float | None:
    """Return the estimated seconds until the sweep's end, if as many trials run at a time as now; None if no running
    trial has logged yet how long it will take.

    Waiting trials are assumed to take as long as their cost says, relative to the running trials' cost and duration.
    """
    running = [line for line in lines if line.state == "running"]
    timed = [line for line in running if line.left_s is not None and line.epoch]
    waiting = sum(line.cost for line in lines if line.state == "waiting")
    if not running and not waiting:
        return 0.0
    if not timed:
        return None
    seconds_per_cost = statistics.median(
        line.left_s / (1 - min(line.epoch / line.epochs, 0.99)) / line.cost for line in timed if line.left_s is not None
    )
    times_left_s = [line.cost * seconds_per_cost if line.left_s is None else line.left_s for line in running]
    return max(max(times_left_s), (sum(times_left_s) + waiting * seconds_per_cost) / len(running))


def load_progress(
    ledger: Ledger, trials: Mapping[str, Mapping[str, Any]], held: Mapping[str, bool]
) -> list[TrialProgress]:
    """Return the progress of a sweep's trials as logged in MLflow. `trials` holds the name, stage, epochs and cost of
    each trial by signature; `held` says by signature whether a command is training the trial.
    """
    lines = []
    for signature, description in trials.items():
        line = TrialProgress(**description)
        run = ledger.find_trial(signature)
        if run is not None:
            line.state = find_state(run, held[signature])
            line.update(run.metrics)
        lines.append(line)
    return lines


def find_state(run: TrialRun, is_held: bool) -> str:
    """Return the state of a trial, such as 'finished' or 'running', from its run. A trial whose run has the status
    RUNNING, but whose lease no command holds, is 'interrupted'.
    """
    state = STATES.get(run.status, "waiting")
    return "interrupted" if state == "running" and not is_held else state


class SweepDisplay:
    """Display of a sweep's progress, used as a context manager: a table that is updated on a terminal, printed
    lines elsewhere.
    """

    def __init__(self, lines: Mapping[str, TrialProgress], console: PlainConsole, ledger: Ledger) -> None:
        self.lines = dict(lines)
        self.console = console
        self.ledger = ledger
        self.started = time.monotonic()
        self.has_ended = threading.Event()
        self.polling_thread = threading.Thread(target=self.poll, daemon=True)
        self.live = Live(console=console, get_renderable=self.render, refresh_per_second=2, transient=True)

    def __enter__(self) -> SweepDisplay:
        if self.console.is_terminal:
            self.live.start()
            self.polling_thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.has_ended.set()
        if self.console.is_terminal:
            self.polling_thread.join()
            self.live.stop()

    def poll(self) -> None:
        """Read the metrics of running trials from MLflow every few seconds and show them, until the display ends. This
        method blocks; the display runs it in a thread.
        """
        while not self.has_ended.wait(ASK_EVERY_S):
            for run in self.ledger.iter_running_trials():
                line = self.lines.get(run.signature)
                if line and line.state == "running":
                    line.update(run.metrics)

    def render(self) -> TextTable:
        """Return the table to show on the terminal now."""
        return build_table(list(self.lines.values()), f"{format_duration(time.monotonic() - self.started)}, ")

    def show_start(self, signature: str) -> None:
        """Set the state of a trial to 'running', and print that it has started."""
        line = self.lines[signature]
        line.state, line.started = "running", time.monotonic()
        self.print_line(f"{line.name}: started")

    def show_epoch(self, signature: str, metrics: Mapping[str, float]) -> None:
        """Update the progress of the trial with this signature by the metrics of an epoch that it has finished, and
        print them.
        """
        line, epoch = self.lines[signature], int(metrics["epoch"])
        line.epoch = max(line.epoch, epoch)
        line.update(metrics)
        self.print_line(
            f"{line.name}: epoch {epoch}/{line.epochs}, loss {metrics['train_loss']:.3f}"
            + (f", best validation mAP@10 {metrics['best_map10']:.3f}" if "best_map10" in metrics else "")
        )

    def show_finished(self, signature: str) -> None:
        """Set the state of a trial to 'finished' and print that another command has finished it, unless this
        command has.
        """
        if self.lines[signature].state != "finished":
            self.lines[signature].state = "finished"
            self.print_line(f"{self.lines[signature].name}: finished by another command")

    def show_end(self, signature: str, state: str) -> None:
        """Set the state of the trial with this signature, which has ended ('finished', 'failed', 'stopped' or 'held by
        another command'), and print it.
        """
        line = self.lines[signature]
        line.state = state
        self.print_line(f"{line.name}: {state} after {time.monotonic() - line.started:.0f} s")

    def print_line(self, message: str) -> None:
        """Print a message, unless the display is a table on a terminal."""
        if not self.console.is_terminal:
            self.console.print_line(message)

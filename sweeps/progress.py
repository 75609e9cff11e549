"""One live display of a sweep: a table that renews itself on a terminal, a line an epoch elsewhere."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text


@dataclass
class Line:
    """What is known of a trial."""

    name: str
    epochs: int
    state: str = "waiting"
    epoch: int = 0
    best_map10: float = 0.0
    started: float = 0.0


class Display:
    """Shows how far the trials of a sweep have come."""

    def __init__(self, lines: Mapping[str, Line], console: Console) -> None:
        self.lines = dict(lines)
        self.console = console
        self.started = time.monotonic()
        self.live = Live(console=console, get_renderable=self.view, refresh_per_second=2, transient=True)

    def __enter__(self) -> "Display":
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self.live.stop()

    def view(self) -> Group:
        """A count of all trials, and those that run."""
        states = [line.state for line in self.lines.values()]
        elapsed = time.strftime("%H:%M:%S", time.gmtime(time.monotonic() - self.started))
        counts = ", ".join(f"{states.count(state)} {state}" for state in ("finished", "running", "waiting", "failed"))
        table = Table(box=None)
        for heading in ("trial", "epoch", "best validation mAP@10"):
            table.add_column(heading)
        for line in self.lines.values():
            if line.state == "running":
                table.add_row(line.name, f"{line.epoch}/{line.epochs}", f"{line.best_map10:.3f}" if line.epoch else "")
        return Group(Text(f"{counts} of {len(states)} trials, {elapsed}"), table)

    def start(self, signature: str) -> None:
        """A trial has started."""
        line = self.lines[signature]
        line.state, line.started = "running", time.monotonic()
        self.say(f"{line.name}: started")

    def epoch(self, signature: str, epoch: int, best_map10: float) -> None:
        """A trial has finished an epoch."""
        line = self.lines[signature]
        if epoch <= line.epoch:
            return  # a trial that has ended reports its best epoch again
        line.epoch, line.best_map10 = epoch, best_map10
        self.say(f"{line.name}: epoch {epoch}/{line.epochs}, best validation mAP@10 {best_map10:.3f}")

    def end(self, signature: str, state: str) -> None:
        """A trial has 'finished' or 'failed'."""
        line = self.lines[signature]
        line.state = state
        self.say(f"{line.name}: {state} after {time.monotonic() - line.started:.0f} s")

    def say(self, message: str) -> None:
        """A line where there is no terminal to renew a table on."""
        if not self.console.is_terminal:
            self.console.print(message, markup=False, highlight=False, soft_wrap=True)

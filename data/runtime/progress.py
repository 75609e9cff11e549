"""Progress of a command, shown as one line."""

import logging
import time
from typing import Self

from rich.live import Live
from rich.text import Text

from data.runtime.console import PlainConsole

LOG_INTERVAL_S = 10.0
"""Interval between progress messages if standard error isn't a terminal."""


class ProgressLine:
    """Line of text about a command's progress: refreshed on a terminal, and logged every LOG_INTERVAL_S seconds
    elsewhere. Subclasses implement `line`.

    rich calls `line` immediately: set the attributes that it needs before calling this class' `__init__`.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self.logger = logger
        self.started = self.said = time.monotonic()
        self.live = Live(console=PlainConsole(stderr=True), get_renderable=lambda: Text(self.line()), transient=True)

    def __enter__(self) -> Self:
        if self.live.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def line(self) -> str:
        """Return the text of the progress line."""
        raise NotImplementedError

    def elapsed_s(self) -> float:
        """Return the number of seconds since the start, at least 0.001."""
        return max(time.monotonic() - self.started, 1e-3)

    def log_if_due(self) -> None:
        """Log the progress line if there is no terminal and it was last logged more than LOG_INTERVAL_S seconds
        ago. Call it after each unit of work.
        """
        if not self.live.console.is_terminal and time.monotonic() - self.said > LOG_INTERVAL_S:
            self.said = time.monotonic()
            self.logger.info(self.line())

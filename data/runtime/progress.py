"""How far a command is, as one line."""

import logging
import time
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

SAY_EVERY_S = 10.0
"""Between two lines where there is no terminal to renew one on."""


class ProgressLine:
    """A line that is renewed on a terminal, and told every SAY_EVERY_S elsewhere; a subclass says what.

    rich asks for the line at once: what `line` needs is set before this class' `__init__` is called.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self.logger = logger
        self.started = self.said = time.monotonic()
        self.live = Live(console=Console(stderr=True), get_renderable=lambda: Text(self.line()), transient=True)

    def __enter__(self) -> Self:
        if self.live.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def line(self) -> str:
        """What there is to say."""
        raise NotImplementedError

    def elapsed_s(self) -> float:
        """Since it began."""
        return max(time.monotonic() - self.started, 1e-3)

    def changed(self) -> None:
        """Something is done."""
        if not self.live.console.is_terminal and time.monotonic() - self.said > SAY_EVERY_S:
            self.said = time.monotonic()
            self.logger.info(self.line())

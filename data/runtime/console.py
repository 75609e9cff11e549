"""The console that commands print to: text is printed as it is, and control characters in it are shown."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from data.runtime.printable import make_printable


class PlainConsole(Console):
    """Console on which text is never rich's markup, and no name of a file or text of a stranger controls the terminal.

    Print a line of text with `print_line`, and a table with `data.runtime.tables.print_table`.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **settings)

    def print_line(self, text: str = "", soft_wrap: bool = True) -> None:
        """Print one line of text. With `soft_wrap`, a long line is printed whole, for the terminal to wrap; otherwise
        it is broken between words.
        """
        self.print(make_printable(text), soft_wrap=soft_wrap)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments of whatever is printed, with control characters shown, except line breaks and tabs, which
        a layout consists of.
        """
        for segment in super().render(renderable, options):
            is_text = segment.control is None
            yield Segment(make_printable(segment.text, "\n\t"), segment.style) if is_text else segment

"""Tables that show every figure in full, however narrow the terminal is, and plain lines where there is none."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment

GAP = "  "
"""Between two columns, and before what belongs to the line above."""

NO_BREAK = "\N{NO-BREAK SPACE}"
"""In place of a space where a line is not to be broken; `wrapped` returns plain spaces."""


@dataclass(frozen=True)
class Column:
    """A heading, and whether its values are figures, which are aligned on the right."""

    heading: str
    is_figure: bool = True


@dataclass(frozen=True)
class Sheet:
    """Rows of text under columns, the first of which names the row. Print it with `show`.

    On a terminal a row is a line where all rows fit. Where they don't, the name has a line of its own above the
    other columns; where even these don't fit, each value follows its heading, on as many lines as that takes.
    Elsewhere a row is a line with tabs between its values, and nothing is padded.
    """

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in self.lines(options.max_width) if console.is_terminal else self.plain_lines():
            yield Segment(line)
            yield Segment.line()

    def plain_lines(self) -> list[str]:
        """Return the title, the headings and the rows for a file or a pipe."""
        headings = [column.heading for column in self.columns]
        return [*self.title.splitlines(), *("\t".join(row) for row in [headings, *self.rows] if self.rows)]

    def lines(self, width: int) -> list[str]:
        """Return the title, the headings and the rows for a terminal of `width` characters."""
        title = wrapped(self.title, width)
        if not self.rows:
            return title
        whole = aligned(self.columns, self.rows)
        if widest(whole) <= width:
            return title + whole
        heading, *rest = aligned(self.columns[1:], [row[1:] for row in self.rows])
        if len(GAP) + widest([heading, *rest]) <= width:
            below = [[GAP + line] for line in rest]
            top = [*wrapped(self.columns[0].heading, width), GAP + heading]
        else:
            below = [wrapped(self.labelled(row), width, GAP) for row in self.rows]
            top = []
        return (
            title
            + top
            + [line for row, more in zip(self.rows, below, strict=True) for line in [*wrapped(row[0], width), *more]]
        )

    def labelled(self, row: Sequence[str]) -> str:
        """Return a row's values but the first, each after its heading; those that are absent are left out."""
        pairs = zip(self.columns[1:], row[1:], strict=True)
        labels = [f"{column.heading} {value}".replace(" ", NO_BREAK) for column, value in pairs if value]
        return ", ".join(labels)


def aligned(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the headings and the rows, each as a line."""
    table = [[column.heading for column in columns], *rows]
    widths = [max(map(len, values)) for values in zip(*table, strict=True)]
    sides = [">" if column.is_figure else "<" for column in columns]
    return [
        GAP.join(f"{value:{side}{width}}" for value, side, width in zip(row, sides, widths, strict=True)).rstrip()
        for row in table
    ]


def widest(lines: Sequence[str]) -> int:
    """Return the length of the longest line."""
    return max(map(len, lines))


def wrapped(text: str, width: int, indent: str = "") -> list[str]:
    """Return a text as lines of at most `width` characters, broken between words where that is possible."""
    lines = textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent or GAP, break_on_hyphens=False)
    return [line.replace(NO_BREAK, " ") for line in lines]


def show(console: Console, sheet: Sheet) -> None:
    """Print a sheet; nothing of it is cut off or broken by the console."""
    console.print(sheet, soft_wrap=True)

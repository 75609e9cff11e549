"""Tables for a terminal of any width, in which no value is cut off, and tab-separated lines for files and pipes."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment

from data.runtime.printable import make_printable

GAP = "  "
"""Space between two columns, and indentation of continuation lines."""

NO_BREAK = "\N{NO-BREAK SPACE}"
"""Replacement for a space at which a line must not be broken; `wrap_text` returns plain spaces."""


@dataclass(frozen=True)
class Column:
    """Heading of a column, and whether its values are numbers, which are right-aligned."""

    heading: str
    is_numeric: bool = True


@dataclass(frozen=True)
class TextTable:
    """Table whose cells are text, and whose first column names the row. Print it with `print_table`.

    On a terminal, each row is a line if all rows fit. Otherwise the name is on a line of its own above the other
    columns; if these don't fit either, each value follows its heading, on as many lines as needed. Elsewhere, each row
    is a line of tab-separated values without padding.
    """

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = replace(self, rows=[list(map(make_printable, row)) for row in self.rows])
        for line in table.format_for_width(options.max_width) if console.is_terminal else table.format_plain():
            yield Segment(line)
            yield Segment.line()

    def format_plain(self) -> list[str]:
        """Return the title, the headings and the rows as lines for a file or a pipe."""
        headings = [column.heading for column in self.columns]
        return [*self.title.splitlines(), *("\t".join(row) for row in [headings, *self.rows] if self.rows)]

    def format_for_width(self, width: int) -> list[str]:
        """Return the title, the headings and the rows as lines for a terminal of `width` characters."""
        title = wrap_text(self.title, width)
        if not self.rows:
            return title
        full_lines = align_rows(self.columns, self.rows)
        if compute_max_width(full_lines) <= width:
            return title + full_lines
        heading, *rest = align_rows(self.columns[1:], [row[1:] for row in self.rows])
        if len(GAP) + compute_max_width([heading, *rest]) <= width:
            below = [[GAP + line] for line in rest]
            top = [*wrap_text(self.columns[0].heading, width), GAP + heading]
        else:
            below = [wrap_text(self.format_labelled(row), width, GAP) for row in self.rows]
            top = []
        return (
            title
            + top
            + [line for row, more in zip(self.rows, below, strict=True) for line in [*wrap_text(row[0], width), *more]]
        )

    def format_labelled(self, row: Sequence[str]) -> str:
        """Return the values of a row as one line, each after the heading of its column. The first value, which
        names the row, and empty values are omitted.
        """
        pairs = zip(self.columns[1:], row[1:], strict=True)
        labels = [f"{column.heading} {value}".replace(" ", NO_BREAK) for column, value in pairs if value]
        return ", ".join(labels)


def align_rows(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the headings and the rows as lines with aligned columns."""
    table = [[column.heading for column in columns], *rows]
    widths = [max(map(len, values)) for values in zip(*table, strict=True)]
    alignments = [">" if column.is_numeric else "<" for column in columns]
    return [
        GAP.join(f"{value:{side}{width}}" for value, side, width in zip(row, alignments, widths, strict=True)).rstrip()
        for row in table
    ]


def compute_max_width(lines: Sequence[str]) -> int:
    """Return the length of the longest line."""
    return max(map(len, lines))


def wrap_text(text: str, width: int, indent: str = "") -> list[str]:
    """Return a text as lines of at most `width` characters, broken between words if possible. Each line begins with
    `indent`; if that is '', the first line isn't indented, and each further line begins with the space that separates
    columns (GAP).
    """
    lines = textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent or GAP, break_on_hyphens=False)
    return [line.replace(NO_BREAK, " ") for line in lines]


def print_table(console: Console, table: TextTable) -> None:
    """Print a table; the console neither crops nor wraps it."""
    console.print(table, soft_wrap=True)

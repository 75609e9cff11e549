"""Tables of the report: for the terminal, as Markdown, CSV and LaTeX. Metrics are in percent."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.measure import Measurement
from rich.table import Table

from data.runtime.console import PlainConsole
from data.runtime.printable import make_printable
from ensemble.reporting.paper_results import METRICS
from trainables.retrieval import METRIC_TITLES

MAX_TERMINAL_WIDTH = 1000
"""Maximum width of a table on the terminal; longer cells are wrapped."""

LATEX = str.maketrans({"&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
                       "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"})  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """Value of a metric, with the limits of an interval or of a range."""

    value: float
    low: float
    high: float

    @property
    def text(self) -> str:
        """Value as text, with two decimals."""
        return f"{self.value:.2f}"

    def format_limits(self, between: str = " to ") -> str:
        """Return the limits as text, such as '40.3 to 44.0'."""
        return f"{self.low:.1f}{between}{self.high:.1f}"


@dataclass(frozen=True)
class TableLine:
    """Line of a table: a trial, an ensemble, or a summary over seeds."""

    labels: Sequence[str]  # one for each heading
    metrics: Mapping[str, Cell]  # by metric; empty if there are none
    published: Mapping[str, float] = field(default_factory=dict)  # the paper's values by metric
    is_ensemble: bool = False  # its second label is a name that spans all other labels


@dataclass(frozen=True)
class ReportTable:
    """Table of the report: lines with labels and metrics."""

    title: str
    headings: Sequence[str]  # headings of the labels
    limits: tuple[str, str]  # names of the lower and the upper limit of its metrics
    lines: Sequence[TableLine]

    @property
    def published(self) -> list[str]:
        """Names of the metrics for which the paper's value is known for at least one line."""
        return [name for name in METRICS if any(name in line.published for line in self.lines)]

    def list_columns(self) -> list[tuple[str, bool]]:
        """Return the columns after the labels as pairs: the name of a metric, and whether the column has the paper's
        values instead of ours.
        """
        return [(name, paper) for name in METRICS for paper in (False, True) if not paper or name in self.published]

    def list_headings(self) -> list[str]:
        """Return the headings of labels and metrics."""
        return [*self.headings, *(METRIC_TITLES[name] + ", paper" * paper for name, paper in self.list_columns())]


def format_cells(table: ReportTable, line: TableLine) -> list[str]:
    """Return the cells of a line of the table as text: its labels, then each metric with its limits in brackets, and
    the paper's values.
    """
    cells = list(line.labels)
    for name, is_papers in table.list_columns():
        cell, paper_value = line.metrics.get(name), line.published.get(name)
        if is_papers:
            cells.append("" if paper_value is None else f"{paper_value:.2f}")
        else:
            cells.append(f"{cell.text} ({cell.format_limits()})" if cell else "")
    return cells


def to_markdown(table: ReportTable) -> str:
    """Return the table in Markdown."""

    def row(entries: Sequence[str]) -> str:
        return "| " + " | ".join(entry.replace("\\", "\\\\").replace("|", "\\|") for entry in entries) + " |"

    headings = table.list_headings()
    lines = [row(headings), "|" + "---|" * len(headings), *(row(format_cells(table, line)) for line in table.lines)]
    return f"{table.title}\n\n" + "\n".join(lines) + "\n"


def to_csv(table: ReportTable) -> str:
    """Return the table as CSV. Unlike in other formats, there are always columns for the limits and the paper's
    values.
    """
    low, high = table.limits
    ends = ("", f" {low}", f" {high}", " paper")
    rows = [[*table.headings, *(f"{METRIC_TITLES[name]}{end}" for name in METRICS for end in ends)]]
    for line in table.lines:
        row = list(line.labels)
        for name in METRICS:
            cell, paper_value = line.metrics.get(name), line.published.get(name)
            row += [f"{value:.2f}" for value in (cell.value, cell.low, cell.high)] if cell else [""] * 3
            row.append("" if paper_value is None else f"{paper_value:.2f}")
        rows.append(row)
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()


def escape_latex(text: str) -> str:
    """Return text with LaTeX's special characters escaped."""
    return text.translate(LATEX)


def format_latex_cells(table: ReportTable, line: TableLine) -> list[str]:
    """Return the cells of a line of the table in LaTeX; an ensemble's name spans the columns of the other labels."""
    labels = [escape_latex(label) for label in line.labels]
    if line.is_ensemble:
        labels = [labels[0], rf"\multicolumn{{{len(labels) - 1}}}{{l}}{{{labels[1]}}}"]
    cells = []
    for name, is_papers in table.list_columns():
        cell, paper_value = line.metrics.get(name), line.published.get(name)
        if is_papers:
            cells.append("" if paper_value is None else f"{paper_value:.2f}")
        else:
            cells.append(rf"{cell.text} {{\scriptsize {cell.format_limits('--')}}}" if cell else "")
    return [*labels, *cells]


def to_latex(table: ReportTable) -> str:
    """Return the table in LaTeX, for booktabs."""
    columns = "l" * len(table.headings) + "r" * len(table.list_columns())
    body: list[str] = []
    for before, line in zip([None, *table.lines], table.lines, strict=False):
        body += [r"\midrule"] * (before is not None and line.is_ensemble > before.is_ensemble)
        body.append(" & ".join(format_latex_cells(table, line)) + r" \\")
    headings = " & ".join(map(escape_latex, table.list_headings())) + r" \\"
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", headings, r"\midrule", *body, r"\bottomrule",
             r"\end{tabular}"]  # fmt: skip
    return f"% {table.title}\n" + "\n".join(lines) + "\n"


def print_table(table: ReportTable) -> None:
    """Print the table on the terminal, with limits of the first metric only, to save width."""
    shown = Table(title=table.title, title_justify="left", box=None)
    for index, heading in enumerate(table.headings):
        shown.add_column(heading, justify="left" if index else "right", no_wrap=True)
    for name, is_papers in table.list_columns():
        shown.add_column("paper" if is_papers else METRIC_TITLES[name], justify="right", no_wrap=True)
    for line in table.lines:
        row = format_cells(table, line)
        for index, (name, _) in enumerate(table.list_columns(), start=len(table.headings)):
            if name != METRICS[0]:
                row[index] = row[index].partition(" ")[0]
        shown.add_row(*map(make_printable, row))
    wide = PlainConsole(width=MAX_TERMINAL_WIDTH)
    width = Measurement.get(wide, wide.options, shown).maximum
    PlainConsole(width=max(PlainConsole().width, width)).print(shown)

"""Read the CSV tables of a corpus; errors name the file and the line."""

import csv
import io
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from data.errors import UserError

MAX_LISTED_PROBLEMS = 100
"""Maximum number of wrong rows named in a message."""


@dataclass(frozen=True)
class CsvRow:
    """Row of a table: the text of its cells by column name, and its origin (file and line) for messages."""

    cells: dict[str, str]
    origin: str

    def __getitem__(self, column: str) -> str:
        """Return the text of a cell. Raises UserError if it is empty; use `get_optional` for cells that may be."""
        cell = self.cells[column].strip()
        if not cell:
            raise UserError(self.explain_empty(column))
        return self.cells[column]

    def explain_empty(self, column: str) -> str:
        """Return the message about an empty cell, with the row's file and line."""
        return f"{self.origin}: column {column!r} is empty"

    def get_optional(self, column: str) -> str:
        """Return the text of a cell; '' if it is empty or the table has no such column."""
        return self.cells.get(column, "")


def require_source(source: Path | None, corpus: str) -> Path:
    """Return `source`, the folder that a corpus is read from. Raises UserError if it is None or isn't a folder."""
    if source is None:
        raise UserError(f"{corpus} is read from files: name the folder that holds them with --source")
    return require_directory(source)


def require_directory(path: Path) -> Path:
    """Return `path`. Raises UserError if it isn't a directory."""
    if not path.is_dir():
        raise UserError(f"{path} is {'not a directory' if path.exists() else 'absent'}")
    return path


def read_csv(
    path: Path, columns: list[str], encoding: str = "utf-8", may_be_empty: Collection[str] = ()
) -> list[CsvRow]:
    """Return the rows of a CSV file in the given encoding, whose header contains at least `columns`, in any order.
    Cells in these columns must not be empty, except in the columns that `may_be_empty` names.

    Raises UserError if the file is absent, has no rows or has another encoding, or if a column is missing or occurs
    twice. Raises UserError that names every wrong row if rows don't have as many cells as the header, as after a line
    break without quotes, or have an empty cell in one of `columns` that isn't in `may_be_empty`.
    """
    text = read_text(path, encoding)
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    rows, problems = [], []
    try:
        header = list(reader.fieldnames or [])
        require_columns(path, header, columns)
        required = [column for column in columns if column not in may_be_empty]
        for cells in reader:
            row = CsvRow(cells, f"{path}, line {reader.line_num}")
            if None in cells or None in cells.values():
                problems.append(f"{row.origin}: the row doesn't have as many cells as the header ({len(header)})")
            else:
                problems += [row.explain_empty(column) for column in required if not cells[column].strip()]
            rows.append(row)
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.reader.line_num}: {error}") from None
    if problems:
        raise UserError(format_problems(path, problems))
    if not rows:
        raise UserError(f"{path} has no rows below its header")
    return rows


def format_problems(path: Path, problems: list[str]) -> str:
    """Return a message about all problems of a table, at most MAX_LISTED_PROBLEMS of them."""
    if len(problems) == 1:
        return problems[0]
    further = len(problems) - MAX_LISTED_PROBLEMS
    more = [f"and {further:,} more"] if further > 0 else []
    hint = "put captions with line breaks in quotes, and fill or remove rows with empty cells"
    listed = "; ".join([*problems[:MAX_LISTED_PROBLEMS], *more])
    return f"{path}: {len(problems):,} problems ({hint}): {listed}"


def read_header(path: Path) -> list[str]:
    """Return the column names in the first row of a CSV file in UTF-8; [] if it is empty. Raises UserError if it can't
    be read.
    """
    return next(csv.reader(io.StringIO(read_text(path, "utf-8"), newline="")), [])


def read_text(path: Path, encoding: str) -> str:
    """Return the text of a table. Raises UserError if it can't be read or isn't in the given encoding."""
    try:
        return path.read_bytes().decode(encoding).removeprefix("\ufeff")
    except FileNotFoundError:
        raise UserError(f"{path} is absent") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a directory, not a table") from None
    except PermissionError:
        raise UserError(f"{path} can't be read: change its permissions") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path}, line {line}: byte 0x{error.object[error.start]:02x} isn't {encoding.upper()}; "
            f"save the table in that encoding"
        ) from None


def require_columns(path: Path, header: list[str], columns: list[str]) -> None:
    """Raise UserError if a header lacks one of the columns, or has one twice."""
    missing = [column for column in columns if column not in header]
    if missing:
        raise UserError(
            f"{path}: column {', '.join(missing)} is missing; the header has: {', '.join(header) or 'nothing'}"
        )
    repeated = sorted({column for column in header if column and header.count(column) > 1})
    if repeated:
        raise UserError(f"{path}: column {', '.join(repeated)} occurs more than once in the header")

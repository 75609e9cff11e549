"""Read the tables that describe a corpus; what is wrong with one is named by file and row."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from data.errors import UserError


@dataclass(frozen=True)
class Row:
    """A row of a table: its cells by column, and where it stands, for messages."""

    cells: dict[str, str]
    origin: str

    def __getitem__(self, column: str) -> str:
        """The cell's text. An empty cell is an error: `optional` reads those that may be."""
        cell = self.cells[column].strip()
        if not cell:
            raise UserError(f"{self.origin}: column {column!r} is empty")
        return self.cells[column]

    def optional(self, column: str) -> str:
        """The cell's text; '' where it is empty or the table has no such column."""
        return self.cells.get(column, "")


def require_source(source: Path | None, corpus: str) -> Path:
    """The directory that a corpus is read from; a UserError where none is named, or it isn't one."""
    if source is None:
        raise UserError(f"{corpus} is read from files: name the directory of its published layout with --source")
    return require_directory(source)


def require_directory(path: Path) -> Path:
    """The path, if it is a directory; a UserError otherwise."""
    if not path.is_dir():
        raise UserError(f"{path} is {'not a directory' if path.exists() else 'absent'}")
    return path


def read_csv(path: Path, columns: list[str], encoding: str = "utf-8") -> list[Row]:
    """The rows of a CSV file with a header that names at least `columns`, in any order.

    Raises UserError for a file that is absent, in another encoding, without one of the columns or with one of them
    twice, or with a row of another length than the header.
    """
    text = read_text(path, encoding)
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    rows = []
    try:
        require_columns(path, list(reader.fieldnames or []), columns)
        for cells in reader:
            origin = f"{path}, line {reader.line_num}"
            if None in cells or None in cells.values():
                raise UserError(
                    f"{origin}: the row hasn't as many cells as the header ({len(reader.fieldnames or [])})"
                )
            rows.append(Row(cells, origin))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.reader.line_num}: {error}") from None
    if not rows:
        raise UserError(f"{path} holds no row below its header")
    return rows


def read_text(path: Path, encoding: str) -> str:
    """A table's text. Raises UserError where it can't be read, or isn't in that encoding."""
    try:
        return path.read_bytes().decode(encoding).removeprefix("\ufeff")
    except FileNotFoundError:
        raise UserError(f"{path} is absent") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a directory, not a table") from None
    except PermissionError:
        raise UserError(f"{path} may not be read: change its permissions") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path}, line {line}: byte 0x{error.object[error.start]:02x} isn't {encoding.upper()}; "
            f"save the table in that encoding"
        ) from None


def require_columns(path: Path, header: list[str], columns: list[str]) -> None:
    """A UserError where a header lacks one of these columns, or has one twice."""
    missing = [column for column in columns if column not in header]
    if missing:
        raise UserError(
            f"{path}: column {', '.join(missing)} is missing; the header has: {', '.join(header) or 'nothing'}"
        )
    repeated = sorted({column for column in header if column and header.count(column) > 1})
    if repeated:
        raise UserError(f"{path}: column {', '.join(repeated)} occurs more than once in the header")

"""Tables of a corpus: what is wrong with one is named by file and line."""

import re

import pytest

from data.errors import UserError
from data.sources.csv_tables import read_csv, require_directory, require_source

COLUMNS = ["file_name", "caption"]


@pytest.fixture
def table(tmp_path):
    """A function that writes a table's bytes and gives its path."""

    def write(contents):
        path = tmp_path / "table.csv"
        path.write_bytes(contents if isinstance(contents, bytes) else contents.encode())
        return path

    return write


def refused(path, said, **options):
    with pytest.raises(UserError, match=re.escape(said)):
        read_csv(path, COLUMNS, **options)


def test_rows_are_read_by_column_in_any_order(table):
    path = table('caption,extra,file_name\n"Rain, then ""wind""",x,a.wav\nA dog.,,"b, c.wav"\n')
    rows = read_csv(path, COLUMNS)
    assert [(row["file_name"], row["caption"]) for row in rows] == [
        ("a.wav", 'Rain, then "wind"'),
        ("b, c.wav", "A dog."),
    ]
    assert [row.origin for row in rows] == [f"{path}, line 2", f"{path}, line 3"]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_the_bytes_that_spreadsheets_add_change_nothing(newline, table):
    path = table(b"\xef\xbb\xbf" + newline.join(["file_name,caption", "M\u00e4rkt.wav,A dog.", "", ""]).encode())
    (row,) = read_csv(path, COLUMNS)
    assert row.cells == {"file_name": "M\u00e4rkt.wav", "caption": "A dog."}


def test_another_encoding_is_read_where_it_is_named(table):
    path = table("file_name,caption\nM\u00e4rkt.wav,A dog.\n".encode("iso-8859-1"))
    assert read_csv(path, COLUMNS, encoding="iso-8859-1")[0]["file_name"] == "M\u00e4rkt.wav"


def test_a_wrong_encoding_is_named_with_its_line(table):
    path = table("file_name,caption\na.wav,A dog.\nM\u00e4rkt.wav,A dog.\n".encode("iso-8859-1"))
    refused(path, f"{path}, line 3: byte 0xe4 isn't UTF-8")


@pytest.mark.parametrize(
    ("header", "missing"),
    [
        ("file_name,text", "caption"),
        ("FILE_NAME,Caption", "file_name, caption"),
        ("file_name;caption", "file_name, caption"),
    ],
)
def test_a_missing_column_is_named_beside_those_that_are_there(header, missing, table):
    path = table(f"{header}\na.wav,A dog.\n")
    refused(path, f"{path}: column {missing} is missing; the header has: {header.replace(',', ', ')}")


def test_a_column_that_occurs_twice_is_named(table):
    refused(table("file_name,caption,caption\na.wav,A dog.,A cat.\n"), "column caption occurs more than once")


def test_a_table_without_a_header_is_refused(table):
    refused(table(""), "column file_name, caption is missing; the header has: nothing")


def test_a_table_without_rows_is_refused(table):
    refused(table("file_name,caption\n"), "has no rows below its header")


@pytest.mark.parametrize("row", ["b.wav", "b.wav,A dog, barking"])
def test_a_row_of_another_length_than_the_header_is_named(row, table):
    path = table(f"file_name,caption\na.wav,A dog.\n{row}\n")
    refused(path, f"{path}, line 3: the row doesn't have as many cells as the header (2)")


def test_a_quote_that_stays_open_is_named(table):
    path = table('file_name,caption\na.wav,A dog.\nb.wav,"A dog.\n')
    refused(path, f"{path}, line 3: unexpected end of data")


def test_a_quote_that_stays_open_in_the_header_is_named(table):
    path = table('file_name,"caption\na.wav,A dog.\n')
    refused(path, f"{path}, line 2: unexpected end of data")


@pytest.mark.parametrize("cell", ["", "   "])
def test_an_empty_cell_is_named_when_it_is_needed(cell, table):
    path = table(f"file_name,caption\na.wav,{cell}\n")
    said = re.escape(f"{path}, line 2: column 'caption' is empty")
    with pytest.raises(UserError, match=said):
        read_csv(path, COLUMNS)
    (row,) = read_csv(path, COLUMNS, may_be_empty=["caption"])
    with pytest.raises(UserError, match=said):
        row["caption"]
    assert row.get_optional("caption") == cell
    assert row.get_optional("no such column") == ""


def test_all_wrong_rows_are_named_at_once(table):
    rows = ["a.wav,A dog", "barks.", "b.wav,Rain.", "c.wav,", "d.wav,A cat, meowing.", "e.wav,Wind."]
    with pytest.raises(UserError) as refusal:
        read_csv(table("\n".join(["file_name,caption", *rows, ""])), COLUMNS)
    message = str(refusal.value)
    assert "3 problems (put captions with line breaks in quotes" in message
    for line, problem in ((3, "as many cells"), (5, "column 'caption' is empty"), (6, "as many cells")):
        assert re.search(rf"line {line}: [^;]*{problem}", message)
    assert not re.search("line [247]:", message)


def test_an_absent_file_is_refused(tmp_path):
    refused(tmp_path / "absent.csv", f"{tmp_path / 'absent.csv'} is absent")


def test_a_directory_is_no_table(tmp_path):
    refused(tmp_path, "is a directory, not a table")


def test_only_a_directory_is_a_directory(tmp_path, table):
    assert require_directory(tmp_path) == tmp_path
    with pytest.raises(UserError, match=r"absent is absent"):
        require_directory(tmp_path / "absent")
    with pytest.raises(UserError, match="not a directory"):
        require_directory(table("x"))


def test_a_source_is_a_directory(tmp_path):
    assert require_source(tmp_path, "clotho") == tmp_path
    with pytest.raises(UserError, match=r"clotho is read from files: .* with --source"):
        require_source(None, "clotho")

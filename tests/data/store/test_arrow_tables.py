"""Arrow files that the project doesn't write: compressed ones."""

import pyarrow as pa
import pytest

from data.errors import UserError
from data.store.arrow_tables import open_table

COLUMNS = {
    "texts": pa.array(["rain on a roof"] * 5_000),
    "numbers": pa.array(range(5_000)),
    "kinds": pa.array(["dog", "cat"] * 2_500).dictionary_encode(),
}
PLACES = ("a file", "bytes", "a buffer")


def write(path, names, codec, batch_rows=1_000, **options):
    table = pa.table({name: COLUMNS[name] for name in names})
    with pa.ipc.new_file(
        str(path), table.schema, options=pa.ipc.IpcWriteOptions(compression=codec, **options)
    ) as writer:
        writer.write_table(table, batch_rows)
    return table


def source_of(path, place):
    return {"a file": path, "bytes": path.read_bytes(), "a buffer": pa.py_buffer(path.read_bytes())}[place]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("names", [["texts"], ["numbers"], ["kinds"], list(COLUMNS)])
@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_a_compressed_table_is_refused(codec, names, place, tmp_path):
    path = tmp_path / "table.arrow"
    write(path, names, codec)
    with pytest.raises(UserError, match=r"table is damaged: its columns are compressed, .*; write it again"):
        open_table(source_of(path, place), "table", "write it again")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("options", [{}, {"use_legacy_format": True}, {"metadata_version": pa.ipc.MetadataVersion.V4}])
def test_a_plain_table_is_read(options, place, tmp_path):
    path = tmp_path / "table.arrow"
    table = write(path, list(COLUMNS), None, **options)
    assert open_table(source_of(path, place), "table", "").equals(table)


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
@pytest.mark.parametrize("length", [0, -2, 2**40, 2**60, 2**63 - 1, -(2**63)])
def test_a_compressed_table_with_a_wrong_length_is_refused(codec, length, tmp_path):
    path = tmp_path / "table.arrow"
    table = write(path, ["numbers"], codec, 5_000)
    contents = path.read_bytes()
    stated = table["numbers"].chunk(0).nbytes.to_bytes(8, "little")
    assert contents.count(stated) == 1
    path.write_bytes(contents.replace(stated, length.to_bytes(8, "little", signed=True)))
    with pytest.raises(UserError, match="table is damaged"):
        open_table(path, "table", "")


def test_a_table_with_no_rows_or_columns_is_read(tmp_path):
    for table in (pa.table({}), pa.table({"numbers": pa.array([], pa.int64())})):
        path = tmp_path / f"{len(table.column_names)}.arrow"
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table)
        assert open_table(path, "table", "").equals(table)


@pytest.mark.parametrize("size", [0, 1, 5, 9, 10, 20, 200])
def test_a_short_file_is_refused(size, tmp_path):
    path = tmp_path / "table.arrow"
    write(path, ["texts"], None)
    path.write_bytes(path.read_bytes()[-size:] if size else b"")
    with pytest.raises(UserError, match="table is damaged"):
        open_table(path, "table", "")

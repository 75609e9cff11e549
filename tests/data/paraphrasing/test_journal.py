"""The journal of answers."""

import asyncio
import errno
import json
import resource
import subprocess
import sys

import pytest

from data.errors import UserError
from data.paraphrasing.journal import Journal, count_complete_bytes, read_line, read_lines


def line(number, text="x"):
    names = dict.fromkeys(("model", "instruction", "problem"), "") | {"time": "2024-01-01T00:00:00+00:00"}
    return {"key": f"{number:032x}", "answer": text, **names, "input_tokens": 1, "output_tokens": 1}


def append_all(path, wanted):
    """Append lines at the same time, and return where each begins."""

    async def append():
        with Journal(path) as journal:
            return await asyncio.gather(*(journal.append(entry) for entry in wanted))

    return asyncio.run(append())


def test_lines_come_back_in_order_with_their_places(tmp_path):
    path = tmp_path / "journal.jsonl"
    wanted = [line(number, "é\n" * (number % 7)) for number in range(500)]
    places = append_all(path, wanted[:300]) + append_all(path, wanted[300:])
    assert list(read_lines(path)) == list(zip(places, wanted, strict=True))
    with path.open("rb") as file:
        assert [read_line(file, place) for place in places[::-1]] == wanted[::-1]


@pytest.mark.parametrize("cut", [1, 7, 40])
def test_a_last_line_that_was_cut_short_is_not_there(tmp_path, cut):
    path = tmp_path / "journal.jsonl"
    append_all(path, [line(number) for number in range(3)])
    path.write_bytes(path.read_bytes()[:-cut])
    assert [entry for _, entry in read_lines(path)] == [line(0), line(1)]
    append_all(path, [line(9)])
    assert [entry for _, entry in read_lines(path)] == [line(0), line(1), line(9)]


@pytest.mark.parametrize("size", [0, 1, 2**16 - 1, 2**16, 2**16 + 1, 200_000])
def test_whole_lines_are_found_however_long_the_rest(tmp_path, size):
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b"abc\n" + b"x" * size)
    assert count_complete_bytes(path) == 4
    path.write_bytes(b"x" * size)
    assert count_complete_bytes(path) == 0


@pytest.mark.parametrize(
    "damage", [b"[]\n", b"{\n", b'{"key": "00", "answer": ""}\n', json.dumps(line(1) | {"time": None}).encode() + b"\n",
    json.dumps(line(1) | {"time": "2024-01-01"}).encode() + b"\n",
               json.dumps(line(1) | {"key": "xyz"}).encode() + b"\n"],
)  # fmt: skip
def test_a_damaged_line_is_named(tmp_path, damage):
    path = tmp_path / "journal.jsonl"
    append_all(path, [line(0)])
    whole = path.read_bytes()
    path.write_bytes(whole + damage + whole)
    with pytest.raises(UserError, match="line 2 isn't an answer"):
        list(read_lines(path))


def test_any_text_can_be_kept(tmp_path):
    """Half a surrogate pair, as a server's JSON may hold, has no UTF-8."""
    path = tmp_path / "journal.jsonl"
    append_all(path, [line(0, "a \ud83d b")])
    assert [entry["answer"] for _, entry in read_lines(path)] == ["a ? b"]


def test_one_process_at_a_time(tmp_path):
    path = tmp_path / "journal.jsonl"
    with Journal(path):
        opened = f"Journal(__import__('pathlib').Path({str(path)!r})).__enter__()"
        code = f"from data.paraphrasing.journal import Journal; {opened}"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "another command is writing" in done.stderr


def test_a_line_that_cannot_be_written_leaves_nothing(tmp_path):
    """A limit on the size of files stands for a full disk."""
    path = tmp_path / "journal.jsonl"
    append_all(path, [line(0)])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, limits[1]))
    try:
        with pytest.raises(OSError) as error:
            append_all(path, [line(1)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert error.value.errno == errno.EFBIG
    assert [entry for _, entry in read_lines(path)] == [line(0)]

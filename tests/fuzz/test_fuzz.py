"""Files and answers that may come from a stranger, mutated: each is read or refused, and nothing else is written.

Processes of their own read them, as a crash would end the test run: what Arrow, zlib or torch do with a damaged file
may be a signal. Each mutation follows from the name of a kind and a number, which a failure gives. CI reads 50
mutations of each kind, and `bash .ci/run --all` 2,000 (the tests marked slow); any other number:

    python tests/fuzz/test_fuzz.py GROUP FOLDER COUNT [KIND ...]
"""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GROUPS = ("own_files", "corpus_tables", "recordings", "server_answers")
"""Modules of this folder; `build` of each makes its kinds."""


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("count", [50, pytest.param(2_000, marks=pytest.mark.slow)])
def test_a_mutated_file_of_a_stranger_is_read_or_refused_and_nothing_else_is_written(group, count, tmp_path):
    command = [sys.executable, __file__, group, tmp_path / "files", str(count)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, cwd=ROOT)
    assert done.returncode == 0, f"ended with {done.returncode}\n{done.stderr[-4_000:]}"
    counts = [tuple(map(int, line.split()[-2:])) for line in done.stdout.splitlines()]
    assert {num_read + num_refused for num_read, num_refused in counts} == {count}
    assert sum(num_read for num_read, _ in counts) > count
    assert sum(num_refused for _, num_refused in counts) > count


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    from kinds import fuzz

    build = importlib.import_module(sys.argv[1]).build
    sys.exit(fuzz(build, Path(sys.argv[2]).resolve(), *sys.argv[3:]))

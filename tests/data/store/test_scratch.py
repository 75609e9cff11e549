"""Temporary folders: removed at the end, after an error, and by the next command if a process was killed."""

import signal
import subprocess
import sys

import pytest

from data.store.scratch import create_scratch_folder

HOLD = """
import sys, time
from pathlib import Path
from data.store.scratch import create_scratch_folder
with create_scratch_folder(Path(sys.argv[1])) as folder:
    (folder / "weights").write_bytes(bytes(1000))
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def hold():
    """A function that starts a process with a temporary folder in `parent`, and returns the process and the folder."""
    processes = []

    def start(parent):
        process = subprocess.Popen([sys.executable, "-c", HOLD, str(parent)], stdout=subprocess.PIPE, text=True)
        processes.append(process)
        return process, process.stdout.readline().strip()

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_folder_is_removed_at_the_end_and_after_an_error(tmp_path):
    with create_scratch_folder(tmp_path / "new") as folder:
        (folder / "file").touch()
        assert folder.parent == tmp_path / "new"
        assert folder.stat().st_mode & 0o777 == 0o700
    assert list((tmp_path / "new").iterdir()) == []
    with pytest.raises(ZeroDivisionError), create_scratch_folder(tmp_path):
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_what_a_killed_process_leaves_is_removed_by_the_next_and_no_running_one_loses_its_folder(hold, tmp_path):
    killed, left_behind = hold(tmp_path)
    _, in_use = hold(tmp_path)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert sorted(str(path) for path in tmp_path.glob("*/weights")) == sorted(
        f"{folder}/weights" for folder in (left_behind, in_use)
    )
    with create_scratch_folder(tmp_path) as folder:
        names = sorted(str(path) for path in tmp_path.iterdir())
        assert names == sorted(f"{path}{suffix}" for path in (in_use, folder) for suffix in ("", ".lock"))
    assert [str(path) for path in tmp_path.glob("*/weights")] == [f"{in_use}/weights"]


def test_files_of_others_are_left_alone(tmp_path):
    (tmp_path / ".chorale-folder").mkdir()  # without a lock file
    (tmp_path / "other.lock").touch()
    with create_scratch_folder(tmp_path):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [".chorale-folder", "other.lock"]

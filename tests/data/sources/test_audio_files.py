"""Listing of the files in a folder, as folders are."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from data.errors import UserError
from data.sources.audio_files import list_audio_files, list_files

ROOT = Path(__file__).parents[3]


def test_audio_other_formats_and_other_files_are_told_apart(tmp_path, caplog):
    names = ["a.wav", "b.AIFC", "c.bwf", "deep/d.opus", "e.m4a", "deep/f.WebM", "g.txt", "h", "i.raw"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    listing = list_files(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in listing.paths] == names[:4]
    assert {path.name for path in listing.skipped} == {"e.m4a", "f.WebM"}
    assert {path.name for path in listing.others} == {"g.txt", "h", "i.raw"}
    caplog.set_level("INFO")
    listing.log_unusable(tmp_path)
    assert f"skipped: {tmp_path}/e.m4a: .m4a isn't decoded here" in caplog.text
    assert "1 .m4a, 1 .webm; convert it, for instance with: ffmpeg" in caplog.text
    assert "3 other files aren't audio" in caplog.text
    assert "g.txt" not in caplog.text


def test_a_name_that_is_not_utf8_is_skipped(tmp_path):
    (tmp_path / "a.wav").touch()
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.wav")).touch()
    listing = list_audio_files(tmp_path)
    assert [path.name for path in listing.paths] == ["a.wav"]
    assert list(listing.skipped.values()) == ["its path isn't valid UTF-8: rename it, for instance with convmv"]


def test_broken_links_and_loops_of_links_are_logged(tmp_path, caplog):
    (tmp_path / "a.wav").touch()
    (tmp_path / "gone.wav").symlink_to(tmp_path / "nowhere.wav")
    (tmp_path / "x").symlink_to(tmp_path / "y")
    (tmp_path / "y").symlink_to(tmp_path / "x")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert [path.name for path in list_files(tmp_path).paths] == ["a.wav"]
    assert "gone.wav' is a link to a file that doesn't exist" in caplog.text


@pytest.fixture
def public_folder():
    """A folder that every user can read."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_a_named_pipe_is_logged_and_not_waited_for(tmp_path, caplog):
    (tmp_path / "a.wav").touch()
    os.mkfifo(tmp_path / "pipe.wav")
    assert [path.name for path in list_files(tmp_path).paths] == ["a.wav"]
    assert "pipe.wav' is neither a file nor a folder" in caplog.text


def test_a_name_with_a_line_break_is_skipped(tmp_path):
    for name in ("a.wav", "b\nc.wav", "d\x1b[2K.wav"):
        (tmp_path / name).touch()
    listing = list_files(tmp_path)
    assert [path.name for path in listing.paths] == ["a.wav"]
    assert set(listing.skipped.values()) == {"its path contains a line break or another control character: rename it"}


def test_a_subfolder_that_can_not_be_read_is_named_and_the_rest_is_listed(public_folder):
    """As another user, in a process of its own: root can read every folder."""
    (public_folder / "lost+found").mkdir(mode=0)
    (public_folder / "a.wav").touch()
    program = (
        "import sys, os; sys.path.insert(0, sys.argv[2])\n"
        "from data.sources.audio_files import list_files\n"
        "if os.geteuid() == 0: os.setuid(65534)\n"
        "from pathlib import Path\n"
        "print([path.name for path in list_files(Path(sys.argv[1])).paths])"
    )
    command = [sys.executable, "-c", program, str(public_folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "['a.wav']", done.stderr
    assert "lost+found can't be read: Permission denied" in done.stderr


def test_a_folder_without_audio_is_refused(tmp_path):
    (tmp_path / "a.m4a").touch()
    with pytest.raises(UserError, match="holds no audio file"):
        list_audio_files(tmp_path)

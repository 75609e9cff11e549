"""Changes of an index: files that are new, changed, moved or gone, interruptions, and the command."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from library_files import HALF_PRECISION, SENTENCE, list_paths, write_noise

from data.decoding.audio import decode_file
from data.errors import UserError
from data.loading import passages
from data.store.locks import lock_folder
from ensemble.index.manifest import MANIFEST_FILE, PARTS
from ensemble.serving import index_update, load
from ensemble.serving.library import Library
from trainables.records.embeddings import Embeddings, write_embeddings

ROOT = Path(__file__).parents[3]


def test_new_changed_moved_and_gone_files(library, audio, monkeypatch):
    library.add([audio])
    decoded = []
    monkeypatch.setattr(passages, "decode_file", lambda path: decoded.append(path.name) or decode_file(path))
    before = {hit.path.name: hit.score for hit in library.search(SENTENCE)}
    summary = library.sync(audio)
    assert (summary.num_unchanged, decoded) == (3, [])
    (audio / "below" / "rain.flac").rename(audio / "moved.flac")
    (audio / "dög, barking.wav").unlink()
    write_noise(audio / "below" / "[wind].ogg", 1.5)
    write_noise(audio / "new.wav", 1)
    kept = library.add([audio])
    assert audio / "dög, barking.wav" in list_paths(library)
    assert (kept.num_embedded, kept.num_reused, kept.num_removed) == (2, 1, 1)
    assert set(decoded) == {"[wind].ogg", "new.wav"}
    assert library.sync(audio).num_removed == 1
    assert list_paths(library) == [audio / "below" / "[wind].ogg", audio / "moved.flac", audio / "new.wav"]
    after = {hit.path.name: hit.score for hit in library.search(SENTENCE)}
    assert after["moved.flac"] == before["rain.flac"]
    assert after["[wind].ogg"] != before["[wind].ogg"]


def test_a_library_on_another_disk_keeps_its_vectors(library, audio, monkeypatch):
    library.add([audio])
    audio.rename(audio.with_name("elsewhere"))
    monkeypatch.setattr(passages, "decode_file", lambda path: pytest.fail(f"{path} was decoded again"))
    library.add([audio.with_name("elsewhere")])
    assert {path.is_relative_to(audio.with_name("elsewhere")) for path in list_paths(library)} == {True}
    assert len(library) == 3


def test_a_link_is_listed_by_its_own_name_and_leaves_with_it(library, audio, tmp_path):
    outside = write_noise(tmp_path / "outside.wav", 1)
    for name, target in (("inside.flac", audio / "below" / "rain.flac"), ("link.wav", outside)):
        (audio / name).symlink_to(target)
    library.add([audio])
    assert {audio / "inside.flac", audio / "link.wav"} <= set(list_paths(library))
    (audio / "link.wav").unlink()
    library.sync(audio)
    assert audio / "link.wav" not in list_paths(library)
    assert outside.exists()


def test_a_file_that_can_not_be_read_gets_no_vector_of_a_former_index(models, audio, tmp_path, monkeypatch):
    """Neither has a digest: that is no sign of the same contents."""
    path = audio / "below" / "rain.flac"
    write_former_index(tmp_path / "former", models, [path])
    library = Library(tmp_path / "former", models)
    monkeypatch.setattr(index_update, "hash_file", lambda file: file)
    assert library.add([audio]).num_reused == 0


def test_captions_come_from_the_tables_of_the_folder(library, audio, monkeypatch):
    (audio / "captions.csv").write_text(
        "file_name,caption_1,caption_2\nbelow/rain.flac,Rain falls.,Drops.\nabsent.wav,A gull.,\n", encoding="utf-8"
    )
    library.add([audio])
    captions = {recording.path.name: recording.captions for recording in library.recordings}
    assert captions["rain.flac"] == ("Rain falls.", "Drops.")
    assert captions["[wind].ogg"] == ()
    monkeypatch.setattr(passages, "decode_file", lambda path: pytest.fail(f"{path} was decoded again"))
    (audio / "captions.csv").write_text("file_name,caption\nbelow/rain.flac,It rains.\n", encoding="utf-8")
    assert library.add([audio]).num_reused == 1
    assert library.search("rain")[0].recording.captions in (("It rains.",), ())
    assert {recording.captions for recording in library.recordings} == {("It rains.",), ()}


def test_removed_recordings_are_not_found_and_come_back(library, audio):
    library.add([audio])
    assert library.remove([audio / "below", audio / "absent.wav"]) == 2
    assert [hit.path.name for hit in library.search(SENTENCE)] == ["dög, barking.wav"]
    library.remove([audio])
    assert library.search(SENTENCE) == []
    assert library.list_folders() == []
    library.add([audio])
    assert len(library) == 3


def test_an_interruption_loses_at_most_one_part(library, tmp_path, monkeypatch):
    for number in range(6):
        write_noise(tmp_path / "audio" / f"{number}.wav", 0.1, seed=number)
    monkeypatch.setattr(index_update, "MIN_PART_FILES", 2)
    decoded = []

    def decode_until_interrupted(path):
        if len(decoded) == 4:
            raise KeyboardInterrupt
        decoded.append(path.name)
        return decode_file(path)

    monkeypatch.setattr(passages, "decode_file", decode_until_interrupted)
    with pytest.raises(KeyboardInterrupt):
        library.add([tmp_path / "audio"])
    library.refresh()
    assert len(library) == 4
    monkeypatch.setattr(passages, "decode_file", lambda path: decoded.append(path.name) or decode_file(path))
    library.add([tmp_path / "audio"])
    assert decoded == [f"{number}.wav" for number in range(6)]
    # Parts of similar size are merged: their number grows with the logarithm of the number of recordings.
    assert len(library.view.index.parts) <= 2


KILL = """
import os, sys
from pathlib import Path
from ensemble.index import manifest, parts
from ensemble.serving import load

module, name, when = sys.argv[3].split(":")
module = {"parts": parts, "manifest": manifest}[module]
function = getattr(module, name)

def die(*arguments):
    if when == "after":
        function(*arguments)
    os._exit(9)

setattr(module, name, die)
load(sys.argv[1]).sync(sys.argv[2])
"""


@pytest.mark.parametrize(
    ("moment", "is_changed"),
    [
        ("parts:write_arrow_table:after", False),
        ("parts:rename_folder:before", False),
        ("parts:rename_folder:after", False),
        ("manifest:write_json:before", False),
        ("manifest:write_json:after", True),
    ],
)
def test_a_kill_leaves_the_former_index_or_the_new_one(moment, is_changed, exported, audio, tmp_path):
    """In a process of its own, which ends at once, as after SIGKILL; nothing that runs later could tidy up."""
    folder = tmp_path / "exported"
    shutil.copytree(exported, folder)
    library = load(folder)
    library.add([audio])
    before = list_paths(library)
    write_noise(audio / "new.wav", 1)
    killed = subprocess.run([sys.executable, "-c", KILL, folder, audio, moment], cwd=ROOT, check=False)
    assert killed.returncode == 9
    assert list_paths(load(folder)) == sorted([*before, audio / "new.wav"] if is_changed else before)
    library.sync(audio)
    assert list_paths(library) == sorted([*before, audio / "new.wav"])
    named = {part["name"] for part in json.loads((folder / "index" / MANIFEST_FILE).read_text())["parts"]}
    assert {path.name for path in (folder / "index" / PARTS).iterdir()} == named


def test_one_process_at_a_time_writes(library, audio):
    with lock_folder(library.folder), pytest.raises(UserError, match="another command is writing to"):
        library.add([audio])
    library.add([audio])


def test_damaged_and_older_indexes_are_named(library, models, audio):
    library.add([audio])
    (part,) = (library.folder / PARTS).iterdir()
    for name in ("vectors.bin", "rows.arrow", "recordings.arrow"):
        contents = (part / name).read_bytes()
        (part / name).write_bytes(contents[: len(contents) // 2])
        with pytest.raises(UserError, match=r"damaged.*remove .*--add"):
            Library(library.folder, models)
        (part / name).write_bytes(contents)
    manifest = library.folder / MANIFEST_FILE
    contents_of_manifest = manifest.read_text()
    for text, why in (("[]", "format version None"), ('{"format_version": 2}', "damaged"), ("{", "isn't JSON")):
        manifest.write_text(text)
        with pytest.raises(UserError, match=why):
            Library(library.folder, models)
    manifest.write_text(contents_of_manifest.replace('"name": "', '"name": "../'))
    with pytest.raises(UserError, match=r"'../\w+' doesn't consist of 16 hexadecimal digits"):
        Library(library.folder, models)


def write_former_index(folder, models, paths):
    """Write an index as the former version did, and return the vectors."""
    vectors_AD, _, _ = models.embed_files(paths)
    former = Embeddings(models.signature, "", "", [*map(str, paths)], [], [], vectors_AD, vectors_AD[:0])
    write_embeddings(folder / "index.arrow", former)
    (folder / "files.json").write_text("{}")
    return vectors_AD


def test_an_index_of_the_former_version_is_searched_and_gets_moments_when_added(models, audio, tmp_path):
    paths = sorted(path for path in audio.rglob("*") if path.suffix in (".wav", ".flac", ".ogg"))
    folder = tmp_path / "former"
    vectors_AD = write_former_index(folder, models, paths)
    library = Library(folder, models)
    scores = dict(zip(map(str, paths), (vectors_AD @ models.embed_text([SENTENCE])[0]).tolist(), strict=True))
    for hit in library.search(SENTENCE):
        assert hit.score == pytest.approx(scores[str(hit.path)], abs=HALF_PRECISION)
    assert {path.name for path in folder.iterdir()} == {MANIFEST_FILE, PARTS}
    assert library.add([audio]).num_embedded == 3
    assert all(hit.moments[0].end_s > 0 for hit in library.search(SENTENCE))


def test_the_command_adds_syncs_and_searches(exported, audio, run_command, call_command, tmp_path):
    """It is searched in a process of its own, as a user does."""
    words = ("ensemble/search.py", exported, "--index", tmp_path / "index")
    shutil.copy(audio / "dög, barking.wav", audio / "torn.wav")
    with (audio / "torn.wav").open("r+b") as file:
        file.truncate(90_000)
    added = call_command(*words, "--add", audio)
    assert added.returncode == 0, added.stderr
    assert "3 files embedded, 0 unchanged, 0 removed, 1 skipped" in added.stderr
    assert "exact search" in added.stderr
    answered = run_command(*words, "--top", 2, SENTENCE)
    lines = answered.stdout.splitlines()
    assert len(lines) == 2, answered.stderr
    expected = load(exported, tmp_path / "index").search(SENTENCE, k=2)
    for line, hit in zip(lines, expected, strict=True):
        assert line.startswith(f"{hit.score:.4f} ")
        assert line.endswith(str(hit.path))
        assert f"{hit.moments[0].end_s:.1f} s" in line
    moments = call_command(*words, "--moments", "--top", 1, SENTENCE)
    assert len(moments.stdout.splitlines()) == 1
    expected[0].path.unlink()
    answered = call_command(*words, SENTENCE)
    assert f"gone: {expected[0].path} no longer exists" in answered.stderr
    assert len(answered.stdout.splitlines()) == 2
    assert "1 removed" in call_command(*words, "--sync", audio).stderr
    assert "--watch follows the folder of --sync" in call_command(*words, "--watch").stderr


def test_a_watched_folder_is_followed_until_ctrl_c(exported, audio, tmp_path):
    """In a process of its own: events of the file system and the signal reach it as they do a user's."""
    words = [sys.executable, "ensemble/search.py", exported, "--index", tmp_path / "index", "--sync", audio, "--watch"]
    with subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            for line in process.stderr:
                if "watching" in line:
                    break
            write_noise(audio / "new.wav", 1)
            (audio / "below" / "rain.flac").unlink()
            library = load(exported, tmp_path / "index")
            for line in process.stderr:
                if "1 removed" in line:
                    break
            library.refresh()
            assert audio / "new.wav" in list_paths(library)
            assert len(library) == 3
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=60) in (0, 130)
        finally:
            process.kill()


def test_progress_is_reported_by_part(library, tmp_path, monkeypatch):
    for number in range(5):
        write_noise(tmp_path / "audio" / f"{number}.wav", 0.1, seed=number)
    monkeypatch.setattr(index_update, "MIN_PART_FILES", 2)
    reported = []
    library.add([tmp_path / "audio"], progress=lambda *numbers: reported.append(numbers))
    assert reported == [(2, 5), (4, 5), (5, 5)]

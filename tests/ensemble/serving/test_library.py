"""Libraries of recordings: what the index holds after files change, and what searches find."""

import io
import json
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data.decoding.audio import decode_file
from data.errors import UserError
from data.loading import passages
from data.store.locks import lock_folder
from ensemble.index import vector_search
from ensemble.index.manifest import MANIFEST_FILE, PARTS
from ensemble.index.parts import MOMENT, PASSAGE
from ensemble.serving import index_update, load
from ensemble.serving.hits import Filter, FolderCount
from ensemble.serving.library import Library
from ensemble.serving.recording_vectors import embed_recordings
from trainables.records.embeddings import Embeddings, write_embeddings

ROOT = Path(__file__).parents[3]
SENTENCE = "a dog barks while it rains"
RATE_HZ = 32_000
HALF_PRECISION = 5e-4


def write_noise(path, seconds, seed=0, level=0.1):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.random.default_rng(seed).normal(0, level, int(RATE_HZ * seconds)), RATE_HZ)
    return path


def list_paths(library):
    return sorted(recording.path for recording in library.recordings)


@pytest.fixture
def library(models, tmp_path):
    return Library(tmp_path / "index", models)


@pytest.fixture
def audio(sounds, tmp_path):
    """A copy of the recordings without the torn one."""
    shutil.copytree(sounds, tmp_path / "audio")
    (tmp_path / "audio" / "torn.wav").unlink()
    return tmp_path / "audio"


def test_the_first_passage_of_a_file_is_the_clip_that_evaluation_embeds(models, audio):
    paths = sorted(path for path in audio.rglob("*") if path.suffix in (".wav", ".flac", ".ogg"))
    results, problems = embed_recordings(models, paths)
    assert not problems.skipped
    for path, expected_D in zip(paths, models.embed_files(paths)[0], strict=True):
        vectors = results[path]
        assert vectors.kinds[0] & PASSAGE
        np.testing.assert_allclose(vectors.vectors_RD[0], expected_D, atol=1e-5)
        assert vectors.duration_s == pytest.approx(soundfile.info(path).duration, abs=1e-3)


def test_passages_and_moments_of_a_long_file_are_those_of_its_parts_as_files(models, tmp_path):
    """Each passage equals a file that holds it alone, and each moment a file with its segment alone."""
    whole = write_noise(tmp_path / "whole.wav", 68.3)
    samples, _ = soundfile.read(whole)
    vectors = embed_recordings(models, [whole])[0][whole]
    segment_s = models.members[0].trial.audio.segment_s
    longest_s = models.members[0].trial.longest_audio_s
    is_passage = (vectors.kinds & PASSAGE).astype(bool)
    starts = [round(float(start), 3) for start in vectors.starts_s[is_passage]]
    assert starts == [passage * longest_s for passage in range(int(68.3 // longest_s) + 1)]
    moments = vectors.starts_s[(vectors.kinds & MOMENT).astype(bool)]
    np.testing.assert_allclose(moments, np.arange(len(moments)) * segment_s, atol=1e-3)
    rows = [0, len(starts), len(vectors.kinds) - 1]
    parts = []
    for row in rows:
        part = tmp_path / f"{row}.wav"
        start, end = (round(float(time[row]) * RATE_HZ) for time in (vectors.starts_s, vectors.ends_s))
        soundfile.write(part, samples[start:end], RATE_HZ)
        parts.append(part)
    np.testing.assert_allclose(models.embed_files(parts)[0], vectors.vectors_RD[rows], atol=1e-5)


def test_hits_have_the_scores_of_the_models_and_the_best_moment(library, models, audio):
    library.add([audio])
    paths = list_paths(library)
    scores = (models.embed_text([SENTENCE]) @ models.embed_files(paths)[0].T)[0]
    results, _ = embed_recordings(models, paths)
    hits = {hit.path: hit for hit in library.search(SENTENCE, k=3)}
    query_D = models.embed_text([SENTENCE])[0]
    for path, score in zip(paths, scores, strict=True):
        vectors, hit = results[path], hits[path]
        passages_R = (vectors.kinds & PASSAGE).astype(bool)
        assert hit.score == pytest.approx((vectors.vectors_RD[passages_R] @ query_D).max(), abs=HALF_PRECISION)
        assert hit.score >= score - HALF_PRECISION
        moments = np.flatnonzero(vectors.kinds & MOMENT)
        best = moments[np.argmax(vectors.vectors_RD[moments] @ query_D)]
        assert hit.moments[0].start_s == pytest.approx(vectors.starts_s[best])
        assert hit.moments[0].end_s == pytest.approx(vectors.ends_s[best])
    assert list(hits) == [paths[row] for row in np.argsort(-np.array([hits[path].score for path in paths]))]


def test_moments_of_a_file_that_touch_are_one_hit(library, tmp_path):
    write_noise(tmp_path / "audio" / "long.wav", 30)
    library.add([tmp_path / "audio"])
    (hit,) = library.search_moments(SENTENCE, k=5)
    assert (hit.moments[0].start_s, hit.moments[0].end_s) == (0, pytest.approx(30))
    best = library.search(SENTENCE)[0].moments[0]
    assert hit.score == pytest.approx(best.score)


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


def test_recordings_are_described_and_filtered(library, audio, tmp_path):
    other = write_noise(tmp_path / "other" / "noise.wav", 2)
    library.add([audio, other])
    assert library.list_folders() == [
        FolderCount("audio", "", 1), FolderCount("audio", "below", 2), FolderCount("other", "", 1)
    ]  # fmt: skip

    def search(**conditions):
        return {hit.path.name for hit in library.search(SENTENCE, where=Filter(**conditions))}

    assert search(corpus="audio", folder="below") == {"rain.flac", "[wind].ogg"}
    assert search(corpus="other") == {"noise.wav"}
    assert search(min_duration_s=1.5, max_duration_s=10) == {"dög, barking.wav", "noise.wav"}
    assert search(corpus="absent") == set()
    for recording in library.recordings:
        assert library.get(recording.id) == recording
        peaks = library.read_peaks(recording.id)
        assert peaks.shape == (240,)
        assert peaks.max() == 255
    for absent in ("0" * 16, "x" * 16, "../../etc/passwd", ""):
        with pytest.raises(KeyError):
            library.get(absent)


def test_the_waveform_shows_where_a_recording_is_loud(library, tmp_path):
    samples = np.random.default_rng(0).normal(0, 0.001, RATE_HZ * 12)
    samples[RATE_HZ * 6 : RATE_HZ * 7] *= 300
    (tmp_path / "audio").mkdir()
    soundfile.write(tmp_path / "audio" / "a.wav", samples, RATE_HZ)
    library.add([tmp_path / "audio"])
    loud = np.flatnonzero(library.read_peaks(library.recordings[0].id) > 100)
    assert (loud.min(), loud.max()) == (120, 139)


def test_audio_finds_itself_and_similar_recordings_leave_it_out(library, audio):
    library.add([audio])
    for path in list_paths(library):
        best = library.search_audio(path, k=1)[0]
        assert best.path == path
        assert best.score == pytest.approx(1, abs=HALF_PRECISION)
        similar = library.search_similar(best.recording.id)
        assert {hit.path for hit in similar} == set(list_paths(library)) - {path}
    with pytest.raises(UserError, match=r"notes.txt: "):
        library.search_audio(audio / "notes.txt")


def test_removed_recordings_are_not_found_and_come_back(library, audio):
    library.add([audio])
    assert library.remove([audio / "below", audio / "absent.wav"]) == 2
    assert [hit.path.name for hit in library.search(SENTENCE)] == ["dög, barking.wav"]
    library.remove([audio])
    assert library.search(SENTENCE) == []
    assert library.list_folders() == []
    library.add([audio])
    assert len(library) == 3


def test_equal_scores_are_sorted_by_path(library, audio):
    for name in "cab":
        shutil.copy(audio / "below" / "rain.flac", audio / f"{name}.flac")
    library.add([audio])
    scores = [(hit.score, str(hit.path)) for hit in library.search(SENTENCE)]
    assert scores == sorted(scores, key=lambda item: (-item[0], item[1]))


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


def test_a_reader_keeps_the_former_index_until_it_is_refreshed(models, audio, tmp_path):
    Library(tmp_path / "index", models).add([audio])
    reader, writer = Library(tmp_path / "index", models), Library(tmp_path / "index", models)
    before = [(hit.path, hit.score) for hit in reader.search(SENTENCE)]
    for seed in range(6):
        write_noise(audio / f"{seed}.wav", 1, seed)
        writer.add([audio])
    writer.remove([audio / "below"])
    assert [(hit.path, hit.score) for hit in reader.search(SENTENCE)] == before
    assert reader.refresh()
    assert not reader.refresh()
    assert list_paths(reader) == list_paths(writer)


def test_threads_search_while_others_write(library, audio):
    library.add([audio])
    expected = library.search(SENTENCE, k=2, where=Filter(folder="below"))
    stop, errors = threading.Event(), []

    def search():
        while not stop.is_set():
            hits = library.search(SENTENCE, k=2, where=Filter(folder="below"))
            if [hit.path for hit in hits] != [hit.path for hit in expected]:
                errors.append(hits)

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(search) for _ in range(4)]
        for seed in range(8):
            write_noise(audio / f"{seed}.wav", 0.5, seed)
            library.add([audio])
        stop.set()
        for one in running:
            one.result()
    assert not errors
    assert len(library) == 11


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


def test_large_indexes_are_searched_by_reduced_vectors(models, sounds, tmp_path, monkeypatch):
    """Expected: the hits of exact search, of each kind, with and without conditions, while recordings come and go."""
    audio = tmp_path / "audio"
    for number in range(40):
        write_noise(audio / f"{number % 3}" / f"{number}.wav", 1.2 + number % 4, number, level=0.01 * (number + 1))
    exact = Library(tmp_path / "exact", models)
    exact.add([audio])
    monkeypatch.setattr(vector_search, "EXACT_BYTES", 1)
    monkeypatch.setattr(vector_search, "MIN_CANDIDATES", 12)
    monkeypatch.setattr(vector_search, "CANDIDATES_PER_RESULT", 3)
    monkeypatch.setattr(index_update, "MIN_PART_FILES", 16)
    large = Library(tmp_path / "large", models)
    large.add([audio])
    assert "approximate search" in large.describe_search()

    def list_hits(library, **options):
        vectors_QD = library.embed_text([SENTENCE, "a low tone"])
        return [
            [(hit.path, round(hit.score, 4), hit.moments[0].start_s, hit.moments[0].end_s) for hit in hits]
            for hits in library.search_vectors(vectors_QD, k=4, **options)
        ]

    def compare():
        for options in ({}, {"kind": "moments"}, {"where": Filter(folder="1")}, {"where": Filter(max_duration_s=1.5)}):
            with monkeypatch.context() as patch:
                patch.setattr(vector_search, "EXACT_BYTES", 2**30)
                expected = list_hits(exact, **options)
            assert list_hits(large, **options) == expected, options

    compare()
    for library in (exact, large):
        library.remove([audio / "2"])
    compare()
    for number in range(5):
        write_noise(audio / "new" / f"{number}.wav", 2, 100 + number)
    for library in (exact, large):
        library.add([audio / "new"])
    compare()
    shutil.rmtree(next((tmp_path / "large" / PARTS).glob("*/codes-*")))
    large = Library(tmp_path / "large", models)
    assert "slow" in large.describe_search()
    compare()


def test_progress_is_reported_by_part(library, tmp_path, monkeypatch):
    for number in range(5):
        write_noise(tmp_path / "audio" / f"{number}.wav", 0.1, seed=number)
    monkeypatch.setattr(index_update, "MIN_PART_FILES", 2)
    reported = []
    library.add([tmp_path / "audio"], progress=lambda *numbers: reported.append(numbers))
    assert reported == [(2, 5), (4, 5), (5, 5)]


def test_a_whole_recording_is_never_in_memory_at_once(tmp_path, monkeypatch):
    path = write_noise(tmp_path / "long.flac", 65)
    waveforms, longest = {}, 0
    for passage in passages.iter_passages([path], 30, index_update.FileProblems(), waveforms):
        longest = max(longest, len(passage.samples))
    assert longest == 30 * RATE_HZ
    assert waveforms[0].num_samples == 65 * RATE_HZ
    assert io.BytesIO(waveforms[0].compute_peaks().tobytes()).getbuffer().nbytes == 240

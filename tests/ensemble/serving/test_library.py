"""Searches in libraries of recordings: their scores, moments, filters, and an index that changes meanwhile."""

import io
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile
from library_files import HALF_PRECISION, RATE_HZ, SENTENCE, list_paths, write_noise

from data.errors import UserError
from data.loading import passages
from ensemble.index import vector_search
from ensemble.index.manifest import PARTS
from ensemble.index.parts import MOMENT, PASSAGE
from ensemble.serving import index_update
from ensemble.serving.hits import Filter, FolderCount
from ensemble.serving.library import Library
from ensemble.serving.recording_vectors import embed_recordings


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
    for absent in ("0" * 16, "x" * 16, "-" + "0" * 14 + "1", "../../etc/passwd", ""):
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


def test_equal_scores_are_sorted_by_path(library, audio):
    for name in "cab":
        shutil.copy(audio / "below" / "rain.flac", audio / f"{name}.flac")
    library.add([audio])
    scores = [(hit.score, str(hit.path)) for hit in library.search(SENTENCE)]
    assert scores == sorted(scores, key=lambda item: (-item[0], item[1]))


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


def test_a_whole_recording_is_never_in_memory_at_once(tmp_path, monkeypatch):
    path = write_noise(tmp_path / "long.flac", 65)
    waveforms, longest = {}, 0
    for passage in passages.iter_passages([path], 30, index_update.FileProblems(), waveforms):
        longest = max(longest, len(passage.samples))
    assert longest == 30 * RATE_HZ
    assert waveforms[0].num_samples == 65 * RATE_HZ
    assert io.BytesIO(waveforms[0].compute_peaks().tobytes()).getbuffer().nbytes == 240

"""The JSON interface answers as the library does, sends recordings in parts, and refuses the rest with a sentence."""

import io

import numpy as np
import pytest
import soundfile
from web_server import GONE, SOUNDS

from data.decoding.audio import decode_file
from data.waveform import to_pcm16
from ensemble.serving.hits import Filter
from ensemble.web import api, decoding, playback, uploads

SENTENCE = "a low tone"
CONVERTED = ("birds/owl.aiff", "city/bell.au")


def get(client, path, **parameters):
    response = client.get(path, params=parameters)
    assert response.status_code == 200, response.text
    return response.json()


def names_of(answer):
    return [hit["recording"]["name"] for hit in answer["hits"]]


def test_a_sentence_gives_the_hits_of_the_library(client, library):
    answer = get(client, "/api/search", q=SENTENCE, k=4)
    expected = library.search(SENTENCE, 4)
    assert answer["num_recordings"] == len(SOUNDS)
    for hit, own in zip(answer["hits"], expected, strict=True):
        assert hit["recording"] == {
            "id": own.recording.id, "name": own.path.name, "path": str(own.path), "corpus": own.recording.corpus,
            "folder": own.recording.folder, "duration_s": own.recording.duration_s,
            "captions": list(own.recording.captions), "exists": own.path.name != GONE,
        }  # fmt: skip
        assert hit["score"] == pytest.approx(own.score, abs=1e-5)
        assert [moment["start_s"] for moment in hit["moments"]] == [moment.start_s for moment in own.moments]
    assert get(client, f"/api/recordings/{expected[0].recording.id}") == answer["hits"][0]["recording"]


@pytest.mark.parametrize(
    ("parameters", "where"),
    [
        ({"folder": "birds"}, Filter(folder="birds")),
        ({"corpus": "field", "max_duration_s": 4.5}, Filter(corpus="field", max_duration_s=4.5)),
        ({"min_duration_s": 5, "folder": ""}, Filter(min_duration_s=5.0)),
        ({"corpus": "another"}, Filter(corpus="another")),
    ],
)
def test_filters_are_those_of_the_library(client, library, parameters, where):
    expected = [hit.path.name for hit in library.search(SENTENCE, 100, where)]
    assert names_of(get(client, "/api/search", q=SENTENCE, k=100, **parameters)) == expected
    assert len(expected) < len(SOUNDS)


def test_more_like_a_recording_are_others(client, ids, library):
    identity = ids["birds/wren.flac"]
    names = names_of(get(client, "/api/similar", id=identity, k=100))
    assert names == [hit.path.name for hit in library.search_similar(identity, 100)]
    assert len(names) == len(SOUNDS) - 1
    assert "wren.flac" not in names


@pytest.mark.parametrize("name", [name for name in SOUNDS if name != GONE])
def test_an_uploaded_recording_is_most_like_itself(client, sounds, scratch, name):
    response = client.post("/api/similar", params={"k": 2}, content=(sounds / name).read_bytes())
    assert response.status_code == 200, response.text
    best, _ = response.json()["hits"]
    assert f"{best['recording']['folder']}/{best['recording']['name']}".removeprefix("/") == name
    assert response.json()["warnings"] == []
    assert not list(scratch.iterdir())


def test_of_a_long_upload_the_beginning_counts(client):
    file = io.BytesIO()
    soundfile.write(file, np.zeros(8_000 * 3_600, np.float32), 8_000, format="FLAC")
    response = client.post("/api/similar", content=file.getvalue())
    assert response.status_code == 200, response.text
    assert response.json()["warnings"] == [f"only the first {decoding.MAX_QUERY_S} s are searched with"]


def test_uploads_are_refused_when_they_are_too_large_or_no_audio_and_leave_nothing(
    client, sounds, scratch, monkeypatch
):
    sound = (sounds / "birds/wren.flac").read_bytes()
    monkeypatch.setattr(uploads, "MAX_UPLOAD_BYTES", len(sound) - 1)
    chunks = (part for part in (sound[:1000], sound[1000:]))
    for content, status, words in (
        (sound, 413, "cut out"), (chunks, 413, "cut out"), (b"", 400, "empty"), (b"no sound", 422, "Convert it"),
        (sound[:5_000], 422, "Convert it"),
    ):  # fmt: skip
        response = client.post("/api/similar", content=content)
        assert (response.status_code, words in response.json()["error"]) == (status, True), response.text
        assert not list(scratch.iterdir())


@pytest.mark.parametrize("limit", ["MAX_QUERY_DECODING_S", "memory"])
def test_decoding_an_upload_has_limits(client, sounds, monkeypatch, limit):
    """Of time and memory: the process that decodes is ended, and the server answers."""
    if limit == "memory":
        monkeypatch.setattr(decoding, "MAX_MEMORY_BYTES", 2**20)
    else:
        monkeypatch.setattr(decoding, limit, 0)
    response = client.post("/api/similar", content=(sounds / "birds/wren.flac").read_bytes())
    assert response.status_code == 422
    assert response.json()["error"].startswith("The sound ")


@pytest.mark.parametrize("name", [name for name in SOUNDS if name != GONE])
def test_recordings_are_sent_whole_and_in_parts(client, ids, sounds, name):
    path = f"/api/audio/{ids[name]}"
    whole = client.get(path)
    assert whole.headers["accept-ranges"] == "bytes"
    if name in CONVERTED:
        assert whole.headers["content-type"] == "audio/wav"
        samples, rate_hz = soundfile.read(io.BytesIO(whole.content), dtype="int16")
        expected = to_pcm16(np.concatenate(list(decode_file(sounds / name))))
        assert rate_hz == 32_000
        assert abs(len(samples) - len(expected)) <= 1
        shared = min(len(samples), len(expected))
        np.testing.assert_array_equal(samples[:shared], expected[:shared])
    else:
        assert whole.content == (sounds / name).read_bytes()
    size = len(whole.content)
    ranges = [("bytes=10-60", 10, 61), (f"bytes={size // 2 + 1}-", size // 2 + 1, size), ("bytes=45-45", 45, 46)]
    if name not in CONVERTED:  # each range of those takes a process
        ranges += [
            ("bytes=0-", 0, size),
            ("bytes=-9", size - 9, size),
            (f"bytes={size - 5}-{size + 5}", size - 5, size),
        ]
    for text, start, stop in ranges:
        part = client.get(path, headers={"Range": text})
        assert part.status_code == 206
        assert part.headers["content-range"] == f"bytes {start}-{stop - 1}/{size}"
        assert part.content == whole.content[start:stop]
    tag = whole.headers["etag"]
    assert client.get(path, headers={"Range": "bytes=1-2", "If-Range": tag}).status_code == 206
    refused = client.get(path, headers={"Range": f"bytes={size}-"})
    assert (refused.status_code, refused.headers["content-range"]) == (416, f"bytes */{size}")
    whole_again = [{"Range": "bytes=1-2", "If-Range": '"other"'}, {"Range": "bytes=1-2, 4-5"}, {"Range": "lines=1-"}]
    for headers in whole_again[: 1 if name in CONVERTED else 3]:
        assert client.get(path, headers=headers).content == whole.content
    head = client.head(path)
    assert (head.headers["content-length"], head.content) == (str(size), b"")
    download = client.get(path, params={"download": True})
    assert download.content == (sounds / name).read_bytes()
    assert download.headers["content-disposition"].startswith("attachment;")


def test_a_player_that_leaves_ends_the_conversion(client, ids):
    for _ in range(3):
        with client.stream("GET", f"/api/audio/{ids['birds/owl.aiff']}") as response:
            assert next(response.iter_bytes())


def test_only_so_many_recordings_are_converted_at_a_time(client, ids, monkeypatch):
    monkeypatch.setattr(playback, "MAX_CONVERSIONS", 0)
    assert client.get(f"/api/audio/{ids['birds/owl.aiff']}").status_code == 503
    assert client.get(f"/api/audio/{ids['birds/wren.flac']}").status_code == 200


def test_folders_and_waveforms_are_those_of_the_library(client, library, ids):
    answer = get(client, "/api/folders")
    assert answer["num_recordings"] == len(SOUNDS)
    counts = {(count["corpus"], count["folder"]): count["num_recordings"] for count in answer["folders"]}
    assert counts == {("field", ""): 2, ("field", "birds"): 2, ("field", "birds/rare"): 1, ("field", "city"): 2}
    peaks = get(client, f"/api/peaks/{ids['birds/wren.flac']}")["peaks"]
    assert peaks == library.read_peaks(ids["birds/wren.flac"]).tolist()


UNKNOWN = "0123456789abcdef"


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/api/search", 422, "'q' is missing"),
        ("/api/search?q=", 422, "q can't be ''"),
        ("/api/search?q=%3F!", 422, "no word"),
        (f"/api/search?q={'a' * (api.MAX_SENTENCE_CHARACTERS + 1)}", 422, "at most"),
        ("/api/search?q=rain&k=0", 422, "k can't be '0'"),
        ("/api/search?q=rain&k=101", 422, "k can't be '101'"),
        ("/api/search?q=rain&k=many", 422, "k can't be 'many'"),
        ("/api/search?q=rain&min_duration_s=nan", 422, "finite"),
        ("/api/search?q=rain&max_duration_s=-1", 422, "max_duration_s"),
        (f"/api/similar?id={UNKNOWN}", 404, "search again"),
        ("/api/similar?id=../../etc/passwd", 422, "id can't be"),
        (f"/api/audio/{UNKNOWN}", 404, "search again"),
        (f"/api/peaks/{UNKNOWN}", 404, "search again"),
        (f"/api/recordings/{UNKNOWN}", 404, "search again"),
        ("/api/audio/..%2f..%2fetc%2fpasswd", 404, "doesn't exist"),
        ("/static/../app.py", 404, "doesn't exist"),
        ("/static/..%2fapp.py", 404, "doesn't exist"),
        ("/nothing", 404, "/docs"),
    ],
)
def test_what_can_not_be_answered_is_refused_with_a_sentence(client, path, status, words):
    response = client.get(path)
    assert response.status_code == status
    assert list(response.json()) == ["error"]
    assert words in response.json()["error"]


def test_a_file_that_has_gone_or_changed_is_not_sent(client, ids, sounds, tmp_path):
    response = client.get(f"/api/audio/{ids[GONE]}")
    assert response.status_code == 410
    assert "--add" in response.json()["error"]
    secret = tmp_path / "secret.txt"
    secret.write_text("SECRET " * 1_000)
    try:
        (sounds / GONE).symlink_to(secret)
        for parameters in ({}, {"download": True}):
            response = client.get(f"/api/audio/{ids[GONE]}", params=parameters)
            assert response.status_code == 422
            assert "SECRET" not in response.text
    finally:
        (sounds / GONE).unlink()


def test_a_method_that_a_path_lacks_is_refused(client):
    response = client.delete("/api/search")
    assert (response.status_code, list(response.json())) == (405, ["error"])


def test_a_defect_is_answered_with_a_sentence(client, library, monkeypatch):
    monkeypatch.setattr(library, "list_folders", lambda: 1 / 0)
    response = client.get("/api/folders")
    assert (response.status_code, list(response.json())) == (500, ["error"])


def test_the_description_of_the_interface_has_a_type_for_every_answer(client):
    description = get(client, "/openapi.json")
    operations = [(path, operation) for path, methods in description["paths"].items() for operation in methods.values()]
    assert len(operations) == 7
    for path, operation in operations:
        content = operation["responses"]["200"]["content"]
        assert path.startswith("/api/audio") or "$ref" in content["application/json"]["schema"]
        assert operation["responses"]["4XX"]["content"]["application/json"]["schema"]["$ref"].endswith("/Problem")
    files = [client.get(path) for path in ("/docs", "/docs/swagger-ui.css", "/docs/swagger-ui-bundle.js")]
    assert [file.status_code for file in files] == [200, 200, 200]
    assert "http" not in files[0].text

"""Random requests: none makes the server fail, and none is answered with what isn't in the library."""

import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ensemble.web import api

SECRET = b"SECRET-OUTSIDE-THE-LIBRARY"

PATHS = ("/api/search", "/api/similar", "/api/folders", "/api/recordings/", "/api/peaks/", "/api/audio/", "/static/",
         "/docs", "/openapi.json", "/", "/favicon.ico", "/api/")  # fmt: skip
NAMES = ("q", "k", "id", "corpus", "folder", "min_duration_s", "max_duration_s", "download", "token", "other")
STATUSES = {200, 206, 303, 400, 403, 404, 405, 410, 413, 416, 421, 422}

text = st.text(st.characters(exclude_categories=()), max_size=40)
value = st.one_of(
    text, st.integers().map(str), st.floats().map(str), st.sampled_from(["rain", "birds", "5", "../..", "\0", "%00"])
)
header = st.one_of(
    st.tuples(
        st.just("Range"), st.from_regex(r"(bytes|b)=[0-9]{0,25}-[0-9]{0,25}(,[0-9]{0,3}-)?", fullmatch=True)
    ),
    st.tuples(st.just("Host"), st.sampled_from(["localhost", "example.org", "[", "a b", "127.0.0.1:99999999"])),
    st.tuples(st.just("Origin"), st.sampled_from(["null", "http://example.org", "http://[", "http://127.0.0.1:8000"])),
    st.tuples(st.sampled_from(["If-Range", "Cookie", "Authorization", "Content-Type", "Sec-Fetch-Site"]),
              st.text(st.characters(max_codepoint=255, exclude_categories=("Cc",)), max_size=30)),
)  # fmt: skip


def quote(text):
    """Percent-encode every byte of a text, surrogates included, so that a client sends it as it is."""
    return "".join(f"%{byte:02x}" for byte in text.encode("utf-8", "surrogatepass"))


@pytest.fixture
def known(ids):
    return st.sampled_from(sorted(ids.values()))


def check(response):
    """An answer: never a failure of the server, nor a file outside the library, and every refusal is a sentence."""
    assert response.status_code in STATUSES, response.text
    assert SECRET not in response.content
    assert b"root:" not in response.content
    is_page_file = response.headers.get("content-type") == "text/plain; charset=utf-8"  # a wrong range of one
    is_page_file &= not response.request.url.path.startswith("/api")
    if response.status_code >= 400 and response.request.method != "HEAD" and not is_page_file:
        assert list(response.json()) == ["error"]
        assert re.search(r"\w+ \w+", response.json()["error"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(data=st.data())
def test_no_request_makes_the_server_fail_or_send_what_is_outside(client, sounds, known, data):
    (sounds.parent / "secret.txt").write_bytes(SECRET)
    method = data.draw(st.sampled_from(["GET", "GET", "GET", "HEAD", "POST", "PUT", "OPTIONS"]))
    path = data.draw(st.sampled_from(PATHS))
    if path.endswith("/") and len(path) > 1:
        outside = st.sampled_from(
            ["../secret.txt", "../../secret.txt", str(sounds.parent / "secret.txt"), "/etc/passwd"]
        )
        path += data.draw(st.one_of(known, known, text.map(quote), outside.map(quote), outside))
    names = st.dictionaries(st.sampled_from(NAMES), st.one_of(value, known), max_size=4)
    query = "&".join(f"{name}={quote(given_value)}" for name, given_value in data.draw(names).items())
    headers = [(name, text.encode("latin-1")) for name, text in data.draw(st.lists(header, max_size=2))]
    content = data.draw(st.binary(max_size=50)) if method == "POST" else None
    check(client.request(method, f"{path}?{query}" if query else path, headers=headers, content=content))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_sound_makes_the_server_fail(client, sounds, scratch, data):
    """Real files, damaged: each is decoded in a process of its own."""
    name = data.draw(st.sampled_from(["birds/owl.aiff", "birds/wren.flac", "city/bell.au", "birds/rare/bittern.mp3"]))
    sound = bytearray((sounds / name).read_bytes())
    for position, byte in data.draw(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=8)):
        sound[position] = byte
    stop = data.draw(st.integers(0, len(sound)))
    response = client.post("/api/similar", params={"k": 1}, content=bytes(sound[:stop]))
    check(response)
    assert response.status_code in (200, 400, 422)
    assert not list(scratch.iterdir())


def test_limits_are_stated_in_the_description(client):
    """The fuzzed parameters have the limits that a client can read."""
    parameters = {
        one["name"]: one["schema"]
        for one in client.get("/openapi.json").json()["paths"]["/api/search"]["get"]["parameters"]
    }
    assert parameters["k"]["maximum"] == api.MAX_RESULTS
    assert parameters["q"]["maxLength"] == api.MAX_SENTENCE_CHARACTERS

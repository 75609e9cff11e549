"""Servers in processes of their own: addresses, tokens, many users at once, and the end by Ctrl-C."""

import socket
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpx2
import pytest

from data.errors import UserError
from ensemble.web import server
from ensemble.web.server import bind_socket, build_address, serve

NUM_USERS = 16


def test_a_server_answers_many_users_and_ends_with_a_player_connected(start_server, library, ids):
    """A process of its own, as Ctrl-C is a signal to a process."""
    running = start_server()
    assert urlsplit(running.url).hostname == "127.0.0.1"
    sentences = [f"a low tone beats {number} times" for number in range(NUM_USERS)]

    def search(sentence):
        return httpx2.get(f"{running.url}api/search", params={"q": sentence, "k": 3}, timeout=60)

    with ThreadPoolExecutor(NUM_USERS) as users:
        responses = list(users.map(search, sentences))
    for sentence, response in zip(sentences, responses, strict=True):
        assert response.status_code == 200
        names = [hit["recording"]["name"] for hit in response.json()["hits"]]
        assert names == [hit.path.name for hit in library.search(sentence, 3)]

    with socket.create_connection(("127.0.0.1", urlsplit(running.url).port)) as player:
        request = f"GET /api/audio/{ids['low tone, long.wav']} HTTP/1.1\r\nHost: localhost\r\n\r\n"
        player.sendall(request.encode())
        assert player.recv(100).startswith(b"HTTP/1.1 200")  # and reads no more, as a player with a full buffer
        took_s, status, errors = running.interrupt()
    assert status == 130
    assert took_s < 30
    assert "Traceback" not in errors
    assert "Cancel" not in errors


def test_a_converted_recording_ends_with_the_server(start_server, ids):
    """A process of its own, as Ctrl-C is a signal to a process. The token is part of the address that is printed."""
    token = "a-token-of-24-characters"
    running = start_server("--token", token)
    assert running.url.endswith(f"/?token={token}")
    address = running.url.partition("?")[0]
    assert httpx2.get(address).status_code == 401
    path, headers = f"api/audio/{ids['birds/owl.aiff']}", {"Authorization": f"Bearer {token}"}
    with httpx2.stream("GET", f"{address}{path}", headers=headers) as response:
        assert next(response.iter_bytes(100)).startswith(b"RIFF")
        _, status, errors = running.interrupt()
    assert (status, "Traceback" in errors) == (130, False)


def test_an_address_that_is_taken_or_does_not_exist_is_refused():
    with bind_socket("127.0.0.1", 0) as taken:
        for host, port in (("127.0.0.1", taken.getsockname()[1]), ("nowhere.invalid", 0), ("127.0.0.1", 99_999)):
            with pytest.raises(UserError, match="--port"):
                bind_socket(host, port)


def test_addresses_name_the_host_and_the_token():
    assert build_address("127.0.0.1", 80, None) == "http://127.0.0.1:80/"
    assert build_address("::1", 80, "secret") == "http://[::1]:80/?token=secret"
    assert build_address("0.0.0.0", 80, None) == f"http://{socket.gethostname()}:80/"


@pytest.mark.parametrize(
    ("host", "token", "needed"),
    [("127.0.0.1", None, False), ("localhost", None, False), ("0.0.0.0", None, True), ("::1", None, False)],
)
def test_a_server_for_other_machines_has_a_token(host, token, needed, monkeypatch, library):
    rules = []
    monkeypatch.setattr(server, "bind_socket", lambda *_: socket.create_server(("127.0.0.1", 0)))
    monkeypatch.setattr(server.SearchServer, "run", lambda self, _: None)
    monkeypatch.setattr(server, "build_app", lambda _, given, scratch: rules.append(given))
    serve(library, host, 0, token)
    assert (rules[0].token is not None) == needed
    assert rules[0].token is None or len(rules[0].token) > 40


@pytest.mark.parametrize("token", ["", "short", "with spaces and 24 characters", "ümlaute-sind-nicht-erlaubt"])
def test_a_token_that_could_be_guessed_is_refused(token, library):
    with pytest.raises(UserError, match="--token"):
        serve(library, port=0, token=token)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["rain", "--serve"], "sentence"), (["--serve", "--top", "3", "--moments"], "moments, top"),
        (["rain", "--port", "80"], "--port"), (["--token", "a-token-of-24-characters"], "--serve"),
        (["--serve", "--port", "99999"], "at most"),
    ],
)  # fmt: skip
def test_options_that_would_be_ignored_are_refused(words, named, exported, call_command):
    refused = call_command("ensemble/search.py", exported, *words)
    assert refused.returncode == 2
    assert named in refused.stderr

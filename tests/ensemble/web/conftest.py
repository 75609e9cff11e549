"""A library of real sound files with tiny random models, the application in this process, and servers of their own."""

import contextlib
import shutil

import numpy as np
import pytest
import soundfile
from starlette.testclient import TestClient
from web_server import GONE, SOUNDS, Server

from ensemble.serving.library import load
from ensemble.web.access import AccessRules
from ensemble.web.app import build_app


@pytest.fixture(scope="session")
def searched(exported, tmp_path_factory):
    """The folder of an exported ensemble that has an index."""
    return shutil.copytree(exported, tmp_path_factory.mktemp("library") / "exported")


@pytest.fixture(scope="session")
def sounds(searched):
    """A folder of tones in several formats. One of the files has gone since it was added to the index."""
    folder = searched.parent / "field"
    rng = np.random.default_rng(0)
    for number, (name, (rate_hz, duration_s, channels)) in enumerate(SOUNDS.items()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        time_s = np.arange(int(rate_hz * duration_s)) / rate_hz
        tone = 0.3 * np.sin(2 * np.pi * 150 * 1.6**number * time_s) * (time_s % 1 < 0.5)
        soundfile.write(path, tone[:, np.newaxis] + rng.normal(0, 0.01, (len(time_s), channels)), rate_hz)
    load(searched).add([folder])
    (folder / GONE).unlink()
    return folder


@pytest.fixture(scope="session")
def library(searched, sounds):
    return load(searched)


@pytest.fixture(scope="session")
def ids(library):
    """The id of each recording by its name in SOUNDS."""
    return {f"{one.folder}/{one.path.name}".removeprefix("/"): one.id for one in library.recordings}


@contextlib.contextmanager
def open_client(library, folder, token=None):
    app = build_app(library, AccessRules(token), folder)
    with TestClient(app, "http://127.0.0.1:8000", raise_server_exceptions=False, follow_redirects=False) as client:
        yield client


@pytest.fixture(scope="session")
def scratch(tmp_path_factory):
    """The folder for temporary files of the application in this process."""
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture(scope="session")
def client(library, scratch):
    """A client of the application in this process."""
    with open_client(library, scratch) as client:
        yield client


@pytest.fixture
def start_server(searched, sounds):
    """A function that starts a server; it is ended after the test."""
    started = []

    def start(*words, folder=searched):
        started.append(Server(folder, *words))
        return started[-1]

    yield start
    for server in started:
        server.kill()

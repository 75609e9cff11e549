"""Real audio, clips and stores, as small as they can be."""

import contextlib
import json
import os
import subprocess
import sys
import urllib.request
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
from filelock import FileLock

from data.schema import SAMPLE_RATE_HZ, SourceClip, Split
from data.store import shard_writer, split_writer, stored_split

CORPORA = Path(__file__).parents[2].parent / "shared" / "corpora"


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """Clotho, AudioCaps and WavCaps as they are published, on a small scale: clotho_v2, audiocaps and wavcaps below."""
    if not (CORPORA / "build.py").exists():
        pytest.skip(f"{CORPORA} is absent: it builds the corpora as they are published")
    if not os.environ.get("PYTEST_XDIST_WORKER"):
        return build_corpora(tmp_path_factory.mktemp("published") / "built")
    out = tmp_path_factory.getbasetemp().parent / "published"  # which all processes of the run share
    with FileLock(f"{out}.lock"):
        return out if out.exists() else build_corpora(out)


def build_corpora(out):
    """Build them in a folder that appears when it is complete."""
    part = out.with_name(f"{out.name}.part")
    subprocess.run([sys.executable, CORPORA / "build.py", part, "--scale", "0.05"], check=True, capture_output=True)
    return part.rename(out)


@pytest.fixture(scope="session")
def published_clotho(published):
    """Clotho as it is published, on a small scale."""
    return published / "clotho_v2"


def make_noise(duration_s, seed=0):
    """Samples that 16-bit PCM holds exactly."""
    pcm = np.random.default_rng(seed).integers(-20_000, 20_000, round(duration_s * SAMPLE_RATE_HZ))
    return (pcm / 32_768).astype(np.float32)


@pytest.fixture
def noise():
    """A function: duration and seed -> samples that 16-bit PCM holds exactly."""
    return make_noise


@pytest.fixture
def write_audio():
    """A function that writes a file of noise, mono at 32 kHz, in the format that its name says."""

    def write(path, duration_s=0.1, seed=0):
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, make_noise(duration_s, seed), SAMPLE_RATE_HZ, subtype="PCM_16")
        return path

    return write


@pytest.fixture
def make_clip():
    """A function: name, samples (or what loads them), captions -> a clip of the corpus 'test'."""

    def make(name, samples, captions=("A dog barks.",), **described):
        load = samples if callable(samples) else partial(iter, (samples,))
        return SourceClip(f"test/train/{name}", load, tuple(captions), origin=f"table.csv, {name}", **described)

    return make


@pytest.fixture
def write_split(tmp_path):
    """A function that writes clips as a split of the corpus test, two a shard, and opens it."""

    def write(clips, codec="pcm16", store=tmp_path / "store", paraphrases=(), name="train", **described):
        folder = store / "test" / name
        folder.mkdir(parents=True, exist_ok=True)
        parts = [clips[start : start + 2] for start in range(0, len(clips), 2)]
        summaries = [
            shard_writer.write_shard(
                folder / shard_writer.build_shard_name(number, part, codec), "test", name, part, codec
            )
            for number, part in enumerate(parts)
        ]
        if paraphrases:
            split_writer.write_paraphrases(folder, paraphrases)
        split_writer.write_split(folder, Split("test", name, tuple(clips), **described), codec, summaries)
        return stored_split.open_split(store, f"test/{name}")

    return write


class ChatServer:
    """A running `chat_server.py`."""

    def __init__(self, process, port):
        self.process, self.port = process, port
        self.base_url = f"http://127.0.0.1:{port}/v1"

    def log(self):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/log") as answer:
            return json.load(answer)

    def set_faults(self, **faults):
        data = json.dumps(faults).encode()
        urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{self.port}/faults", data)).close()


@pytest.fixture
def chat_server():
    """A function: faults -> a server that speaks the chat protocol, in a process of its own."""
    with contextlib.ExitStack() as stack:

        def start(**faults):
            command = [sys.executable, Path(__file__).with_name("chat_server.py"), json.dumps(faults)]
            process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            stack.callback(process.kill)
            return ChatServer(process, int(process.stdout.readline()))

        yield start

"""Some of the mutations that the fuzz test reads, in processes of the commands: how they end and what they say."""

import os
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import corpus_tables
import own_files
import pytest
import recordings
import server_answers
from kinds import snapshot

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
NUMBERS = (0, 1, 7)
"""Mutations of each kind."""


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """A function: a module of kinds -> a folder, and the kinds that the module writes in it. It restores the
    environment, which the modules change.
    """
    made = {}

    def make(module):
        if module not in made:
            root = tmp_path_factory.mktemp("a") / "b" / "whole"
            root.mkdir(parents=True)
            with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for name, value in os.environ.items():
                    patch.setenv(name, value)
                made[module] = root, module.build(root), dict(os.environ)
        return made[module]

    return make


def search(root, out, words=("a dog barks",)):
    return ["ensemble/search.py", root / "bundle", "--index", root / "index", *words]


def validate(root, out, name):
    return ["ensemble/submission.py", "validate", root / name, "--evaluation", root / "store"]


def verify(root, out):
    return ["data/prepare.py", "verify", "--store", root / "store"]


def select(root, out):
    words = ["--pool", root / "pool", "--no-test", "--folds", 0, "--out", out / "selected", "--runs", out / "runs"]
    return ["ensemble/select.py", *words]


def prepare(root, out, source, corpus="folder"):
    return ["data/prepare.py", corpus, "--source", root / source, "--store", out / "store"]


def exclude(root, out, name):
    return ["data/prepare.py", "exclude", root / name, "--store", out / "store"]


def paraphrase(root, out, path, url, words=()):
    server_answers.copytree(root / "store", out / "store")
    common = ["data/paraphrase.py", "clotho", "--split", "development", "--store", out / "store", "--model", "parrot"]
    return [*common, "--variants", 2, "--base-url", f"{url}/{path}", "--timeout", 10, *words]


def report(root, out, url):
    return ["ensemble/report.py", "--tracking-uri", url, "--runs", out / "runs", "--no-test", "--out", out / "report"]


OWN = {
    **dict.fromkeys(("ensemble.json", "index/manifest.json", "recordings.arrow", "rows.arrow", "vectors.bin",
                     "removed-1.bin", "trial.json", "model.safetensors", "tokenizer.json"), search),
    **{f"dcase{year}.zip": partial(validate, name=f"dcase{year}.zip") for year in (2023, 2025)},
    **dict.fromkeys(("manifest.json", "index", "queries", "set_aside", "sources", "clips", "summary",
                     "paraphrases.arrow", "exclusions.arrow"), verify),
    **dict.fromkeys(("scores.npy", "relevance.npy", "groups.npy"), select),
}  # fmt: skip


CHATS = ("chat completion", "chat error", "batch file", "batch created", "batch", "batch list")


def check(kind, name, number, command, root, tmp_path, environment, stdin=None):
    """Run a command on a mutation: it ends by itself with a status and a sentence, and writes into `tmp_path` alone."""
    contents, out = kind.path.read_bytes(), tmp_path / "out"
    out.mkdir()
    data = kind.mutate(contents, name, number)
    kind.path.write_bytes(data)
    try:
        words = [sys.executable, *map(str, command(root, out))]
        before = snapshot(root, kind.path)
        places = {"HOME": str(out), "TMPDIR": str(out), "XDG_CACHE_HOME": str(out), "OMP_NUM_THREADS": "1"}
        with (stdin or Path(os.devnull)).open() as file:
            done = subprocess.run(
                words, cwd=ROOT, env=environment | places, capture_output=True, text=True, errors="replace", stdin=file,
                timeout=300, check=False,
            )  # fmt: skip
        assert done.returncode in (0, 1, 2), f"{done.returncode}\n{done.stderr[-2_000:]}"
        assert "Traceback" not in done.stderr, done.stderr[-3_000:]
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == (done.returncode == 2), done.stderr[-2_000:]
        assert snapshot(root, kind.path) == before
        assert kind.path.read_bytes() == data
    finally:
        kind.path.write_bytes(contents)


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("name", OWN)
def test_files_of_the_project(name, number, make, tmp_path):
    root, kinds, environment = make(own_files)
    check(kinds[name], name, number, OWN[name], root, tmp_path, environment)


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("name", corpus_tables.TABLES)
def test_tables(name, number, make, tmp_path):
    root, kinds, environment = make(corpus_tables)
    corpus = name.partition("/")[0]
    source = Path("tree", name).parent if corpus == "folder" else Path("tree", corpus)
    command = partial(prepare, source=source, corpus=corpus)
    check(kinds[name], name, number, command, root, tmp_path, environment)


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("name", corpus_tables.LISTS)
def test_lists(name, number, make, tmp_path):
    root, kinds, environment = make(corpus_tables)
    check(kinds[name], name, number, partial(exclude, name=name), root, tmp_path, environment)


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("name", ["sentences.txt", "sentences in UTF-16.txt"])
def test_sentences(name, number, make, tmp_path):
    kind = make(corpus_tables)[1][name]
    root, _, environment = make(own_files)
    check(kind, name, number, partial(search, words=()), root, tmp_path, environment, stdin=kind.path)


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("name", recordings.FORMATS)
def test_recordings(name, number, make, tmp_path):
    root, kinds, environment = make(recordings)
    rows = "".join(f"{name},A dog barks.\n" for name in recordings.FORMATS)
    (root / "captions.csv").write_text(f"file_name,caption\n{rows}")
    check(kinds[name], name, number, partial(prepare, source="."), root, tmp_path, environment)


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("name", CHATS)
def test_answers_of_language_models(name, number, make, tmp_path):
    root, kinds, environment = make(server_answers)
    server = kinds[name].read.args[-1]
    server.sent.clear()
    is_batch = name.startswith("batch")
    words = ("--batch", "--poll", "0.01") if is_batch else ()
    path = "v1" if is_batch else name.replace(" ", "-")
    command = partial(paraphrase, path=path, url=server.url, words=words)
    check(kinds[name], name, number, command, root, tmp_path, environment)


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("name", ["MLflow's experiments/get-by-name", "MLflow's runs/search of find_sweep",
                                  "MLflow's runs/search of find_trial"])  # fmt: skip
def test_answers_of_mlflow(name, number, make, tmp_path):
    root, kinds, environment = make(server_answers)
    server = kinds[name].read.args[0]
    server.sent.clear()
    check(kinds[name], name, number, partial(report, url=server.url), root, tmp_path, environment)

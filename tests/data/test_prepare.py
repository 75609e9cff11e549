"""The command that prepares a corpus, run as a user runs it."""

import numpy as np
import pytest

from data import shards
from data.schema import Paraphrase

pytestmark = pytest.mark.cluster

TABLE = """file_name,caption,split
a.wav,A dog barks.,train
a.wav,A hound woofs.,train
b.flac,Rain falls.,train
torn.flac,Wind blows.,train
c.wav,A bell rings.,validation
absent.wav,Waves break.,validation
d.wav,A cat.,test
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return tmp_path_factory.mktemp("library")


@pytest.fixture
def prepare(run_command, monkeypatch):
    """A function that runs the command on Ray of its own."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return lambda *words, **options: run_command("data/prepare.py", *words, **options)


@pytest.fixture
def corpus(library, write_audio):
    """A folder with a file that is torn and one that is absent."""
    for seed, name in enumerate(("a.wav", "b.flac", "c.wav", "d.wav", "torn.flac")):
        write_audio(library / name, 0.5, seed)
    torn = library / "torn.flac"
    torn.write_bytes(torn.read_bytes()[:3_000])
    (library / "captions.csv").write_text(TABLE)
    return library


def assert_refused(done, said):
    """One line, and no traceback."""
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert said in line


def test_a_folder_becomes_a_store(corpus, prepare, noise, tmp_path):
    store = tmp_path / "store"
    done = prepare("folder", "--source", corpus, "--store", store, "--codec", "flac")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr

    said = done.stdout + done.stderr
    assert "folder/train: 2 clips, 0.00 h, 3 captions, 1 set aside, fingerprint " in said
    assert f"set aside: {corpus / 'captions.csv'}, line 5: {corpus / 'torn.flac'}: can't be decoded" in said
    assert f"set aside: {corpus / 'captions.csv'}, line 7: {corpus / 'absent.wav'} is absent" in said

    train, validation, test = (shards.open_split(store, f"folder/{name}") for name in ("train", "validation", "test"))
    assert train.clip_ids == ["folder/train/a.wav", "folder/train/b.flac"]
    assert train.captions == [["A dog barks.", "A hound woofs."], ["Rain falls."]]
    assert train.manifest["codec"] == "flac"
    np.testing.assert_array_equal(train.window(1, 0, 16_000), noise(0.5, seed=1))
    assert [len(split.manifest["set_aside"]) for split in (train, validation, test)] == [1, 1, 0]
    assert train.fingerprint in said


def test_what_is_no_longer_in_a_corpus_is_no_longer_in_the_store(corpus, prepare, make_clip, noise, tmp_path):
    for split in ("train", "test"):
        folder = tmp_path / "folder" / split
        clip = make_clip("old.wav", noise(0.1))
        summaries = [
            shards.write_shard(folder / f"clips-{number:05d}.arrow", "folder", split, [clip], "pcm16")
            for number in range(2)
        ]
        shards.write_paraphrases(folder, [Paraphrase(clip.clip_id, "A dog barks.", ("a hound woofs",), "grammar")])
        shards.write_manifest(folder, "folder", split, "pcm16", summaries, [])
    (corpus / "captions.csv").write_text(TABLE.replace("d.wav,A cat.,test\n", ""))

    done = prepare("folder", "--source", corpus, "--store", tmp_path)
    assert done.returncode == 0, done.stderr
    present = sorted(str(path.parent.relative_to(tmp_path)) for path in tmp_path.rglob("manifest.json"))
    assert present == ["folder/train", "folder/validation"]
    assert shards.open_split(tmp_path, "folder/train").clip_ids == ["folder/train/a.wav", "folder/train/b.flac"]
    names = ["clips-00000.arrow", "manifest.json", "queries.arrow"]
    assert sorted(path.name for path in (tmp_path / "folder" / "train").iterdir()) == names


def test_a_split_of_which_nothing_can_be_decoded_is_refused(corpus, prepare, tmp_path):
    (corpus / "captions.csv").write_text("file_name,caption,split\ntorn.flac,Wind blows.,train\n")
    done = prepare("folder", "--source", corpus, "--store", tmp_path / "store")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    named, refused = done.stderr.splitlines()
    assert named.startswith("set aside: ")
    assert refused == "error: folder/train: none of its 1 clips could be decoded"
    assert not list(tmp_path.rglob("manifest.json"))


def test_an_unknown_corpus_is_answered_with_the_known_ones(prepare, tmp_path):
    done = prepare("cloto", "--store", tmp_path / "store")
    assert_refused(done, "unknown corpus 'cloto'; known: ")
    assert {"clotho", "folder", "synthetic"} <= set(done.stderr.strip().partition("known: ")[2].split(", "))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["clotho"], "name the directory of the published layout with --source"),
        (["folder", "--source", "nowhere"], "nowhere is absent"),
        (["folder", "--source", "pyproject.toml"], "pyproject.toml is not a directory"),
        (["synthetic", "--source", "data"], "the synthetic corpus is made, not read; leave the source out"),
        (["synthetic", "--seed", "-1"], "seed=-1: a seed is 0 or more"),
    ],
)
def test_a_wrong_source_is_refused(words, said, prepare, tmp_path):
    assert_refused(prepare(*words, "--store", tmp_path / "store"), said)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_table_is_refused_by_file_and_line(corpus, prepare, tmp_path):
    (corpus / "captions.csv").write_text(TABLE.replace("Rain falls.,train", "Rain falls."))
    done = prepare("folder", "--source", corpus, "--store", tmp_path / "store")
    assert_refused(done, f"{corpus / 'captions.csv'}, line 4: the row hasn't as many cells as the header (3)")
    assert list(tmp_path.iterdir()) == []

"""The command that prepares a corpus, run as a user runs it."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import soundfile

from data.errors import UserError
from data.leakage import exclusions
from data.preparation import build
from data.runtime.parallel import run_on_ray
from data.schema import DUPLICATES
from data.store import storage, stored_split

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
def prepare(call_command):
    """A function that runs the command in this process."""
    return partial(call_command, "data/prepare.py")


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


def test_a_folder_becomes_a_store(corpus, run_command, noise, tmp_path):
    """In a process of its own, as a user runs it."""
    store = tmp_path / "store"
    words = ("folder", "--source", corpus, "--store", store, "--codec", "flac")
    done = run_command("data/prepare.py", *words)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr

    said = done.stdout + done.stderr
    assert "folder/train: 2 clips, 0.00 h, 3 captions, 1 skipped, fingerprint " in said
    assert f"skipped: {corpus / 'captions.csv'}, line 5: {corpus / 'torn.flac'}: can't be decoded" in said
    assert f"skipped: {corpus / 'captions.csv'}, line 7: {corpus / 'absent.wav'} is absent" in said

    train, validation, test = (
        stored_split.open_split(store, f"folder/{name}") for name in ("train", "validation", "test")
    )
    assert train.clip_ids == ["folder/train/a.wav", "folder/train/b.flac"]
    assert train.captions == [["A dog barks.", "A hound woofs."], ["Rain falls."]]
    assert train.manifest.codec == "flac"
    np.testing.assert_array_equal(train.read_window(1, 0, 16_000), noise(0.5, seed=1))
    assert [split.manifest.num_set_aside for split in (train, validation, test)] == [1, 1, 0]
    assert train.fingerprint in said


def test_what_is_no_longer_in_a_corpus_is_no_longer_in_the_store(corpus, prepare, tmp_path):
    assert prepare("folder", "--source", corpus, "--store", tmp_path).returncode == 0
    before = files_of(tmp_path / "folder" / "train")
    (corpus / "captions.csv").write_text(TABLE.replace("d.wav,A cat.,test\n", "").replace("A hound woofs.", "A bark."))

    done = prepare("folder", "--source", corpus, "--store", tmp_path)
    assert done.returncode == 0, done.stderr
    assert storage.Store.of(tmp_path).list_splits() == ["folder/train", "folder/validation"]
    assert list((tmp_path / "folder" / "test").iterdir()) == []
    train = stored_split.open_split(tmp_path, "folder/train")
    assert train.captions == [["A dog barks.", "A bark."], ["Rain falls."]]
    after = files_of(tmp_path / "folder" / "train")
    assert len(after) == len(before)
    assert not {name for name in before & after if name.startswith(("clips-", "index-", "queries-"))}


def test_what_is_there_already_is_not_done_again(corpus, prepare, tmp_path):
    first = prepare("folder", "--source", corpus, "--store", tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("clips-*")}
    again = prepare("folder", "--source", corpus, "--store", tmp_path)
    assert again.returncode == 0, again.stderr
    assert "folder/train: 1 of 1 shards already exist" in again.stderr
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("clips-*")} == times
    assert again.stderr.splitlines()[-1] == first.stderr.splitlines()[-1]
    assert "skipped: " in again.stderr


def test_a_split_of_which_nothing_can_be_decoded_is_refused(corpus, prepare, tmp_path):
    (corpus / "captions.csv").write_text("file_name,caption,split\ntorn.flac,Wind blows.,train\n")
    done = prepare("folder", "--source", corpus, "--store", tmp_path / "store")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "skipped: " in done.stderr
    assert done.stderr.splitlines()[-1] == "error: folder/train: none of its 1 clips could be decoded"
    assert not list(tmp_path.rglob("manifest.json"))


def test_an_unknown_corpus_is_answered_with_the_known_ones(prepare, tmp_path):
    done = prepare("cloto", "--store", tmp_path / "store")
    assert_refused(done, "unknown corpus 'cloto'; known: ")
    assert {"clotho", "folder", "synthetic"} <= set(done.stderr.strip().partition("known: ")[2].split(", "))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["clotho"], "name the folder that holds them with --source"),
        (["folder", "--source", "nowhere"], "nowhere is absent"),
        (["folder", "--source", "pyproject.toml"], "pyproject.toml is not a directory"),
        (["synthetic", "--source", "data"], "the synthetic corpus is generated, not read; leave the source out"),
        (["synthetic", "--seed", "-1"], "seed=-1: a seed must be at least 0"),
    ],
)
def test_a_wrong_source_is_refused(words, said, prepare, tmp_path):
    assert_refused(prepare(*words, "--store", tmp_path / "store"), said)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_table_is_refused_by_file_and_line(corpus, prepare, tmp_path):
    (corpus / "captions.csv").write_text(TABLE.replace("Rain falls.,train", "Rain falls."))
    done = prepare("folder", "--source", corpus, "--store", tmp_path / "store")
    assert_refused(done, f"{corpus / 'captions.csv'}, line 4: the row doesn't have as many cells as the header (3)")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Forty recordings at 44.1 kHz: five shards."""
    folder = tmp_path_factory.mktemp("recordings")
    rows = ["file_name,caption,split"]
    rng = np.random.default_rng(0)
    for clip in range(40):
        soundfile.write(folder / f"{clip}.wav", rng.uniform(-0.5, 0.5, 44_100 * 4), 44_100)
        rows.append(f"{clip}.wav,Noise number {clip}.,train")
    (folder / "captions.csv").write_text("\n".join(rows))
    return folder


IN_PROCESS = """
import os, signal, sys
from pathlib import Path
from data.preparation import build
from data.runtime.command_line import command
mode, source, store, workers = sys.argv[1:]
if workers != "0":
    import ray
    build.MAX_LOCAL_CLIPS = 0
    ray.init("local", num_cpus=int(workers), log_to_driver=False)
if mode == "killed":
    count = iter(range(100))
    def killing(self, *numbers):
        if next(count) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
    build.PreparationProgress.add_clips = killing
sys.exit(command(lambda argv: build.prepare_corpus("folder", Path(source), Path(store)) and None)())
"""


def run_in_process(run_command, mode, source, store, workers):
    """Prepare with a number of Ray's workers, or in threads; the process may be killed after two shards."""
    return run_command("-c", IN_PROCESS, mode, source, store, workers)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.cluster)])
def test_threads_and_workers_write_the_same_bytes_and_a_killed_run_goes_on(workers, recordings, run_command, tmp_path):
    """In processes, one of which is killed, and with clusters of their own: these differ in their number of workers."""
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    done = run_in_process(run_command, "whole", recordings, whole, 0)
    assert done.returncode == 0, done.stderr
    killed = run_in_process(run_command, "killed", recordings, resumed, workers)
    assert killed.returncode == -signal.SIGKILL
    assert storage.Store.of(resumed).list_splits() == []
    finished = {path: path.stat().st_mtime_ns for path in resumed.rglob("clips-*.json")}
    assert 2 <= len(finished) < 5

    done = run_in_process(run_command, "whole", recordings, resumed, workers)
    assert done.returncode == 0, done.stderr
    there = int(re.search(r"folder/train: (\d) of 5 shards already exist", done.stderr)[1])
    assert there >= len(finished)  # what ran when the command was killed may have ended well
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    contents = [
        {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}
        for store in (whole, resumed)
    ]
    assert contents[0] == contents[1]
    assert not [name for name in contents[1] if name.endswith(".part")]


def test_a_second_command_on_the_same_store_is_refused(corpus, prepare, tmp_path):
    with build.lock_store(tmp_path):
        done = prepare("folder", "--source", corpus, "--store", tmp_path)
    assert_refused(done, f"another command is writing to {tmp_path}; wait until it has finished")
    assert prepare("folder", "--source", corpus, "--store", tmp_path).returncode == 0


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small file system can't be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)  # workers of the cluster may still look at it


def test_a_full_disk_is_named_and_leaves_a_valid_store(recordings, corpus, prepare, small_disk):
    assert prepare("folder", "--source", corpus, "--store", small_disk).returncode == 0
    fingerprint = stored_split.open_split(small_disk, "folder/train").fingerprint
    done = prepare("folder", "--source", recordings, "--store", small_disk)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "No space left on device" in done.stderr
    assert stored_split.open_split(small_disk, "folder/train").fingerprint == fingerprint
    assert prepare("verify", "--store", small_disk).returncode == 0


def test_verify_reads_everything_back(corpus, prepare, tmp_path):
    prepare("folder", "--source", corpus, "--store", tmp_path, "--codec", "flac")
    done = prepare("verify", "--store", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "folder/train: 2 clips are intact" in done.stderr

    split = stored_split.open_split(tmp_path, "folder/train")
    path = split.store.path / split.get_shard_path(0)
    contents = bytearray(path.read_bytes())
    contents[split.index["offset"][1].as_py() + split.index["num_bytes"][1].as_py() // 2] ^= 1
    path.write_bytes(contents)
    done = prepare("verify", "--store", tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (wrong,) = [line for line in done.stderr.splitlines() if line.startswith("problem: ")]
    assert f"{split.get_shard_path(0)}: folder/train/b.flac: " in wrong

    path.write_bytes(contents[: len(contents) // 2])
    done = prepare("verify", "--store", tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert f"problem: {split.get_shard_path(0)} can't be read" in done.stderr


def test_verify_finds_tables_that_do_not_agree(corpus, prepare, tmp_path):
    prepare("folder", "--source", corpus, "--store", tmp_path)
    path = tmp_path / "folder" / "train" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"num_queries": 7, "fingerprint": "0" * 16}))
    done = prepare("verify", "--store", tmp_path)
    assert done.returncode == 1
    assert "problem: folder/train: 3 queries, 7 in the manifest" in done.stderr
    assert "problem: folder/train: the fingerprint doesn't match the contents" in done.stderr
    assert "folder/validation: 1 clips are intact" in done.stderr


def test_describe_says_what_a_store_holds_and_draws_it(corpus, prepare, tmp_path):
    prepare("folder", "--source", corpus, "--store", tmp_path)
    done = prepare("describe", "--store", tmp_path, "--list")
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line.strip()}
    fingerprint = stored_split.open_split(tmp_path, "folder/train").fingerprint
    assert rows["folder/train"] == ["2", "3", "0.00", "3", "1", "0", "pcm16", fingerprint]
    assert f"{corpus / 'captions.csv'}, line 7: {corpus / 'absent.wav'} is absent" in done.stdout
    picture = plt.imread(tmp_path / "describe.png")
    assert picture.shape[0] > 400
    assert picture.std() > 0.01


CASES = Path(__file__).parents[2].parent / "shared" / "cases" / "audio.py"


@pytest.mark.skipif(not CASES.exists(), reason=f"{CASES} is absent")
def test_a_folder_with_the_shared_cases_is_prepared_as_they_say(prepare, tmp_path):
    """Each file is stored whole, skipped with the reason, or stored with a warning, and `describe --list` says so."""
    subprocess.run([sys.executable, CASES, tmp_path / "audio"], check=True, capture_output=True)
    expected = tmp_path / "audio" / "expected.csv"
    cases = list(csv.DictReader(expected.read_text().splitlines()))
    expected.unlink()
    rows = [(case["file_name"], "A tone.", "train") for case in cases if case["must"] != "ignore"]
    rows += [("20_ms.wav", "A tone.", "train")]
    with (tmp_path / "audio" / "captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file_name", "caption", "split"), *rows])
    prepared = prepare("folder", "--source", tmp_path / "audio", "--store", tmp_path / "store")
    listed = prepare("describe", "--store", tmp_path / "store", "--list").stdout
    assert "1 other file isn't audio" in prepared.stderr
    split = stored_split.open_split(tmp_path / "store", "folder/train")
    seconds = dict(zip(split.clip_ids, split.num_samples / 32_000, strict=True))
    for case in cases:
        stored = seconds.get(f"folder/train/{case['file_name']}")
        assert (stored is not None) == (case["must"] in ("keep", "warn")), case
        assert stored is None or stored == pytest.approx(float(case["seconds"]), abs=0.025)
        said = [line for text in (prepared.stderr, listed) for line in text.splitlines()
                if f"/{case['file_name']}: " in line]  # fmt: skip
        kind = {"name": "skipped: ", "warn": "warning: "}.get(case["must"])
        assert len(said) == (2 if kind else 0), said
        assert all(line.startswith(kind) or f" {kind}" in line for line in said)


@pytest.mark.parametrize("command", ["verify", "describe"])
def test_an_empty_store_is_named(command, prepare, tmp_path):
    assert_refused(prepare(command, "--store", tmp_path / "nothing"), f"{tmp_path / 'nothing'} holds no split")
    assert_refused(prepare("--store", tmp_path / "nothing", command), f"{tmp_path / 'nothing'} holds no split")


@pytest.mark.usefixtures("cluster")
def test_a_worker_that_dies_is_named():
    with pytest.raises(UserError, match=r"(?s)a worker was lost: .*; re-run the same command to resume"):
        list(run_on_ray(lambda number: os.kill(os.getpid(), signal.SIGKILL), [(1,)]))


def test_an_hour_is_streamed(run_command, tmp_path):
    """What is held in memory doesn't grow with a clip's length: a process of its own has a peak of its own."""
    (tmp_path / "source").mkdir()
    with soundfile.SoundFile(tmp_path / "source" / "long.flac", "w", 8_000, 1, "PCM_16") as file:
        for _ in range(90):
            file.write(np.random.default_rng(0).integers(-9_000, 9_000, 8_000 * 60, np.int16))
    done = run_command("-c", MEMORY, tmp_path / "source" / "long.flac", tmp_path)
    assert done.returncode == 0, done.stderr
    growth_mb = {codec: int(text) for codec, text in (line.split() for line in done.stdout.splitlines())}
    assert growth_mb["flac"] < 150
    assert growth_mb["pcm16"] < 150  # of 345 MB


MEMORY = """
import resource, sys
from functools import partial
from pathlib import Path
from data.store import shard_writer
from data.schema import DUPLICATES
from data.schema import SourceClip
from data.decoding.audio import decode_file
clip = SourceClip("a/b/c", partial(decode_file, Path(sys.argv[1])), ("Long.",), "")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for codec in ("flac", "pcm16"):
    summary = shard_writer.write_shard(Path(sys.argv[2]) / f"{codec}.arrow", "a", "b", [clip], codec)
    assert summary.num_samples == 90 * 60 * 32_000
    print(codec, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def files_of(folder):
    return {path.name for path in folder.iterdir()}


def test_three_corpora_in_one_store_as_they_are_published(published, prepare, tmp_path):
    """Whatever is in their tables and archives is a clip, or set aside by name; overlaps are excluded and reported."""
    store = tmp_path / "store"
    for corpus, source in (("wavcaps", "wavcaps"), ("clotho", "clotho_v2"), ("audiocaps", "audiocaps")):
        words = ["--exclude-duplicates"] if corpus == "wavcaps" else []  # remembered when the others are prepared
        done = prepare(corpus, "--source", published / source, "--store", store, *words)
        assert done.returncode == 0, done.stderr
    assert "excluded from training: 2 clips of wavcaps/AudioSet_SL" in done.stderr
    assert prepare("verify", "--store", store).returncode == 0

    splits = {name: stored_split.open_split(store, name) for name in storage.Store.of(store).list_splits()}
    for name, split in splits.items():
        manifest = split.manifest
        if not manifest.clips_of:
            assert manifest.num_clips + manifest.num_set_aside == manifest.num_listed, name
    codecs = {name.partition("/")[0]: split.codec for name, split in splits.items()}
    assert codecs == {"audiocaps": "pcm16", "clotho": "pcm16", "wavcaps": "flac"}
    assert splits["clotho/challenge"].queries["relevant_clip_ids"].to_pylist() == [[]] * len(
        splits["clotho/challenge"].queries
    )
    several = splits["clotho/evaluation_2025"].queries["relevant_clip_ids"].to_pylist()
    assert max(map(len, several)) > 1

    left_out = exclusions.read_exclusions(store).to_pylist()
    by_id = [row["clip_id"] for row in left_out if " is a source of " in row["reason"]]
    assert len(by_id) == 5
    assert {row["clip_id"].rpartition("/")[0] for row in left_out if row["clip_id"] in by_id} == {
        "wavcaps/AudioSet_SL",
        "wavcaps/FreeSound",
    }
    sounds = exclusions.read_store_table(storage.Store.of(store), "duplicates.arrow", DUPLICATES).to_pylist()
    same = {row["clip_id"]: row["held_out_clip_id"] for row in sounds}
    planted = [clip_id for clip_id in by_id if clip_id.startswith("wavcaps/FreeSound/")]
    assert all(same[clip_id].startswith("clotho/evaluation/") for clip_id in planted)


def test_recordings_larger_than_the_free_space_are_pointed_out(prepare, corpus, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    arguments = "folder", "--source", str(corpus), "--store"
    assert "GB are free" not in prepare(*arguments, str(tmp_path / "a")).stderr
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    done = prepare(*arguments, str(tmp_path / "b"))
    assert done.returncode == 0
    assert f"0.0 GB are free in {tmp_path / 'b' / 'folder' / 'train'}: if they don't suffice, free space" in done.stderr


def test_a_store_is_not_uploaded_while_another_command_writes_to_it(prepare, corpus, tmp_path):
    store = tmp_path / "store"
    assert prepare("folder", "--source", str(corpus), "--store", str(store)).returncode == 0
    with build.lock_store(store):
        assert_refused(
            prepare("upload", "--store", str(store), "--to", "s3://bucket/store?region=us-east-1"),
            f"another command is writing to {store}; wait until it has finished",
        )

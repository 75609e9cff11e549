"""Where results lie: the same calls on a folder and on an object store of moto's."""

import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from data.errors import UserError
from trainables.records.run_storage import RunStorage

WEIGHTS = save({"weight": np.arange(256_000, dtype=np.uint8), "bias": np.ones(3, np.float32)})


@pytest.fixture(params=["folder", "object store"])
def runs(request, tmp_path):
    if request.param == "folder":
        return RunStorage.of(tmp_path / "runs")
    return RunStorage.of(request.getfixturevalue("object_store").uri(f"bucket/{tmp_path.name}"))


@pytest.fixture
def model(runs):
    """A model's folder, ready to be taken in."""
    with runs.make_scratch() as scratch:
        yield write_model(scratch / "model")


def write_model(folder):
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    (folder / "trial.json").write_text("{}")
    return folder


@pytest.mark.parametrize("kept", [0, 7, 100, len(WEIGHTS) - 1])
def test_a_model_that_a_power_cut_left_incomplete_is_not_there_and_is_replaced(kept, tmp_path):
    runs = RunStorage.of(tmp_path / "runs")
    (runs.folder / "models").mkdir(parents=True)
    runs.store_model("abc", write_model(tmp_path / "first"))
    assert (runs.has_model("abc"), runs.has_damaged_model("abc")) == (True, False)
    (runs.folder / "models" / "abc" / "model.safetensors").write_bytes(WEIGHTS[:kept])
    assert (runs.has_model("abc"), runs.has_damaged_model("abc")) == (False, True)
    runs.store_model("abc", write_model(tmp_path / "second"))
    assert (runs.folder / "models" / "abc" / "model.safetensors").read_bytes() == WEIGHTS
    assert not runs.has_damaged_model("absent")


def test_everything_is_on_the_disk_before_a_folder_gets_its_name(tmp_path, monkeypatch):
    """Recorded from the calls that the kernel gets."""
    events = []
    fsync, rename = os.fsync, os.rename

    def record_sync(descriptor):
        events.append(("sync", Path(f"/proc/self/fd/{descriptor}").readlink().name))
        fsync(descriptor)

    def record_rename(self, target):
        events.append(("rename", target.name))
        rename(self, target)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(Path, "rename", record_rename)
    runs = RunStorage.of(tmp_path / "runs")
    (runs.folder / "models").mkdir(parents=True)
    runs.store_model("abc", write_model(tmp_path / "staged"))
    assert events[-1] == ("sync", "models")
    assert events[-2] == ("rename", "abc")
    assert {name for kind, name in events[:-2]} == {"model.safetensors", "trial.json", "staged"}
    events.clear()
    runs.write_folder("trials/abc-1/checkpoint_1", lambda folder: (folder / "progress.json").write_text("{}"))
    assert [kind for kind, _ in events] == ["sync", "sync", "rename", "sync"]
    events.clear()
    runs.write("trials/abc-1/committed", b"checkpoint_1")
    assert events == [("sync", "committed"), ("sync", "abc-1")]


def test_a_file_is_created_once(runs):
    assert runs.create("a/1.json", b"first")
    assert not runs.create("a/1.json", b"second")
    assert runs.read("a/1.json") == b"first"
    runs.write("a/1.json", b"third")
    assert runs.read("a/1.json") == b"third"
    assert runs.read("a/2.json") is None
    assert runs.list_names("a") == ["a/1.json"]
    assert runs.list_names("b") == []


def test_a_model_that_was_taken_in_is_read_as_it_was(runs, model, tmp_path):
    assert not runs.has_model("abc")
    runs.store_model("abc", model)
    assert runs.has_model("abc")
    found = runs.fetch_model("abc", tmp_path / "copy")
    assert (found / "model.safetensors").read_bytes() == WEIGHTS
    assert (found / "trial.json").read_text() == "{}"


def test_a_folder_is_removed_with_all_that_is_in_it(runs):
    runs.write("trials/abc-1/checkpoint_1/progress.json", b"{}")
    runs.write("trials/abc-2/checkpoint_1/progress.json", b"{}")
    runs.remove("trials/abc-1")
    runs.remove("trials/abc-7")
    assert runs.list_names("trials") == ["trials/abc-2/checkpoint_1/progress.json"]


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("s3://KEY:HIDDEN@bucket/runs", "s3://bucket/runs: remove the keys from the URI"),
        ("s3://bucket/runs?speed=9", "unknown setting 'speed'"),
        ("nothing://bucket/runs", "nothing://bucket/runs can't be opened"),
    ],
)
def test_a_uri_that_cannot_be_is_refused_without_its_keys(location, said):
    with pytest.raises(UserError, match=said) as refused:
        RunStorage.of(location)
    assert "HIDDEN" not in str(refused.value)


def test_an_object_store_has_no_folder():
    with pytest.raises(UserError, match="this command needs a local folder: name one with --runs"):
        _ = RunStorage.of("s3://bucket/runs?region=us-east-1").folder

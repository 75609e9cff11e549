"""Where results lie: the same calls on a folder and on an object store of moto's."""

import pytest

from data.errors import UserError
from trainables.records.run_storage import RunStorage


@pytest.fixture(params=["folder", "object store"])
def runs(request, tmp_path):
    if request.param == "folder":
        return RunStorage.of(tmp_path / "runs")
    return RunStorage.of(request.getfixturevalue("object_store").uri(f"bucket/{tmp_path.name}"))


@pytest.fixture
def model(runs):
    """A model's folder, ready to be taken in."""
    with runs.make_scratch() as scratch:
        from pathlib import Path

        folder = Path(scratch) / "model"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(bytes(range(256)) * 1000)
        (folder / "trial.json").write_text("{}")
        yield folder


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
    assert (found / "model.safetensors").read_bytes() == bytes(range(256)) * 1000
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

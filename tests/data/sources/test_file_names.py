"""Names in tables, matched with files on disk."""

import unicodedata
from pathlib import Path

import pytest

from data.sources.file_names import FileMatcher, normalise_path

FILES = ["a/Märkt.wav", "a/rain.wav", "A/dog.wav", "a/dog.wav", "b.wav"]


def match(name, files=FILES, root=Path("/library")):
    return FileMatcher(files, root).match([name])[name]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("a/Märkt.wav", "a/Märkt.wav"),
        (unicodedata.normalize("NFD", "a/Märkt.wav"), "a/Märkt.wav"),
        ("./a/rain.wav", "a/rain.wav"),
        ("a//./rain.wav", "a/rain.wav"),
        ("a\\rain.wav", "a/rain.wav"),
        (".\\A\\Rain.WAV", "a/rain.wav"),
        ("/library/b.wav", "b.wav"),
        ("/home/someone/old/a/rain.wav", "a/rain.wav"),
        ("C:\\Sounds\\a\\rain.wav", "a/rain.wav"),
        ("a/dog.wav", "a/dog.wav"),
        ("A/dog.wav", "A/dog.wav"),
    ],
)
def test_another_way_to_write_a_name_is_the_file(name, file):
    assert match(name) == [file]


def test_a_disk_that_decomposes_letters_has_the_file():
    file = unicodedata.normalize("NFD", "Märkt.wav")
    assert match("Märkt.wav", [file]) == [file]


def test_a_name_that_differs_only_in_case_from_two_files_is_ambiguous():
    assert match("a/DOG.wav") == ["A/dog.wav", "a/dog.wav"]


@pytest.mark.parametrize("name", ["../b.wav", "rain.wav", "c.wav", "", "/elsewhere/c.wav", "b.wav/"])
def test_other_names_are_no_file(name):
    assert match(name) == ([] if name != "b.wav/" else ["b.wav"])


def test_a_file_that_another_name_stands_for_is_not_taken():
    assert FileMatcher(["rain.wav"]).match(["rain.wav", "RAIN.wav"]) == {"rain.wav": ["rain.wav"], "RAIN.wav": []}


def test_the_reason_names_the_likely_file_or_all_candidates(tmp_path):
    matcher = FileMatcher(FILES)
    reason = matcher.explain_missing("a/rian.wav", [], tmp_path)
    assert reason == f"{tmp_path}/a/rian.wav is absent (is it 'a/rain.wav'?)"
    assert matcher.explain_missing("zebra.flac", [], tmp_path) == f"{tmp_path}/zebra.flac is absent"
    assert "could be any of 'A/dog.wav', 'a/dog.wav'" in matcher.explain_missing("a/DOG.wav", FILES[2:4], tmp_path)


def test_a_path_is_normalised_without_leaving_the_folder():
    assert normalise_path("/a//b/./c\\d") == "/a/b/c/d"
    assert normalise_path("../a") == "../a"

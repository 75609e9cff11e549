"""A sound library of one's own: its table, and how it is split."""

import random

import numpy as np
import pytest

from data.corpora import folder
from data.errors import UserError

ROLES = ("train", "validation", "test")
NAMES = [f"sounds/{number:02d} märkt, {number}.wav" for number in range(30)]


@pytest.fixture
def library(tmp_path, write_audio):
    """A function that writes the table's lines and, if asked to, the files."""

    def write(header, lines, names=(), root=tmp_path / "library"):
        root.mkdir(exist_ok=True)
        (root / "captions.csv").write_text("\n".join([header, *lines]) + "\n", "utf-8")
        for name in names:
            write_audio(root / name, 0.01)
        return root

    return write


@pytest.fixture
def drawn(library):
    """A function: order of the rows and seed -> the names in each split, where no row states one."""

    def read(names, seed):
        root = library("file_name,caption", [f'"{name}",A dog.' for name in names], names)
        return names_by_split(folder.read(root, seed))

    return read


def names_by_split(splits):
    return {split.name: {clip.clip_id.split("/", 2)[2] for clip in split.clips} for split in splits}


def test_a_file_has_a_caption_a_row(library):
    lines = ["a.wav,A dog.,train", "b/c.flac,Rain.,validation", "a.wav,A hound.,train", "d.ogg,Wind.,test"]
    root = library("file_name,caption,split", lines)
    for name in ("a.wav", "b/c.flac"):
        library("file_name,caption,split", lines, [name])
    splits = folder.read(root)
    assert set(folder.ROLES.values()) == {split.name for split in splits}
    train, validation, test = splits
    (clip,) = train.clips
    assert (clip.clip_id, clip.captions) == ("folder/train/a.wav", ("A dog.", "A hound."))
    assert [clip.clip_id for clip in validation.clips] == ["folder/validation/b/c.flac"]
    assert sum(map(len, validation.clips[0].load())) == 320
    assert test.clips == ()
    assert [(gone.origin, gone.reason) for gone in test.set_aside] == [
        (f"{root / 'captions.csv'}, line 5", f"{root / 'd.ogg'} is absent")
    ]


def test_drawn_splits_hold_every_file_once(drawn):
    splits = drawn(NAMES, seed=0)
    assert {split: len(names) for split, names in splits.items()} == {"train": 24, "validation": 3, "test": 3}
    assert set.union(*splits.values()) == set(NAMES)


def test_drawn_splits_depend_on_the_seed_and_not_on_the_order_of_rows(drawn):
    splits = drawn(NAMES, seed=1)
    assert drawn(random.Random(0).sample(NAMES, len(NAMES)), seed=1) == splits
    assert drawn(NAMES, seed=2) != splits


def test_three_files_are_enough_for_three_splits(drawn):
    assert {len(names) for names in drawn(NAMES[:3], seed=0).values()} == {1}


def test_two_files_cannot_be_drawn_into_three_splits(drawn):
    with pytest.raises(UserError, match="2 files can't be divided into 3 splits: add files, or a column 'split'"):
        drawn(NAMES[:2], seed=0)


def test_a_negative_seed_is_refused(drawn):
    with pytest.raises(UserError, match="seed=-1"):
        drawn(NAMES, seed=-1)


def test_clips_decode_to_what_was_written(library, noise):
    root = library("file_name,caption,split", ["a.wav,A dog.,train"], ["a.wav"])
    np.testing.assert_array_equal(np.concatenate(list(folder.read(root)[0].clips[0].load())), noise(0.01))


def test_a_revision_changes_with_the_file(library, write_audio):
    root = library("file_name,caption,split", ["a.wav,A dog.,train"], ["a.wav"])
    (before,) = folder.read(root)[0].clips
    assert before.num_bytes == (root / "a.wav").stat().st_size
    assert folder.read(root)[0].clips[0].revision == before.revision
    write_audio(root / "a.wav", 0.01, seed=1)
    assert folder.read(root)[0].clips[0].revision != before.revision


@pytest.mark.parametrize("name", ["./b/Rain.wav", "b\\Rain.wav", "/old/library/b/Rain.wav", "B/rain.WAV"])
def test_a_name_written_in_another_way_is_the_file(name, library):
    lines = ["a.wav,A dog.,train", f"{name},Rain.,train", "b/Rain.wav,It rains.,train"]
    (train, *_) = folder.read(library("file_name,caption,split", lines[:2], ["a.wav", "b/Rain.wav"]))
    assert [(clip.clip_id, clip.captions) for clip in train.clips] == [
        ("folder/train/a.wav", ("A dog.",)),
        ("folder/train/b/Rain.wav", ("Rain.",)),
    ]
    assert train.set_aside == ()


def test_rows_that_write_a_name_in_two_ways_are_of_one_clip(library):
    lines = ["a.wav,A dog.,train", "./a.wav,It barks.,train"]
    (train, *_) = folder.read(library("file_name,caption,split", lines, ["a.wav"]))
    assert [clip.captions for clip in train.clips] == [("A dog.", "It barks.")]


def test_files_without_a_row_are_counted(library, caplog):
    root = library("file_name,caption,split", ["a.wav,A dog.,train"], ["a.wav", "b.wav"])
    for name in ("notes.txt", "voice.m4a"):
        (root / name).touch()
    caplog.set_level("INFO")
    folder.read(root)
    assert f"1 audio files have no row in captions.csv, such as {root / 'b.wav'}" in caplog.text
    assert f"skipped: {root / 'voice.m4a'}: .m4a isn't decoded here" in caplog.text
    assert "1 other file isn't audio" in caplog.text


@pytest.mark.parametrize("name", ["../a.wav", "A.wav", "a.wav\0", "x" * 300])
def test_a_name_is_a_path_in_the_directory_letter_for_letter(name, library, write_audio):
    lines = ["a.wav,A dog.,train", f"{name},A cat.,train"]
    root = library("file_name,caption,split", lines, ["a.wav"])
    write_audio(root.parent / "a.wav")
    (train, *_) = folder.read(root)
    assert [clip.clip_id for clip in train.clips] == ["folder/train/a.wav"]
    assert [gone.origin for gone in train.set_aside] == [f"{root / 'captions.csv'}, line 3"]
    assert train.num_listed == 2


def test_linked_directories_are_followed_once(library, tmp_path, write_audio):
    root = library("file_name,caption,split", ["linked/a.wav,A dog.,train"])
    write_audio(tmp_path / "disk" / "a.wav")
    (tmp_path / "disk" / "loop").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "gone.wav").symlink_to(tmp_path / "nowhere")
    (root / "linked").symlink_to(tmp_path / "disk")
    assert [clip.clip_id for clip in folder.read(root)[0].clips] == ["folder/train/linked/a.wav"]


def test_there_is_nothing_to_download(tmp_path):
    with pytest.raises(UserError, match="nothing to download"):
        folder.download(tmp_path)


@pytest.mark.parametrize(
    ("header", "lines", "said"),
    [
        ("file_name,text", ["a.wav,A dog."], "captions.csv: column caption is missing"),
        ("file_name,caption,split", ["a.wav,A dog.,dev"], "line 2: split 'dev' is none of train, validation, test"),
        ("file_name,caption,split", ["a.wav,A dog.,"], "line 2: column 'split' is empty"),
        (
            "file_name,caption,split",
            ["a.wav,A dog.,train", "a.wav,A cat.,test"],
            "line 3: 'a.wav' is in 'test' here and in 'train' above",
        ),
        ("file_name,caption", ["a.wav,A dog.", "b.wav,", "c.wav,A cat."], "line 3: column 'caption' is empty"),
        ("file_name,caption,split", ["x.wav,A dog.,train"], "holds none of the 1 files named in captions.csv"),
    ],
)
def test_wrong_tables_are_refused(header, lines, said, library):
    with pytest.raises(UserError, match=said):
        folder.read(library(header, lines, ["a.wav", "b.wav", "c.wav"]))


def test_there_must_be_one_table(library, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"must hold one table .* found: none"):
        folder.read(tmp_path / "empty")
    root = library("file_name,caption", [])
    (root / "another.csv").write_text("")
    with pytest.raises(UserError, match=r"found: another.csv, captions.csv"):
        folder.read(root)


def test_a_source_is_needed(tmp_path):
    with pytest.raises(UserError, match="--source"):
        folder.read(None)
    with pytest.raises(UserError, match="nowhere is absent"):
        folder.read(tmp_path / "nowhere")

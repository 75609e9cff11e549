"""AudioCaps: as it is published, with files as its users have them."""

import csv
import shutil

import numpy as np
import pytest

from data.corpora import audiocaps
from data.errors import UserError

ID = "-aBcDeFgHiJ"


@pytest.fixture
def write_table(tmp_path):
    """A function that writes a split's table from (youtube_id, start_time, caption), each with an id of its own.

    val and test have a clip without a file.
    """

    def write(rows, split="train"):
        path = tmp_path / "dataset" / f"{split}.csv"
        path.parent.mkdir(exist_ok=True)
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["audiocap_id", "youtube_id", "start_time", "caption"])
            writer.writerows([number, *row] for number, row in enumerate(rows))
        return path

    for split in ("val", "test"):
        write([("gone", 0, "Silence.")], split)
    return write


@pytest.fixture
def read_one(tmp_path, write_table, write_audio):
    """A function: names of files -> the split of one clip that starts at 30 s, with these files."""

    def read(*names):
        for name in names:
            write_audio(tmp_path / name)
        write_audio(tmp_path / "other.wav")
        write_table([(ID, 30, "A dog."), ("other", 0, "Rain.")])
        return audiocaps.read(tmp_path)[0]

    return read


def test_published_rows_and_files_are_reconciled(published):
    root = published / "audiocaps"
    splits = audiocaps.read(root)
    assert [split.name for split in splits] == list(audiocaps.ROLES.values())
    num_files = 0
    for split, per_clip in zip(splits, (1, 5, 5), strict=True):
        with (root / "dataset" / f"{split.name}.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert split.num_listed == len({(row["youtube_id"], row["start_time"]) for row in rows})
        assert split.num_listed == len(split.clips) + len(split.set_aside)
        assert split.set_aside  # some are planted
        assert split.sources == {f"youtube:{row['youtube_id']}" for row in rows}
        assert {len(clip.captions) for clip in split.clips} == {per_clip}
        num_files += len(split.clips)
    assert num_files == len(list((root / "audio").iterdir()))


def test_stereo_at_another_rate_is_decoded(published):
    for clip in audiocaps.read(published / "audiocaps")[1].clips[:3]:
        samples = np.concatenate(list(clip.load()))
        assert samples.ndim == 1
        assert 9.99 < len(samples) / 32_000 < 10.02


@pytest.mark.parametrize(
    "name",
    [f"{ID}.wav", f"Y{ID}.ogg", f"{ID}_30.flac", f"a/b/Y{ID}_30.mp3", f"{ID}.WAV"],
)
def test_a_file_is_found_by_each_form_of_its_name(name, read_one, tmp_path):
    if name.endswith(("ogg", "mp3")):  # whatever it holds: names count
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
        train = read_one()
    else:
        train = read_one(name)
    assert train.set_aside == ()
    assert train.clips[0].clip_id == f"audiocaps/train/{name.rpartition('/')[2]}"
    assert train.clips[0].source == f"youtube:{ID}"
    assert train.clips[0].num_bytes == (tmp_path / name).stat().st_size


@pytest.mark.parametrize("suffix", [".m4a", ".webm"])
def test_a_format_that_is_not_decoded_is_named_with_the_remedy(suffix, read_one, tmp_path):
    (tmp_path / f"{ID}{suffix}").touch()
    (gone,) = read_one().set_aside
    assert gone.reason.startswith(f"{tmp_path / ID}{suffix}: {suffix} isn't decoded here; convert it")


def test_the_tables_of_version_2_are_read_if_there_are_none_of_version_1(read_one, tmp_path, caplog):
    expected = [clip.clip_id for clip in read_one(f"{ID}.wav").clips]
    shutil.copytree(tmp_path / "dataset", tmp_path / "dataset2.0")
    audiocaps.read(tmp_path)
    assert "version 1 is read; to read version 2, rename" in caplog.text
    shutil.rmtree(tmp_path / "dataset")
    assert [clip.clip_id for clip in audiocaps.read(tmp_path)[0].clips] == expected


@pytest.mark.parametrize("name", [f"{ID.lower()}.wav", f"{ID}_3.wav", f"{ID}.wav.part", f"{ID}.txt", f"YY{ID}.wav"])
def test_other_names_are_not_its_file(name, read_one, tmp_path):
    (tmp_path / name).touch()
    train = read_one()
    assert [clip.clip_id for clip in train.clips] == ["audiocaps/train/other.wav"]
    (gone,) = train.set_aside
    assert gone.origin == f"{tmp_path / 'dataset' / 'train.csv'}, line 2"
    assert gone.reason == f"{tmp_path} has no file {ID}.*, Y{ID}.* or the same with _30"


def test_a_name_with_the_start_time_goes_before_one_without(read_one):
    assert read_one(f"{ID}.wav", f"{ID}_30.wav").clips[0].clip_id == f"audiocaps/train/{ID}_30.wav"


def test_a_directory_named_after_the_split_goes_before_others(read_one, tmp_path):
    clip = read_one(f"audio/val/{ID}.wav", f"audio/train/{ID}.wav").clips[0]
    assert str(tmp_path / "audio" / "train" / f"{ID}.wav") in clip.origin


@pytest.mark.parametrize(
    "names", [(f"a/{ID}.wav", f"b/{ID}.wav"), (f"{ID}.wav", f"Y{ID}.wav"), (f"{ID}.wav", f"{ID}.flac")]
)
def test_of_several_files_none_is_guessed(names, read_one, tmp_path):
    (ambiguous,) = read_one(*names).set_aside
    assert ambiguous.reason.startswith("several files could be its audio")
    assert all(str(tmp_path / name) in ambiguous.reason for name in names)


def test_two_clips_that_claim_one_file_are_set_aside(write_table, write_audio, tmp_path):
    write_table([(ID, 30, "A dog."), (ID, 60, "A cat."), ("other", 0, "Rain.")])
    for name in (ID, "other"):
        write_audio(tmp_path / f"{name}.wav")
    train = audiocaps.read(tmp_path)[0]
    assert [clip.clip_id for clip in train.clips] == ["audiocaps/train/other.wav"]
    assert len(train.set_aside) == 2
    assert all("line 2" in gone.reason and "line 3" in gone.reason for gone in train.set_aside)
    write_audio(tmp_path / f"{ID}_60.wav")
    assert len(audiocaps.read(tmp_path)[0].clips) == 3


def test_ids_that_differ_only_in_case_are_two_clips(write_table, write_audio, tmp_path):
    write_table([("abc", 0, "A dog."), ("ABC", 0, "A cat.")])
    for seed, name in enumerate(("abc", "ABC")):
        write_audio(tmp_path / f"{name}.wav", seed=seed)
    clips = audiocaps.read(tmp_path)[0].clips
    assert [(clip.clip_id, clip.captions) for clip in clips] == [
        ("audiocaps/train/abc.wav", ("A dog.",)),
        ("audiocaps/train/ABC.wav", ("A cat.",)),
    ]


def test_a_row_that_occurs_twice_is_named_and_the_same_words_of_two_people_are_kept(write_table, write_audio, tmp_path):
    table = write_table([(ID, 30, "A dog."), (ID, 30, "A dog."), (ID, 30, "A hound.")])
    with table.open("a") as file:
        file.write(f"2,{ID},30,A hound.\n")
    write_audio(tmp_path / f"{ID}.wav")
    train = audiocaps.read(tmp_path)[0]
    assert [clip.captions for clip in train.clips] == [("A dog.", "A dog.", "A hound.")]
    assert [(gone.origin, gone.reason) for gone in train.set_aside] == [
        (f"{table}, line 5", f"is the same as {table}, line 4")
    ]


def test_tables_may_be_absent_and_are_named(write_table, write_audio, tmp_path):
    write_table([(ID, 30, "A dog.")], "test")
    (tmp_path / "dataset" / "val.csv").unlink()
    write_audio(tmp_path / f"{ID}.wav")
    (test,) = audiocaps.read(tmp_path)
    assert (test.name, len(test.clips)) == ("test", 1)
    assert [(gone.origin, gone.reason) for gone in test.set_aside] == [
        (str(tmp_path / "dataset" / f"{split}.csv"), "is absent: its clips aren't known") for split in ("train", "val")
    ]


@pytest.mark.parametrize(
    ("header", "said"),
    [("id,youtube_id,start_time,caption", "audiocap_id is missing"), ("audiocap_id,youtube_id,caption", "start_time")],
)
def test_a_table_without_a_column_is_refused(header, said, write_table, tmp_path):
    write_table([]).write_text(f"{header}\n1,a,b,c\n")
    with pytest.raises(UserError, match=f"train.csv: column {said}"):
        audiocaps.read(tmp_path)


def test_what_cannot_be_read_at_all_is_refused(write_table, tmp_path):
    with pytest.raises(UserError, match=r"holds no audio file that its tables name\. .*yt-dlp"):
        audiocaps.read(tmp_path)
    (tmp_path / "dataset").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"dataset holds none of train.csv, val.csv, test.csv"):
        audiocaps.read(tmp_path)
    with pytest.raises(UserError, match="--source"):
        audiocaps.read(None)


def test_download_says_how_the_audio_is_obtained(tmp_path):
    with pytest.raises(UserError, match=r"yt-dlp .* YOUTUBE_ID\.wav"):
        audiocaps.download(tmp_path)

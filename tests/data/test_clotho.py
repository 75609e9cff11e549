"""Clotho: as it is published, and with what may be wrong with a copy of it."""

import csv
import unicodedata

import numpy as np
import pytest

from data.corpora import clotho
from data.errors import UserError

SPLITS = ("development", "validation", "evaluation")


@pytest.fixture
def tiny_clotho(tmp_path, write_audio):
    """Two clips a split in the published layout, in which a test breaks something."""
    for split in SPLITS:
        names = [f"{split} dog.wav", "Same name.wav"]
        for name in names:
            write_audio(tmp_path / split / name)
        captions = [{"file_name": name} | {f"caption_{n}": f"Caption {n}." for n in range(1, 6)} for name in names]
        sources = ["1234", "Not found"]
        metadata = [
            {"file_name": name, "keywords": "dog; märkt ;", "sound_id": sound_id, "license": "CC0"}
            for name, sound_id in zip(names, sources, strict=True)
        ]
        write_csv(tmp_path / f"clotho_captions_{split}.csv", captions, "utf-8")
        write_csv(tmp_path / f"clotho_metadata_{split}.csv", metadata, "iso-8859-1")
    return tmp_path


def write_csv(path, rows, encoding):
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_counts_are_those_of_the_tables_and_folders(published_clotho):
    splits = clotho.read(published_clotho)
    assert [split.name for split in splits] == list(SPLITS)
    assert set(clotho.ROLES.values()) == set(SPLITS)
    assert {split.corpus for split in splits} == {"clotho"}
    for split in splits:
        on_disk = sorted(path.name for path in (published_clotho / split.name).iterdir())
        assert sorted(clip.clip_id for clip in split.clips) == [f"clotho/{split.name}/{name}" for name in on_disk]
        assert {len(clip.captions) for clip in split.clips} == {5}
        assert split.set_aside == ()


def test_captions_stand_as_published(published_clotho):
    with (published_clotho / "clotho_captions_validation.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))[1:]
    assert [list(clip.captions) for clip in clotho.read(published_clotho)[1].clips] == [row[1:] for row in rows]


def test_clips_with_odd_names_are_found_and_decoded(published_clotho):
    clips = [clip for split in clotho.read(published_clotho) for clip in split.clips]
    for quirk in ("&amp;", "Märkt"):
        clip = next(clip for clip in clips if quirk in clip.clip_id)
        samples = clip.load()
        assert samples.dtype == np.float32
        assert 14.9 < len(samples) / 32_000 < 30.1


def test_a_name_in_two_splits_is_two_clips(published_clotho):
    development, _, evaluation = clotho.read(published_clotho)
    names = [{clip.clip_id.rpartition("/")[2].lower() for clip in split.clips} for split in (development, evaluation)]
    assert {"same name in two splits.wav", "ambience birds.wav"} <= names[0] & names[1]
    ids = {clip.clip_id for split in (development, evaluation) for clip in split.clips}
    assert len(ids) == len(development.clips) + len(evaluation.clips)


def test_keywords_licence_and_source_come_from_the_metadata(published_clotho):
    clips = clotho.read(published_clotho)[0].clips
    assert all(2 <= len(clip.keywords) <= 6 for clip in clips)
    assert {clip.licence for clip in clips} == {"http://creativecommons.org/licenses/by/3.0/"}
    assert clips[0].source == ""  # "Not found"
    assert all(clip.source.removeprefix("freesound:").isdigit() for clip in clips[1:11])


def test_metadata_may_be_absent_or_lack_a_clip(tiny_clotho):
    (tiny_clotho / "clotho_metadata_validation.csv").unlink()
    path = tiny_clotho / "clotho_metadata_evaluation.csv"
    path.write_text("".join(path.read_text("iso-8859-1").splitlines(keepends=True)[:2]), "iso-8859-1")
    splits = clotho.read(tiny_clotho)
    described = [[(clip.keywords, clip.licence, clip.source) for clip in split.clips] for split in splits]
    first, second, nothing = (("dog", "märkt"), "CC0", "freesound:1234"), (("dog", "märkt"), "CC0", ""), ((), "", "")
    assert described == [[first, second], [nothing, nothing], [first, nothing]]


def test_a_missing_file_is_set_aside_and_named_with_its_line(tiny_clotho):
    (tiny_clotho / "validation" / "Same name.wav").unlink()
    split = clotho.read(tiny_clotho)[1]
    assert [clip.clip_id for clip in split.clips] == ["clotho/validation/validation dog.wav"]
    (gone,) = split.set_aside
    assert gone.origin == f"{tiny_clotho / 'clotho_captions_validation.csv'}, line 3"
    assert gone.reason == f"{tiny_clotho / 'validation' / 'Same name.wav'} is absent"


def test_a_disk_that_composes_letters_otherwise_has_the_file(tiny_clotho, write_audio):
    table = tiny_clotho / "clotho_captions_validation.csv"
    table.write_text(table.read_text("utf-8").replace("validation dog", "Märkt"), "utf-8")
    write_audio(tiny_clotho / "validation" / unicodedata.normalize("NFD", "Märkt.wav"))
    assert clotho.read(tiny_clotho)[1].clips[0].clip_id == "clotho/validation/Märkt.wav"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("caption_5", "caption_6", r"captions_validation.csv: column caption_5 is missing"),
        ("Caption 3.,", "", r"captions_validation.csv, line 2: the row hasn't as many cells as the header"),
        ("Caption 3.", " ", r"captions_validation.csv, line 2: column 'caption_3' is empty"),
        ("Same name.wav", "validation dog.wav", r"line 3: file_name 'validation dog.wav' occurs twice .*line 2"),
        ("wav,", "mp3,", r"validation holds none of the 2 files named in clotho_captions_validation.csv"),
    ],
)
def test_wrong_tables_are_refused(old, new, said, tiny_clotho):
    path = tiny_clotho / "clotho_captions_validation.csv"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError, match=said):
        clotho.read(tiny_clotho)


def test_captions_in_another_encoding_are_refused(tiny_clotho):
    path = tiny_clotho / "clotho_captions_evaluation.csv"
    path.write_text(path.read_text().replace("evaluation dog", "Märkt"), "iso-8859-1")
    with pytest.raises(UserError, match=r"captions_evaluation.csv, line 2: byte 0xe4 isn't UTF-8"):
        clotho.read(tiny_clotho)


def test_metadata_without_a_column_is_refused(tiny_clotho):
    path = tiny_clotho / "clotho_metadata_development.csv"
    path.write_text(path.read_text("iso-8859-1").replace("sound_id", "id"), "iso-8859-1")
    with pytest.raises(UserError, match=r"metadata_development.csv: column sound_id is missing"):
        clotho.read(tiny_clotho)


@pytest.mark.parametrize("absent", ["clotho_captions_validation.csv", "validation"])
def test_an_incomplete_copy_is_refused(absent, tiny_clotho):
    (tiny_clotho / absent).rename(tiny_clotho / "elsewhere")
    with pytest.raises(UserError, match=f"{absent} is absent"):
        clotho.read(tiny_clotho)


def test_a_source_is_needed(tmp_path):
    with pytest.raises(UserError, match="--source"):
        clotho.read(None)
    with pytest.raises(UserError, match="nowhere is absent"):
        clotho.read(tmp_path / "nowhere")

"""WavCaps: out of its archives, joined and split, or extracted, and with what may be wrong with a copy of it."""

import json
import pickle
import shutil
import subprocess
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from data.corpora import wavcaps
from data.errors import UserError
from data.waveform import AudioError

needs_zip = pytest.mark.skipif(not shutil.which("zip"), reason="Debian's zip is absent: it splits archives")

INSIDE = "mnt/fast/nobackup/scratch/waveforms/SoundBible_flac"


@pytest.fixture
def tiny(tmp_path, write_audio):
    """A function that writes SoundBible from rows of its table and the names of members of its archive."""

    def write(rows, names, root=tmp_path / "wavcaps"):
        folder = root / "Zip_files" / "SoundBible"
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(folder / "SoundBible.zip", "w") as archive:
            for seed, name in enumerate(names):
                archive.writestr(name, write_audio(tmp_path / "made.flac", seed=seed).read_bytes())
        table = root / "json_files" / "SoundBible" / "sb_final.json"
        table.parent.mkdir(parents=True, exist_ok=True)
        table.write_text(json.dumps({"num_captions_per_audio": 1, "data": rows}))
        return root

    return write


def row(identity, caption="A dog."):
    return {"id": identity, "caption": caption, "duration": 0.1}


def table_of(root):
    return root / "json_files" / "SoundBible" / "sb_final.json"


def told(split):
    return [(gone.origin, gone.reason) for gone in split.set_aside]


def whole(clip):
    return np.concatenate(list(clip.load()))


def described(split):
    """All of a split but where its recordings lie and how they are loaded."""
    return replace(split, clips=tuple(replace(clip, load=str, origin="", revision="") for clip in split.clips))


@pytest.fixture(scope="module")
def published_wavcaps(published):
    return published / "wavcaps"


def test_published_rows_and_recordings_are_reconciled(published_wavcaps):
    splits = wavcaps.read(published_wavcaps)
    assert [split.name for split in splits] == list(wavcaps.PRETRAINING)
    for split in splits:
        (table,) = (published_wavcaps / "json_files" / split.name).iterdir()
        rows = json.loads(table.read_text())["data"]
        with zipfile.ZipFile(published_wavcaps / "Zip_files" / split.name / f"{split.name}.zip") as archive:
            assert len(split.clips) == len(archive.namelist())
        assert split.num_listed == len(rows) == len(split.sources) == len(split.clips) + len(split.set_aside)
        ids = {clip.clip_id for clip in split.clips}
        assert ids <= {f"wavcaps/{split.name}/{row['id']}" for row in rows}
        torn = 0
        for clip in split.clips:
            try:
                assert len(whole(clip)) > 0
            except AudioError:
                torn += 1
        assert torn == 1  # planted


def test_ids_keywords_and_sources_are_those_of_the_collections(published_wavcaps):
    audioset, bbc, freesound, soundbible = (split.clips[0] for split in wavcaps.read(published_wavcaps))
    assert audioset.clip_id == f"wavcaps/AudioSet_SL/Y{audioset.source.removeprefix('youtube:')}.wav"
    assert bbc.source == bbc.clip_id.replace("wavcaps/BBC_Sound_Effects/", "bbc:")
    assert freesound.source == freesound.clip_id.replace("wavcaps/FreeSound/", "freesound:")
    assert soundbible.source == soundbible.clip_id.replace("wavcaps/SoundBible/", "soundbible:")
    assert (audioset.keywords, bbc.keywords, soundbible.keywords) == ((), ("Nature",), ())
    assert len(freesound.keywords) > 1


@needs_zip
@pytest.mark.parametrize("packing", ["-0", "-6"])
def test_split_archives_give_the_clips_of_joined_ones(packing, published_wavcaps, tmp_path):
    shutil.copytree(published_wavcaps / "json_files", tmp_path / "json_files")
    for subset in wavcaps.PRETRAINING:
        extracted, folder = tmp_path / "extracted" / subset, tmp_path / "Zip_files" / subset
        folder.mkdir(parents=True)
        with zipfile.ZipFile(published_wavcaps / "Zip_files" / subset / f"{subset}.zip") as archive:
            archive.extractall(extracted)
        command = ["zip", "-q", "-r", packing, "-s", "64k", folder / f"{subset}.zip", "."]
        subprocess.run(command, check=True, cwd=extracted)
        assert len(list(folder.iterdir())) > 5
    splits, expected = wavcaps.read(tmp_path), wavcaps.read(published_wavcaps)
    for split, other in zip(splits, expected, strict=True):
        for clip, twin in zip(split.clips, other.clips, strict=True):
            assert (clip.clip_id, clip.revision, clip.num_bytes) == (twin.clip_id, twin.revision, twin.num_bytes)
    for split, other in zip(splits, expected, strict=True):
        clip = pickle.loads(pickle.dumps(split.clips[0]))
        np.testing.assert_array_equal(whole(clip), whole(other.clips[0]))


@pytest.mark.parametrize("place", ["", "SoundBible_mp3", "WavCaps_mp3/SoundBible", "Zip_files/SoundBible"])
def test_copies_with_mp3_audio_are_read(place, tiny, tmp_path):
    root = tiny([row("1000"), row("1001.wav")], [])
    for name in ("1000", "1001"):
        soundfile.write(tmp_path / f"{name}.mp3", np.full(32_000, 0.1), 32_000)
        if place:
            (root / place).mkdir(parents=True, exist_ok=True)
            (tmp_path / f"{name}.mp3").rename(root / place / f"{name}.mp3")
        else:
            with zipfile.ZipFile(root / "Zip_files" / "SoundBible" / "SoundBible.zip", "a") as archive:
                archive.write(tmp_path / f"{name}.mp3", f"{INSIDE}/{name}.mp3")
    (split,) = wavcaps.read(root)
    assert [clip.clip_id for clip in split.clips] == ["wavcaps/SoundBible/1000", "wavcaps/SoundBible/1001.wav"]
    assert told(split) == []
    assert {len(whole(clip)) for clip in split.clips} == {32_000}


def test_flac_is_preferred_to_mp3(tiny, tmp_path, write_audio):
    root = tiny([row("1000")], [])
    with zipfile.ZipFile(root / "Zip_files" / "SoundBible" / "SoundBible.zip", "w") as archive:
        archive.writestr("1000.mp3", b"")
    write_audio(root / "SoundBible_flac" / "1000.flac")
    assert wavcaps.read(root)[0].clips[0].origin.endswith("1000.flac")


def test_archives_that_are_not_read_are_named(tiny):
    root = tiny([row("1000")], ["1000.flac"])
    for number in (1, 2):
        (root / "Zip_files" / "SoundBible" / f"SoundBible.7z.{number:03d}").touch()
    ((_, reason),) = told(wavcaps.read(root)[0])
    assert reason.startswith("2 archives aren't zip files, such as")


@pytest.mark.parametrize("place", ["Zip_files/SoundBible/deep", "SoundBible_flac", "SoundBible/deep"])
def test_extracted_files_give_the_clips_of_the_archive(place, tiny):
    root = tiny([row("1000"), row("1001")], [f"{INSIDE}/1000.flac", f"{INSIDE}/1001.flac"])
    (packed,) = wavcaps.read(root)
    archive = root / "Zip_files" / "SoundBible" / "SoundBible.zip"
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(root / place)
    samples = [whole(clip) for clip in packed.clips]
    archive.unlink()
    (extracted,) = wavcaps.read(root)
    assert described(extracted) == described(packed)
    for clip, expected in zip(extracted.clips, samples, strict=True):
        assert str(root / place) in clip.origin
        np.testing.assert_array_equal(whole(clip), expected)


def test_a_recording_in_two_places_is_read_from_the_archive(tiny, write_audio):
    root = tiny([row("1000"), row("1001")], ["1000.flac"])
    for name in ("1000", "1001"):
        write_audio(root / "SoundBible_flac" / f"{name}.flac", seed=7)
    (split,) = wavcaps.read(root)
    archive = root / "Zip_files" / "SoundBible" / "SoundBible.zip"
    assert f"{archive}/1000.flac" in split.clips[0].origin
    assert str(root / "SoundBible_flac" / "1001.flac") in split.clips[1].origin
    ((origin, reason),) = told(split)
    assert origin == "SoundBible"
    assert reason == f"1 recordings exist more than once; the first is read, such as {f'{archive}/1000.flac'!r}"


@pytest.mark.parametrize(
    "name", ["../1000.flac", "a/../../1000.flac", "/1000.flac", "C:/1000.flac", "a\\..\\1000.flac"]
)
def test_a_member_that_leads_out_of_the_archive_is_named_and_not_read(name, tiny):
    root = tiny([row("1000"), row("1001")], [name, "1001.flac"])
    (split,) = wavcaps.read(root)
    assert [clip.clip_id for clip in split.clips] == ["wavcaps/SoundBible/1001"]
    archive = root / "Zip_files" / "SoundBible" / "SoundBible.zip"
    assert told(split) == [
        (f"{archive}/{name}", "points outside the archive; not read"),
        (f"{table_of(root)}, row 1", "1000.flac is absent: neither in an archive nor extracted"),
    ]


def test_recordings_without_a_row_are_counted(tiny):
    root = tiny([row("1000")], ["1000.flac", "1001.flac", "1002.flac", "notes.txt"])
    (split,) = wavcaps.read(root)
    archive = root / "Zip_files" / "SoundBible" / "SoundBible.zip"
    assert told(split) == [
        ("SoundBible", f"2 recordings without a row in {table_of(root)}, such as {f'{archive}/1001.flac'!r}")
    ]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("text", "the row isn't an object"),
        ({"caption": "A dog."}, "id must be a non-empty string or an integer"),
        (row(None), "id must be a non-empty string or an integer"),
        (row(True), "id must be a non-empty string or an integer"),
        (row(["1001"]), "id must be a non-empty string or an integer"),
        ({"id": "1001"}, "caption must be a non-empty string"),
        (row("1001", ""), "caption must be a non-empty string"),
        (row("1001", " \n"), "caption must be a non-empty string"),
        (row("1001", 5), "caption must be a non-empty string"),
        (row("1001", "half \ud800"), "caption must be a non-empty string"),
        (row("1001"), "1001.flac is absent: neither in an archive nor extracted"),
        (row("../1000"), "../1000.flac is absent: neither in an archive nor extracted"),
        (row("1000", "Rain."), "id '1000' occurs twice (first in {table}, row 1)"),
        (row("1000.wav", "Rain."), "id '1000.wav' occurs twice (first in {table}, row 1)"),
    ],
)
def test_a_bad_row_is_set_aside_and_named(bad, reason, tiny):
    root = tiny([row("1000"), bad], ["1000.flac"])
    (split,) = wavcaps.read(root)
    assert [clip.captions for clip in split.clips] == [("A dog.",)]
    assert told(split) == [(f"{table_of(root)}, row 2", reason.format(table=table_of(root)))]
    assert split.num_listed == 2


def test_an_id_may_be_a_number(tiny):
    (split,) = wavcaps.read(tiny([row(1000)], ["1000.flac"]))
    assert [(clip.clip_id, clip.source) for clip in split.clips] == [("wavcaps/SoundBible/1000", "soundbible:1000")]


def test_ids_that_differ_only_in_case_are_two_clips(tiny):
    (split,) = wavcaps.read(tiny([row("yA"), row("YA")], ["YA.flac", "yA.flac"]))
    assert [clip.clip_id for clip in split.clips] == ["wavcaps/SoundBible/yA", "wavcaps/SoundBible/YA"]
    assert "/yA.flac" in split.clips[0].origin
    assert split.sources == {"soundbible:yA", "soundbible:YA"}


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        ("", "not JSON"),
        ('{"data": [', "not JSON"),
        ("[" * 100_000, "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        ("[]", 'an object with a list of rows as "data"'),
        ("{}", 'an object with a list of rows as "data"'),
        ('{"data": {}}', 'an object with a list of rows as "data"'),
    ],
)
def test_what_is_no_table_is_refused(contents, said, tiny):
    root = tiny([row("1000")], ["1000.flac"])
    table_of(root).write_bytes(contents if isinstance(contents, bytes) else contents.encode())
    with pytest.raises(UserError, match=f"sb_final.json: .*{said}.*; download it again"):
        wavcaps.read(root)


def test_a_table_without_any_recording_is_set_aside_as_a_whole(tiny, published_wavcaps):
    root = tiny([row("1000")], ["1000.flac"])
    other = root / "json_files" / "BBC_Sound_Effects" / "bbc_final.json"
    other.parent.mkdir()
    shutil.copy(published_wavcaps / "json_files" / "BBC_Sound_Effects" / "bbc_final.json", other)
    bbc, soundbible = wavcaps.read(root)
    assert (len(bbc.clips), len(soundbible.clips), bbc.num_listed, len(bbc.sources)) == (0, 1, 8, 8)
    assert told(bbc) == [(str(other), "none of the 8 recordings that it names exists")]


def test_what_cannot_be_read_at_all_is_refused(tiny, tmp_path):
    with pytest.raises(UserError, match="--source"):
        wavcaps.read(None)
    with pytest.raises(UserError, match=r"holds none of the tables: .*as_final\.json"):
        wavcaps.read(tmp_path)
    with pytest.raises(UserError, match=r"Zip_files holds no recording that the tables in .*json_files name"):
        wavcaps.read(tiny([row("1000")], ["1001.flac"]))


def test_a_torn_archive_is_refused(tiny):
    root = tiny([row("1000")], ["1000.flac"])
    archive = root / "Zip_files" / "SoundBible" / "SoundBible.zip"
    archive.write_bytes(archive.read_bytes()[:100])
    with pytest.raises(UserError, match=r"SoundBible.zip isn't a complete zip archive .*: download it again"):
        wavcaps.read(root)

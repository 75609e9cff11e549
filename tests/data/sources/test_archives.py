"""Zip archives, joined and split, as Debian's zip makes them, and what may be wrong with one."""

import pickle
import shutil
import subprocess
import tempfile
import zipfile
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from data.errors import UserError
from data.sources import archives
from data.store.shard_writer import write_shard
from data.waveform import AudioError

needs_zip = pytest.mark.skipif(not shutil.which("zip"), reason="Debian's zip is absent: it splits archives")

NAMES = ["a.flac", "deep/b, c.flac", "deep/c.wav"]


@pytest.fixture
def packed(tmp_path, write_audio):
    """A function: options of zip, length of the first of three recordings -> an archive of them."""

    def pack(*options, duration_s=3):
        for seed, name in enumerate(NAMES):
            write_audio(tmp_path / "in" / name, 0.1 if seed else duration_s, seed)
        command = ["zip", "-q", "-r", *options, tmp_path / "packed.zip", "."]
        subprocess.run(command, check=True, cwd=tmp_path / "in")
        return tmp_path / "packed.zip"

    return pack


@pytest.fixture
def stored(tmp_path, write_audio):
    """An archive of one small recording, made by Python's zipfile, and the place of the recording's data in it."""
    path = tmp_path / "stored.zip"
    contents = write_audio(tmp_path / "a.wav", 0.02).read_bytes()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.wav", contents)
    return path, path.read_bytes().index(contents)


def decoded(member):
    return np.concatenate(list(archives.decode_member(member)))


@needs_zip
@pytest.mark.parametrize("join", [False, True])
@pytest.mark.parametrize("options", [["-0"], ["-6"], ["-0", "-s", "64k"], ["-6", "-s", "64k"], ["-0", "-fd"]])
def test_members_of_joined_and_split_archives_decode_to_what_was_packed(options, join, packed, noise, tmp_path):
    duration_s = 1.2 if join else 3  # zip 3.0 joins wrongly what lies in more than two segments
    path = packed(*options, duration_s=duration_s)
    if join:
        subprocess.run(["zip", "-q", "-s", "0", path, "--out", tmp_path / "joined.zip"], check=True)
        path = tmp_path / "joined.zip"
    found = archives.list_members(path)
    assert (len(found[0].segments) > 3) == ("-s" in options and not join)
    assert sorted(member.info.filename for member in found) == sorted(NAMES)
    for member in found:
        seed = NAMES.index(member.info.filename)
        np.testing.assert_array_equal(
            decoded(pickle.loads(pickle.dumps(member))), noise(0.1 if seed else duration_s, seed)
        )


@needs_zip
def test_an_archive_of_more_members_than_16_bits_count_is_read(tmp_path, write_audio, noise):
    whole, split = tmp_path / "whole.zip", tmp_path / "split.zip"
    with zipfile.ZipFile(whole, "w") as archive:
        for number in range(70_000):
            archive.writestr(f"{number}.flac", b"")
        archive.write(write_audio(tmp_path / "a.wav", 3), "a.wav")
    subprocess.run(["zip", "-q", "-s", "64k", whole, "--out", split], check=True)
    assert archives.ZIP64_LOCATOR_SIGNATURE in split.read_bytes()
    for path in (whole, split):
        found = {member.info.filename: member for member in archives.list_members(path)}
        assert len(found) == 70_001
        np.testing.assert_array_equal(decoded(found["a.wav"]), noise(3))
        with pytest.raises(AudioError, match="is empty"):
            decoded(found["69999.flac"])
    assert len(found["a.wav"].segments) > 100  # NAME.z99 is followed by NAME.z100


def test_a_member_too_long_for_memory_is_decoded_from_disk(stored, noise, monkeypatch):
    monkeypatch.setattr(archives, "SPOOLED_BYTES", 100)
    monkeypatch.setattr(archives, "BLOCK_BYTES", 100)
    (member,) = archives.list_members(stored[0])
    np.testing.assert_array_equal(decoded(member), noise(0.02))


def test_a_member_that_unpacks_to_many_times_its_size_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "SPOOLED_BYTES", 2**20)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("1.flac", bytes(2**22))
    (member,) = archives.list_members(tmp_path / "bomb.zip")
    monkeypatch.setattr(archives, "open_segments", lambda *_: pytest.fail("it was opened"))
    with pytest.raises(AudioError, match="unpacks to more than 20 times its size: 4,194,304 bytes"):
        decoded(member)


@needs_zip
def test_an_absent_segment_is_named(packed):
    path = packed("-0", "-s", "64k")
    first = min(archives.list_members(path), key=lambda member: member.info.volume)
    path.with_suffix(".z02").rename(path.with_suffix(".gone"))
    with pytest.raises(UserError, match=r"packed.z02 is absent: packed.zip is split into 4 files; download them all"):
        archives.list_members(path)
    with pytest.raises(UserError, match=r"packed.z02 is absent; every machine that decodes needs it"):
        decoded(first)


@needs_zip
def test_segments_left_over_beside_a_joined_archive_are_not_read(packed, noise):
    path = packed("-0", "-s", "64k", duration_s=1.2)
    joined = path.with_name("joined.zip")
    subprocess.run(["zip", "-q", "-s", "0", path, "--out", joined], check=True)
    joined.replace(path)
    path.with_suffix(".z01").write_bytes(b"left over")
    found = {member.info.filename: member for member in archives.list_members(path)}
    np.testing.assert_array_equal(decoded(found["a.flac"]), noise(1.2))


@pytest.mark.parametrize("contents", [b"", b"no archive at all" * 10, b"PK\5\6"])
def test_what_is_no_archive_is_refused(contents, tmp_path):
    (tmp_path / "a.zip").write_bytes(contents)
    with pytest.raises(UserError, match=r"a.zip isn't a complete zip archive .*: download it again"):
        archives.list_members(tmp_path / "a.zip")


def test_an_archive_whose_end_is_torn_off_is_refused(stored):
    path, _ = stored
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match="isn't a complete zip archive"):
        archives.list_members(path)


@needs_zip
def test_an_encrypted_archive_is_refused(packed):
    with pytest.raises(UserError, match=r"packed.zip: '.*' is encrypted: extract the archive"):
        archives.list_members(packed("-P", "secret"))


def test_an_unknown_method_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("a.wav", b"")
    with pytest.raises(UserError, match=r"'a\.wav' is compressed by an unsupported method"):
        archives.list_members(tmp_path / "a.zip")


@pytest.mark.parametrize(("place", "said"), [(1000, "Bad CRC-32"), (-35, "isn't at the position")])
def test_a_changed_byte_is_found(place, said, stored):
    path, start = stored
    contents = bytearray(path.read_bytes())
    contents[start + place] ^= 1
    path.write_bytes(contents)
    (member,) = archives.list_members(path)
    with pytest.raises(AudioError, match=f"can't be extracted: .*{said}"):
        decoded(member)


def test_an_archive_that_was_cut_meanwhile_is_torn(stored):
    path, start = stored
    (member,) = archives.list_members(path)
    path.write_bytes(path.read_bytes()[: start + 100])
    with pytest.raises(AudioError, match="its archive ends early"):
        decoded(member)


def test_a_long_member_is_unpacked_beside_the_shard(stored, tmp_path, monkeypatch, make_clip):
    """Not in the system's temporary folder, which may be small, or in memory."""
    path, _ = stored
    (member,) = archives.list_members(path)
    expected = decoded(member)
    monkeypatch.setattr(archives, "SPOOLED_BYTES", 100)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    with pytest.raises(FileNotFoundError):
        decoded(member)
    clip = replace(make_clip("a.wav", expected, ("A dog.",)), load=partial(archives.decode_member, member))
    summary = write_shard(tmp_path / "shard.arrow", "test", "train", [clip], "pcm16")
    assert summary.num_samples == len(expected)
    assert not summary.set_aside

"""Clips that sound like a held-out one: found under any id, and dropped if wanted."""

from functools import partial

import numpy as np
import pytest
import soxr

from data.corpora import synthetic
from data.leakage import duplicates, exclusions
from data.schema import SAMPLE_RATE_HZ, SourceClip, Split
from data.store import shard_writer, split_writer, storage, stored_split


@pytest.fixture(scope="module")
def scenes():
    """Twelve different recordings of 10 to 30 s."""
    config = synthetic.Config(12, 1, 1, min_duration_s=10.0, max_duration_s=30.0)
    return [np.concatenate(list(clip.load())) for clip in synthetic.read(None, 5, config)[0].clips]


def at_16_khz(samples):
    return soxr.resample(soxr.resample(samples, SAMPLE_RATE_HZ, 16_000), 16_000, SAMPLE_RATE_HZ)


@pytest.fixture(scope="module")
def store(scenes, tmp_path_factory):
    """Copies of held-out recordings among others, in several corpora."""
    folder = tmp_path_factory.mktemp("store")
    splits = {
        "clotho/development": [scenes[0]],
        "clotho/validation": [scenes[1]],
        "clotho/evaluation": [scenes[2], scenes[3]],
        "audiocaps/val": [scenes[4], 0.5 * scenes[3]],
        "audiocaps/test": [0.7 * scenes[4]],
        "wavcaps/FreeSound": [
            0.3 * scenes[2],
            at_16_khz(scenes[3]),
            scenes[5],
            np.concatenate([scenes[6], scenes[1]]),
            scenes[4][50_001:],
            scenes[7],
            0.9 * scenes[0],
        ],
    }
    for name, recordings in splits.items():
        corpus, _, split = name.partition("/")
        clips = tuple(
            SourceClip(f"{name}/{number}", partial(iter, (samples.astype(np.float32),)), ("A sound.",), "")
            for number, samples in enumerate(recordings)
        )
        path = folder / name / shard_writer.build_shard_name(0, clips, "flac")
        summary = shard_writer.write_shard(path, corpus, split, clips, "flac")
        split_writer.write_split(folder / name, Split(corpus, split, clips), "flac", [summary])
    several = Split("clotho", "evaluation_2025", (), queries=(), clips_of="evaluation")
    (folder / "clotho" / "evaluation_2025").mkdir()
    split_writer.write_split(folder / "clotho" / "evaluation_2025", several, "flac", [])
    return folder


@pytest.fixture(scope="module")
def found(store):
    """Rows of the table of duplicates, as the command finds them on a cluster."""
    splits = [stored_split.open_split(store, name) for name in storage.Store.of(store).list_splits()]
    held_out = duplicates.split_into_parts([split for split in splits if exclusions.is_held_out(split.name)])
    index = duplicates.build_index([duplicates.compute_index_landmarks(*part) for part in held_out])
    looked_up = duplicates.split_into_parts([split for split in splits if duplicates.is_trained_on(split.name)])
    return [row for part in looked_up for row in duplicates.find_duplicates(*part, index)]


COPIES = {
    "wavcaps/FreeSound/0": "clotho/evaluation/0",
    "wavcaps/FreeSound/3": "clotho/validation/0",
    "audiocaps/val/1": "clotho/evaluation/1",
}


def test_copies_of_held_out_recordings_are_found_and_nothing_else_is(found, scenes):
    rows = {row["clip_id"]: row for row in found}
    # Of these, two held-out splits hold the original.
    assert rows.pop("wavcaps/FreeSound/1")["held_out_clip_id"] in {"clotho/evaluation/1", "audiocaps/val/1"}
    assert rows.pop("wavcaps/FreeSound/4")["held_out_clip_id"] in {"audiocaps/val/0", "audiocaps/test/0"}
    assert {clip_id: row["held_out_clip_id"] for clip_id, row in rows.items()} == COPIES
    assert rows["wavcaps/FreeSound/0"]["split"] == "wavcaps/FreeSound"
    assert 0.5 < rows["wavcaps/FreeSound/0"]["overlap_s"] * SAMPLE_RATE_HZ / len(scenes[2]) <= 1


@pytest.mark.parametrize("exclude", [False, True])
def test_they_are_dropped_if_wanted(exclude, found, store):
    duplicates.write_duplicates(storage.Store.of(store), found[::-1], exclude)
    table = exclusions.update_exclusions(store)
    expected = {*COPIES, "wavcaps/FreeSound/1", "wavcaps/FreeSound/4"} if exclude else set()
    assert set(table["clip_id"].to_pylist()) == expected
    assert all(reason.startswith("sounds like ") for reason in table["reason"].to_pylist())


def test_the_table_is_sorted_whatever_the_order_of_the_parts(found, store):
    duplicates.write_duplicates(storage.Store.of(store), found, exclude=False)
    before = (store / "duplicates.arrow").read_bytes()
    duplicates.write_duplicates(storage.Store.of(store), found[::-1], exclude=False)
    assert (store / "duplicates.arrow").read_bytes() == before


def test_parts_cover_every_clip_once(store, monkeypatch):
    monkeypatch.setattr(duplicates, "CLIPS_PER_PART", 3)
    splits = [stored_split.open_split(store, name) for name in ("wavcaps/FreeSound", "clotho/evaluation_2025")]
    parts = duplicates.split_into_parts(splits)
    assert [(split.name, first) for split, first in parts] == [("wavcaps/FreeSound", first) for first in (0, 3, 6)]
    ids = [clip_id for part in parts for clip_id, _ in duplicates.compute_part_landmarks(*part)]
    assert ids == splits[0].clip_ids


def test_splits_that_may_be_trained_on_are_looked_up():
    looked_up = {name: duplicates.is_trained_on(name) for name in ("clotho/development", "clotho/challenge")}
    assert looked_up == {"clotho/development": True, "clotho/challenge": False}
    assert duplicates.is_trained_on("audiocaps/val")  # as the paper does

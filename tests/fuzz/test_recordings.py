"""Recordings that are cut short or mutated: refused, or set aside beside the good ones."""

import random
from functools import partial

import numpy as np
import pytest
from mutations import mutate_recording
from recordings import FORMATS, decode_all, write_recordings

from data.decoding.audio import decode_file
from data.preparation import verify
from data.schema import SourceClip, Split
from data.store import shard_writer, split_writer
from data.store.stored_split import open_split
from data.waveform import CODECS, AudioError


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    write_recordings(folder)
    return folder


@pytest.mark.parametrize("name", FORMATS)
def test_a_recording_cut_anywhere_is_refused(name, recordings, tmp_path):
    contents = (recordings / name).read_bytes()
    for size in range(0, len(contents) - 16, len(contents) // 20):
        (tmp_path / name).write_bytes(contents[:size])
        with pytest.raises(AudioError):
            decode_all(tmp_path / name)


@pytest.mark.parametrize("number", range(10))
def test_a_split_with_mutated_recordings_holds_all_good_ones_and_is_valid(number, recordings, tmp_path):
    rng = random.Random(number)
    pcm = np.random.default_rng(number).integers(-20_000, 20_000, (3, 1_600))
    samples = dict(zip(("good0", "good1", "good2"), (pcm / 32_768).astype(np.float32), strict=True))
    loads = {name: partial(iter, (values,)) for name, values in samples.items()}
    for name in rng.sample(sorted(FORMATS), 3):
        path = tmp_path / name
        path.write_bytes(mutate_recording((recordings / name).read_bytes(), name, rng.randrange(1_000)))
        loads[name] = partial(decode_file, path)
    clips = [SourceClip(f"test/train/{name}", load, ("A dog barks.",), name) for name, load in loads.items()]
    rng.shuffle(clips)
    folder, codec, summaries = tmp_path / "store" / "test" / "train", CODECS[number % 2], []
    folder.mkdir(parents=True)
    for part in (clips[:2], clips[2:4], clips[4:]):
        path = folder / shard_writer.build_shard_name(len(summaries), part, codec)
        summaries.append(shard_writer.write_shard(path, "test", "train", part, codec))
    split_writer.write_split(folder, Split("test", "train", tuple(clips)), codec, summaries)
    split = open_split(tmp_path / "store", "test/train")
    assert verify.check_tables(split) == []
    assert [verify.check_shard(split, shard) for shard in range(3)] == [[]] * 3
    skipped = {one.origin for one in split.set_aside}
    assert sorted(split.clip_ids) == sorted(clip.clip_id for clip in clips if clip.origin not in skipped)
    for name, values in samples.items():
        stored = split.clip_ids.index(f"test/train/{name}")
        np.testing.assert_array_equal(split.read_window(stored, 0, split.num_samples[stored]), values)

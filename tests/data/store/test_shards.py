"""A split on disk: whole or not there, named by its contents, and read without copies."""

import dataclasses
import json
import re
from functools import partial

import numpy as np
import pyarrow as pa
import pytest
import soundfile

from data.decoding.audio import decode_file
from data.errors import UserError
from data.schema import CLIPS, INDEX, QUERIES, SAMPLE_RATE_HZ, Paraphrase, Query, SkippedItem, Split
from data.store import shard_writer, split_writer, storage, stored_split
from data.store.files import write_arrow_table
from data.waveform import CODECS, AudioError, to_pcm16


@pytest.fixture
def clips(make_clip, noise):
    captions = [("A dog barks.", "A hound woofs."), ("Rain falls.",), ("Märkt, \u9ce5.", "Wind.", "Waves break.")]
    return [make_clip(f"{seed}.wav", noise(0.2 + seed / 10, seed), said) for seed, said in enumerate(captions)]


@pytest.mark.parametrize("codec", CODECS)
def test_what_is_written_is_what_is_opened(codec, clips, write_split):
    split = write_split(clips, codec)
    assert split.name == "test/train"
    assert [split.read_shard(number).schema for number in range(2)] == [CLIPS, CLIPS]
    assert split.index.schema == INDEX
    assert split.clip_ids == [clip.clip_id for clip in clips]
    assert split.captions == [list(clip.captions) for clip in clips]
    assert split.num_samples.tolist() == [len(samples_of(clip)) for clip in clips]
    for index, clip in enumerate(clips):
        np.testing.assert_array_equal(split.read_window(index, 0, split.num_samples[index]), samples_of(clip))
    counts = {
        name: getattr(split.manifest, name) for name in ("num_clips", "num_queries", "num_samples", "num_set_aside")
    }
    assert counts == {"num_clips": 3, "num_queries": 6, "num_samples": sum(split.num_samples), "num_set_aside": 0}


def test_the_index_is_sorted_whatever_the_order_of_the_clips(clips, write_split):
    split = write_split(clips[::-1])
    assert split.clip_ids == [clip.clip_id for clip in clips]
    for index, clip in enumerate(clips):
        np.testing.assert_array_equal(split.read_window(index, 0, split.num_samples[index]), samples_of(clip))


def test_shards_hold_the_columns_that_are_promised(clips, write_split):
    (first, second), (third,) = (write_split(clips).read_shard(number).to_pylist() for number in range(2))
    for row, clip in zip((first, second, third), clips, strict=True):
        assert row.pop("audio") == to_pcm16(samples_of(clip)).tobytes()
        assert row == {
            "clip_id": clip.clip_id,
            "corpus": "test",
            "split": "train",
            "num_samples": len(samples_of(clip)),
            "captions": list(clip.captions),
            "keywords": [],
            "licence": "",
            "source": "",
        }


def test_every_caption_is_a_query_for_its_clip(clips, write_split):
    queries = write_split(clips).queries
    assert queries.schema == QUERIES
    assert queries.to_pylist() == [
        {"text": caption, "relevant_clip_ids": [clip.clip_id]} for clip in clips for caption in clip.captions
    ]


def test_windows_equal_the_decoded_file(tmp_path, make_clip, write_audio, write_split):
    path = write_audio(tmp_path / "exact.wav", 0.5)
    split = write_split([make_clip("exact.wav", partial(decode_file, path))])
    np.testing.assert_array_equal(
        split.read_window(0, 3_000, 5_000), np.concatenate(list(decode_file(path)))[3_000:8_000]
    )


@pytest.mark.parametrize("codec", CODECS)
def test_windows_equal_the_resampled_file_to_half_a_step(codec, tmp_path, make_clip, write_split):
    path = tmp_path / "other_rate.wav"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, (22_050, 2)), 44_100)
    split = write_split([make_clip("other_rate.wav", partial(decode_file, path))], codec)
    whole = np.concatenate(list(decode_file(path)))
    np.testing.assert_allclose(split.read_window(0, 0, len(whole)), whole, rtol=0, atol=0.5001 / 32_768)


def test_reading_allocates_no_memory_for_audio(make_clip, noise, write_split, tmp_path):
    write_split([make_clip(f"{seed}.wav", noise(2.0, seed)) for seed in range(4)])
    before = pa.total_allocated_bytes()
    split = stored_split.open_split(tmp_path / "store", "test/train")
    tables = [split.read_shard(number) for number in range(2)]
    assert sum(table.nbytes for table in tables) > 4 * 2 * 64_000
    assert len(split.open_clip(3).read()) == 2 * 64_000
    assert pa.total_allocated_bytes() - before < 64_000


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("index", "../../../private.arrow"), ("queries", "/etc/passwd"), ("sources", ".."), ("set_aside", ""),
        ("shards", ["below/clips.arrow"]), ("shards", ["clips\n.arrow"]), ("clips_of", "../other"),
        ("corpus", "../test"), ("split", "train/../train"), ("fingerprint", "../../x"), ("clips_fingerprint", "x'y"),
    ],
)  # fmt: skip
def test_a_manifest_names_nothing_outside_the_folder_of_its_split(field, value, clips, write_split, tmp_path):
    """Its names and fingerprints are parts of paths, of files that are read and of files that are written."""
    path = tmp_path / "store" / "test" / "train" / "manifest.json"
    write_split(clips)
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(UserError, match=rf"test/train/manifest.json: .*{re.escape(repr(value)[2:-2])}"):
        stored_split.open_split(tmp_path / "store", "test/train")


@pytest.mark.parametrize(
    ("column", "value"),
    [("shard", 7), ("shard", -1), ("offset", -1), ("num_bytes", -5), ("num_samples", -1), ("clip_id", "1.wav")],
)
def test_an_index_that_leads_out_of_its_shards_is_refused(column, value, clips, write_split):
    split = write_split(clips)
    path = split.store.path / split.manifest.get_path(split.manifest.index)
    rows = split.index.to_pylist()
    rows[1][column] = value
    path.unlink()  # it is still mapped
    write_arrow_table(path, pa.Table.from_pylist(rows, schema=INDEX))
    storage.clear_mapped_files()
    with pytest.raises(UserError, match="its index has clips that aren't in its shards: prepare this split again"):
        assert stored_split.open_split(split.store, split.name).index


def test_an_absent_or_empty_file_of_a_split_is_named(clips, write_split):
    split = write_split(clips)
    names = [split.manifest.index, split.manifest.queries, split.manifest.sources, *split.manifest.shards]
    paths = [split.store.path / split.manifest.get_path(name) for name in names]
    for path in paths:
        path.unlink()
    storage.clear_mapped_files()
    reads = (lambda: split.read_table("index", split.manifest), lambda: split.queries, lambda: split.sources,
             lambda: split.read_shard(0))  # fmt: skip
    for path, read in zip(paths, reads, strict=False):
        with pytest.raises(UserError, match=rf"{path.name} is absent; prepare this split again: python"):
            read()
        path.touch()
        with pytest.raises(UserError, match=rf"{path.name} is damaged: .*; prepare this split again: python"):
            read()


def test_a_torn_stored_clip_is_named(clips, write_split):
    split = write_split(clips)
    with pytest.raises(UserError, match=r"test/train/1.wav: holds .* prepare this split again"):
        split.read_window(1, 0, split.num_samples[1] + 1)


def test_the_fingerprint_looks_at_contents_alone(clips, write_split, tmp_path):
    fingerprint = write_split(clips).fingerprint
    assert re.fullmatch("[0-9a-f]{16}", fingerprint)
    assert write_split(clips, store=tmp_path / "flac", codec="flac").fingerprint == fingerprint
    assert write_split(clips[::-1], store=tmp_path / "reversed").fingerprint == fingerprint
    assert write_split(clips, store=tmp_path / "deep" / "down").fingerprint == fingerprint


def test_the_fingerprint_changes_with_what_can_change_a_result(clips, make_clip, write_split, tmp_path):
    samples, captions = samples_of(clips[0]), clips[0].captions
    other_sample = samples.copy()
    other_sample[-1] += 1 / 32_768
    firsts = {
        "nothing": make_clip("0.wav", samples, captions),
        "a sample": make_clip("0.wav", other_sample, captions),
        "the length": make_clip("0.wav", np.append(samples, np.float32(0)), captions),
        "a caption": make_clip("0.wav", samples, ("A dog barked.", captions[1])),
        "the captions' order": make_clip("0.wav", samples, captions[::-1]),
        "a caption's end": make_clip("0.wav", samples, ("A dog barks.A hound", " woofs.")),
        "the id": make_clip("9.wav", samples, captions),
    }
    fingerprints = {
        what: write_split([clip, *clips[1:]], store=tmp_path / what).fingerprint for what, clip in firsts.items()
    }
    fingerprints["a clip fewer"] = write_split(clips[1:], store=tmp_path / "fewer").fingerprint
    assert len(set(fingerprints.values())) == len(fingerprints)
    assert fingerprints["nothing"] == write_split(clips).fingerprint


def test_clips_that_cannot_be_decoded_are_set_aside_and_named(clips, make_clip, write_audio, write_split, tmp_path):
    path = write_audio(tmp_path / "torn.flac", 0.5)
    path.write_bytes(path.read_bytes()[:2_000])
    text = tmp_path / "text.wav"
    text.write_text("not audio")
    broken = [make_clip(file.name, partial(decode_file, file)) for file in (path, text)]
    split = write_split([broken[0], *clips, broken[1]])
    assert split.clip_ids == [clip.clip_id for clip in clips]
    assert split.fingerprint == write_split(clips, store=tmp_path / "good").fingerprint
    assert split.manifest.num_clips == 3
    torn, text = split.set_aside
    assert (torn.origin, torn.kind, torn.file) == ("table.csv, torn.flac", "undecodable", "torn.flac")
    assert "can't be decoded" in torn.reason or "truncated" in torn.reason
    assert (text.origin, text.kind, text.file) == ("table.csv, text.wav", "undecodable", "text.wav")
    assert "can't be decoded" in text.reason


def test_a_shard_may_hold_no_clip_that_can_be_decoded(clips, make_clip, write_split, tmp_path):
    (tmp_path / "text.wav").write_text("not audio")
    broken = [make_clip(name, partial(decode_file, tmp_path / "text.wav")) for name in ("x.wav", "y.wav")]
    assert write_split([*broken, *clips]).clip_ids == [clip.clip_id for clip in clips]


def test_a_shard_of_many_record_batches_is_one_table(clips, write_split, monkeypatch):
    monkeypatch.setattr(shard_writer, "HELD_BYTES", 1)
    split = write_split(clips)
    assert split.clip_ids == [clip.clip_id for clip in clips]
    np.testing.assert_array_equal(split.read_window(2, 0, split.num_samples[2]), samples_of(clips[2]))


def test_a_split_without_a_manifest_is_not_there(clips, write_split, tmp_path):
    write_split(clips)
    shard_writer.write_shard(tmp_path / "store" / "test" / "dev" / "clips-00000.arrow", "test", "dev", clips, "pcm16")
    with pytest.raises(UserError, match=r"holds no split 'test/dev' \(it holds: test/train\); .*data/prepare.py test "):
        stored_split.open_split(tmp_path / "store", "test/dev")


def test_an_absent_store_holds_nothing(tmp_path):
    with pytest.raises(UserError, match=r"holds no split 'clotho/validation' \(it holds: nothing\)"):
        stored_split.open_split(tmp_path / "absent", "clotho/validation")


@pytest.mark.parametrize("version", [0, 1, 3, "2", None])
def test_another_format_version_is_refused_with_the_remedy(version, clips, write_split, tmp_path):
    path = folder_of(write_split(clips)) / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": version}))
    with pytest.raises(
        UserError, match=rf"version {version}, .* prepare it again: python data/prepare.py test --store"
    ):
        stored_split.open_split(tmp_path / "store", "test/train")


def test_a_torn_manifest_is_named(clips, write_split, tmp_path):
    path = folder_of(write_split(clips)) / "manifest.json"
    path.write_text(path.read_text()[:40])
    with pytest.raises(UserError, match=r"manifest.json isn't a JSON object .* prepare this split again"):
        stored_split.open_split(tmp_path / "store", "test/train")


def test_an_error_leaves_no_file_behind_and_the_old_one_as_it_was(clips, make_clip, tmp_path):
    path = tmp_path / "clips-00000.arrow"
    shard_writer.write_shard(path, "test", "train", clips, "pcm16")
    before = path.read_bytes()
    defect = make_clip("defect.wav", partial(int, "no samples"))
    with pytest.raises(ValueError, match="no samples"):
        shard_writer.write_shard(path, "test", "train", [*clips, defect], "pcm16")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["clips-00000.arrow", "clips-00000.json"]
    assert path.read_bytes() == before


def test_paraphrases_are_found_by_clip_and_caption(clips, write_split):
    table = [Paraphrase(clips[0].clip_id, "A dog barks.", ("a hound woofs", "a dog yaps"), "grammar")]
    split = write_split(clips, paraphrases=table)
    assert list(split.read_paraphrases().values()) == [["a hound woofs", "a dog yaps"]]
    assert {clip_id for clip_id, _ in split.read_paraphrases()} == {clips[0].clip_id}


def test_a_split_without_paraphrases_says_so(clips, write_split):
    with pytest.raises(UserError, match=r"test/train has no paraphrases .* set the paraphrase probability to 0"):
        write_split(clips).read_paraphrases()


def test_the_fingerprint_of_paraphrases_looks_at_contents_alone(clips, write_split):
    table = [Paraphrase(clip.clip_id, clip.captions[0], ("one", "two"), "grammar") for clip in clips]
    split = write_split(clips, paraphrases=table)
    fingerprint, contents = split.compute_paraphrases_fingerprint(), split.fingerprint
    split_writer.write_paraphrases(folder_of(split), table[::-1])
    assert split.compute_paraphrases_fingerprint() == fingerprint
    for changed in (table[1:], [Paraphrase(clips[0].clip_id, "A dog barks.", ("one", "too"), "grammar"), *table[1:]]):
        split_writer.write_paraphrases(folder_of(split), changed)
        assert split.compute_paraphrases_fingerprint() != fingerprint
    assert split.fingerprint == contents


def test_what_a_corpus_set_aside_is_kept(clips, write_split):
    absent = SkippedItem("table.csv, line 7", "x.wav is absent", "absent", "x.wav")
    split = write_split(clips, set_aside=(absent,))
    assert split.set_aside == [absent]
    assert split.manifest.num_set_aside == 1


@pytest.mark.parametrize("codec", CODECS)
def test_a_clip_longer_than_what_is_held_in_memory_is_stored_alike(codec, clips, write_split, monkeypatch, tmp_path):
    usual = write_split(clips, codec)
    contents = [usual.open_clip(clip).read() for clip in range(3)]
    monkeypatch.setattr(shard_writer, "HELD_BYTES", 10_000)
    monkeypatch.setattr(shard_writer, "PIECE_BYTES", 3_000)
    split = write_split(clips, codec, store=tmp_path / "piecewise")
    assert [split.open_clip(clip).read() for clip in range(3)] == contents
    assert [row["audio"] for row in split.read_shard(0).to_pylist()] == contents[:2]
    assert split.fingerprint == usual.fingerprint
    assert sorted(path.suffix for path in folder_of(split).iterdir()) == [".arrow"] * 6 + [".json"] * 3


def test_a_new_write_replaces_the_split_as_a_whole(clips, make_clip, noise, write_split):
    before = write_split(clips)
    files = {path.name for path in folder_of(before).iterdir()}
    after = write_split([make_clip("new.wav", noise(0.1))])
    assert after.clip_ids == ["test/train/new.wav"]
    left = {path.name for path in folder_of(after).iterdir()}
    assert left & files <= {"manifest.json", *(getattr(after.manifest, kind) for kind in ("set_aside", "sources"))}
    assert left - {"manifest.json"} == {
        *(getattr(after.manifest, kind) for kind in ("index", "queries", "set_aside", "sources")),
        *after.manifest.shards,
        *(name.replace(".arrow", ".json") for name in after.manifest.shards),
    }


def test_a_new_write_keeps_the_paraphrases(clips, write_split):
    table = [Paraphrase(clips[0].clip_id, "A dog barks.", ("a hound woofs",), "grammar")]
    folder = folder_of(write_split(clips, paraphrases=table))
    (folder / "notes.txt").write_text("mine")
    assert len(write_split(clips[:2]).read_paraphrases()) == 1
    assert (folder / "notes.txt").exists()


def test_shards_are_named_by_what_they_are_made_from(clips, make_clip, noise):
    names = {
        shard_writer.build_shard_name(0, clips, "pcm16"),
        shard_writer.build_shard_name(0, clips, "flac"),
        shard_writer.build_shard_name(1, clips, "pcm16"),
        shard_writer.build_shard_name(0, clips[:2], "pcm16"),
        shard_writer.build_shard_name(
            0, [make_clip("0.wav", noise(1), clips[0].captions, revision="2"), *clips[1:]], "pcm16"
        ),
        shard_writer.build_shard_name(0, [make_clip("0.wav", noise(1), ["Other."]), *clips[1:]], "pcm16"),
    }
    assert len(names) == 6
    elsewhere = [dataclasses.replace(clip, origin="another table") for clip in clips]
    assert shard_writer.build_shard_name(0, elsewhere, "pcm16") in names


def test_a_shard_is_there_when_its_summary_is(clips, tmp_path):
    path = tmp_path / "clips-00000.arrow"
    assert shard_writer.read_summary(path) is None
    summary = shard_writer.write_shard(path, "test", "train", clips, "pcm16")
    assert shard_writer.read_summary(path) == summary
    contents, described = path.read_bytes(), path.with_suffix(".json").read_bytes()
    path.write_bytes(contents[:-100])
    assert shard_writer.read_summary(path) is None
    path.write_bytes(contents)
    for torn in (b"", b"{}", described[:50]):
        path.with_suffix(".json").write_bytes(torn)
        assert shard_writer.read_summary(path) is None
    path.with_suffix(".json").write_bytes(described)
    assert shard_writer.read_summary(path) == summary
    path.unlink()
    assert shard_writer.read_summary(path) is None


def test_a_shard_with_clips_that_an_earlier_decoder_skipped_is_written_again(clips, tmp_path):
    torn = dataclasses.replace(clips[0], clip_id="torn", load=refuse)
    for parts, is_current in ((clips, True), ((*clips, torn), False)):
        path = tmp_path / shard_writer.build_shard_name(0, parts, "flac")
        shard_writer.write_shard(path, "a", "b", parts, "flac")
        assert shard_writer.read_summary(path)
        summary = json.loads(path.with_suffix(".json").read_text())
        del summary["decoder"], summary["warnings"]  # as before these fields
        path.with_suffix(".json").write_text(json.dumps(summary))
        assert bool(shard_writer.read_summary(path)) == is_current


def refuse():
    raise AudioError("torn")


def test_warnings_are_kept_with_the_clips(make_clip, write_split, tmp_path):
    soundfile.write(tmp_path / "loud.wav", np.full(3_200, 2.0), SAMPLE_RATE_HZ, subtype="FLOAT")
    clip = make_clip("loud", np.zeros(1, np.float32))
    split = write_split([dataclasses.replace(clip, load=partial(decode_file, tmp_path / "loud.wav"))])
    ((clip_id, (warning,)),) = split.read_warnings().items()
    assert clip_id == clip.clip_id
    assert warning.startswith("its peak is 2.00 times full scale")


def test_queries_may_have_several_clips_or_none(clips, write_split):
    ids = [clip.clip_id for clip in clips]
    queries = (Query("Both.", tuple(ids[:2])), Query("None."), Query("Both.", (ids[2],)))
    split = write_split(clips, queries=queries)
    assert split.queries.to_pylist() == [
        {"text": query.text, "relevant_clip_ids": list(query.relevant_clip_ids)} for query in queries
    ]
    assert split.manifest.num_queries == 3
    assert split.fingerprint != write_split(clips).fingerprint


def test_a_query_loses_clips_that_are_not_there_and_is_set_aside_with_the_last(clips, write_split):
    here, gone = clips[0].clip_id, "test/train/gone.wav"
    split = write_split(clips, queries=(Query("One left.", (gone, here)), Query("None left.", (gone,))))
    assert split.queries.to_pylist() == [{"text": "One left.", "relevant_clip_ids": [here]}]
    assert [aside.origin for aside in split.set_aside] == ["query 'One left.'", "query 'None left.'"]
    assert {aside.reason for aside in split.set_aside} == {f"its clip {gone} doesn't exist"}


@pytest.fixture
def views(clips, write_split, tmp_path):
    """A split with queries about the clips of another one."""

    def write():
        queries = (Query("Two of them.", tuple(clip.clip_id for clip in clips[:2])),)
        folder = tmp_path / "store" / "test" / "views"
        folder.mkdir(parents=True, exist_ok=True)
        split_writer.write_split(folder, Split("test", "views", (), queries=queries, clips_of="train"), "pcm16", [])
        return stored_split.open_split(tmp_path / "store", "test/views")

    write_split(clips)
    return write


def test_queries_can_be_about_another_splits_clips(views, clips):
    split = views()
    assert split.name == "test/views"
    assert split.clip_ids == [clip.clip_id for clip in clips]
    assert split.queries["text"].to_pylist() == ["Two of them."]
    np.testing.assert_array_equal(split.read_window(1, 0, split.num_samples[1]), samples_of(clips[1]))


def test_queries_about_clips_that_have_changed_are_refused(views, clips, write_split, tmp_path):
    fingerprint = views().fingerprint
    write_split(clips[:2])
    with pytest.raises(UserError, match=r"test/views was prepared for a different version of test/train; prepare"):
        stored_split.open_split(tmp_path / "store", "test/views")
    assert views().fingerprint != fingerprint


def samples_of(clip):
    """All samples of a clip that isn't stored."""
    return np.concatenate(list(clip.load()))


def folder_of(split):
    return split.store.path / split.name


def test_mapped_files_stay_readable_when_the_split_is_prepared_again(clips, make_clip, noise, write_split, tmp_path):
    """As under a training that is running. Fails without `map_files`: the shards are read by name."""
    split = write_split(clips)
    split.map_files()
    expected = [samples_of(clip) for clip in clips]
    again = write_split([make_clip("other.wav", noise(0.3, 9), ("Other.",))])
    folder = tmp_path / "store" / split.name
    assert not any((folder / name).exists() for name in split.manifest.shards)
    assert again.clip_ids != split.clip_ids
    for index, samples in enumerate(expected):
        np.testing.assert_array_equal(split.read_window(index, 0, len(samples)), samples)
    assert len(split.queries) == 6

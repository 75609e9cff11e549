"""What isn't trained on: by the ids of held-out recordings, by published lists, and by sound."""

import itertools
import json

import pytest

from data.errors import UserError
from data.leakage import duplicates, exclusions
from data.preparation import describe
from data.schema import DUPLICATES, Split
from data.store import shard_writer, split_writer
from data.store.files import write_arrow_table
from data.store.storage import Store
from data.store.stored_split import open_split

import pyarrow as pa  # isort: skip


@pytest.fixture
def write(make_clip, noise, tmp_path):
    """A function that writes a split of short clips, one for each source, into a store."""

    def write(name, sources, listed=(), store=tmp_path / "store"):
        corpus, _, split = name.partition("/")
        clips = tuple(make_clip(f"{number}", noise(0.01), source=source) for number, source in enumerate(sources))
        clips = tuple(type(clip)(**{**vars(clip), "clip_id": f"{name}/{number}"}) for number, clip in enumerate(clips))
        folder = store / name
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / shard_writer.build_shard_name(0, clips, "pcm16")
        summary = shard_writer.write_shard(path, corpus, split, clips, "pcm16")
        described = Split(corpus, split, clips, sources=frozenset([*filter(None, sources), *listed]))
        split_writer.write_split(folder, described, "pcm16", [summary])
        return store

    return write


PARTS = {
    "clotho/development": (["freesound:1", "freesound:2"], []),
    "clotho/validation": (["freesound:3", ""], ["freesound:33"]),
    "clotho/evaluation": (["freesound:4"], []),
    "clotho/challenge": (["freesound:5"], []),
    "audiocaps/train": (["youtube:aaaaaaaaaaa", "youtube:bbbbbbbbbbb"], []),
    "audiocaps/test": (["youtube:ccccccccccc"], ["youtube:ddddddddddd"]),
    "wavcaps/FreeSound": ([f"freesound:{number}" for number in (1, 3, 33, 4, 5, 6, 7)], []),
    "wavcaps/AudioSet_SL": ([f"youtube:{letter * 11}" for letter in "acdx"], []),
}

EXPECTED = {
    "wavcaps/FreeSound/1": "freesound:3 is a source of clotho/validation",
    "wavcaps/FreeSound/2": "freesound:33 is a source of clotho/validation",  # of a row without a file
    "wavcaps/FreeSound/3": "freesound:4 is a source of clotho/evaluation",
    "wavcaps/FreeSound/4": "freesound:5 is a source of clotho/challenge",
    "wavcaps/AudioSet_SL/1": "youtube:ccccccccccc is a source of audiocaps/test",
    "wavcaps/AudioSet_SL/2": "youtube:ddddddddddd is a source of audiocaps/test",
}


def test_recordings_on_both_sides_of_a_split_of_one_corpus_are_reported_and_not_excluded(write):
    for name, sources in {
        "clotho/development": ["freesound:1", "freesound:2", "", "freesound:1"],
        "clotho/validation": ["freesound:1", "", "freesound:7"],
        "clotho/evaluation": ["freesound:2", "freesound:7"],
        "audiocaps/train": ["youtube:aaaaaaaaaaa"],
    }.items():
        store = write(name, sources)
    exclusions.update_exclusions(store)
    assert not reasons(store)
    (line,) = describe.format_exclusions(store)
    assert line.startswith("clotho: 2 recordings are both in a training split and in a held-out split as published")
    num_captions = sum(len(captions) for row, captions in enumerate(development_captions(store)) if row != 2)
    assert f"({num_captions} training captions; not excluded)" in line
    for clip in ("development/0", "development/1", "development/3", "validation/0", "evaluation/0"):
        assert f"clotho/{clip}" in line
    assert "freesound:7" not in line


def development_captions(store):
    return open_split(store, "clotho/development").captions


def reasons(store):
    return {row["clip_id"]: row["reason"] for row in exclusions.read_exclusions(store).to_pylist()}


def test_clips_made_from_held_out_recordings_of_other_corpora_are_excluded(write):
    for name, sources in PARTS.items():
        store = write(name, *sources)
    exclusions.update_exclusions(store)
    assert reasons(store) == EXPECTED
    assert exclusions.read_excluded_ids(store, ["wavcaps/AudioSet_SL", "clotho/development"]) == {
        "wavcaps/AudioSet_SL/1",
        "wavcaps/AudioSet_SL/2",
    }
    assert exclusions.read_excluded_ids(store, ["clotho/development", "audiocaps/train"]) == frozenset()


def test_a_split_that_came_since_is_not_trained_on(write):
    for name in ("clotho/validation", "wavcaps/FreeSound"):
        store = write(name, *PARTS[name])
    with pytest.raises(UserError, match="the exclusions don't match the splits"):
        exclusions.read_excluded_ids(store, ["wavcaps/FreeSound"])
    exclusions.update_exclusions(store)
    assert len(exclusions.read_excluded_ids(store, ["wavcaps/FreeSound"])) == 2
    write("clotho/evaluation", *PARTS["clotho/evaluation"])
    with pytest.raises(UserError, match="the exclusions don't match the splits"):
        exclusions.read_excluded_ids(store, ["wavcaps/FreeSound"])


def test_the_order_of_preparation_changes_nothing(write, tmp_path):
    names = ["clotho/validation", "wavcaps/FreeSound", "clotho/evaluation"]
    found = []
    for order in itertools.permutations(names):
        store = tmp_path / "-".join(order).replace("/", "_")
        for name in order:
            write(name, *PARTS[name], store=store)
            exclusions.update_exclusions(store)
        found.append((store / "exclusions.arrow").read_bytes())
    assert len(set(found)) == 1
    assert len(reasons(store)) == 3


def test_lists_are_about_crawled_corpora_alone(write, tmp_path):
    for name in ("clotho/development", "wavcaps/FreeSound", "audiocaps/train", "wavcaps/AudioSet_SL"):
        store = write(name, *PARTS[name])
    blacklist = tmp_path / "blacklist.json"
    blacklist.write_text(json.dumps({"AudioSet": ["Yaaaaaaaaaaa.wav"], "FreeSound": [1, "6"]}))
    plain = tmp_path / "plain.txt"
    plain.write_text("7\nyoutube:xxxxxxxxxxx\n")
    exclusions.set_exclusion_lists(store, [blacklist], keep=True)
    exclusions.set_exclusion_lists(store, [plain], keep=True)
    exclusions.update_exclusions(store)
    assert reasons(store) == {
        "wavcaps/FreeSound/0": "freesound:1 is listed in blacklist.json",
        "wavcaps/FreeSound/5": "freesound:6 is listed in blacklist.json",
        "wavcaps/FreeSound/6": "freesound:7 is listed in plain.txt",
        "wavcaps/AudioSet_SL/0": "youtube:aaaaaaaaaaa is listed in blacklist.json",
        "wavcaps/AudioSet_SL/3": "youtube:xxxxxxxxxxx is listed in plain.txt",
    }
    exclusions.set_exclusion_lists(store, [plain], keep=False)
    exclusions.update_exclusions(store)
    assert sorted(reasons(store)) == ["wavcaps/AudioSet_SL/3", "wavcaps/FreeSound/6"]


@pytest.mark.parametrize(("wanted", "expected"), [(b"yes", {"wavcaps/FreeSound/5"}), (b"no", set())])
def test_same_sounds_are_excluded_if_wanted(wanted, expected, write):
    store = write("wavcaps/FreeSound", *PARTS["wavcaps/FreeSound"])
    row = ("wavcaps/FreeSound/5", "wavcaps/FreeSound", "clotho/evaluation/0", 12.5, 0.9)
    table = pa.Table.from_pylist([dict(zip(DUPLICATES.names, row, strict=True))], schema=DUPLICATES)
    write_arrow_table(store / "duplicates.arrow", table.replace_schema_metadata({"exclude_duplicates": wanted}))
    exclusions.update_exclusions(store)
    assert set(reasons(store)) == expected


@pytest.mark.parametrize("exclude", [True, False])
def test_duplicates_that_are_to_be_excluded_are_looked_for_again_after_another_split(exclude, write):
    write("wavcaps/FreeSound", *PARTS["wavcaps/FreeSound"])
    store = write("clotho/development", *PARTS["clotho/development"])
    duplicates.write_duplicates(Store.of(store), [], exclude)
    exclusions.update_exclusions(store)
    assert exclusions.read_excluded_ids(store, ["wavcaps/FreeSound"]) == frozenset()
    write("clotho/validation", *PARTS["clotho/validation"])
    exclusions.update_exclusions(store)
    assert "splits prepared since haven't been searched" in describe.format_duplicates(store)[-1]
    if exclude:
        with pytest.raises(UserError, match="duplicates --exclude-duplicates --store"):
            exclusions.read_excluded_ids(store, ["wavcaps/FreeSound"])
    else:
        assert exclusions.read_excluded_ids(store, ["wavcaps/FreeSound"]) == {
            "wavcaps/FreeSound/1",
            "wavcaps/FreeSound/2",
        }


def test_the_fingerprint_stands_for_which_clips_of_the_splits_are_left_out(write):
    for name, sources in PARTS.items():
        store = write(name, *sources)
    exclusions.update_exclusions(store)
    nothing = exclusions.compute_exclusions_fingerprint(store, ["audiocaps/train"])
    some = exclusions.compute_exclusions_fingerprint(store, ["wavcaps/FreeSound"])
    assert nothing != some
    assert exclusions.compute_exclusions_fingerprint(store, ["clotho/development"]) == nothing
    assert exclusions.compute_exclusions_fingerprint(store, ["wavcaps/FreeSound", "clotho/development"]) == some


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("dcase.csv", "sound_id\n123\nNot found\n456\n", {"freesound:123", "freesound:456"}),
        ("dcase.csv", ",file_name,sound_id\n0,a.wav,123\n1,b.wav,Not found\n", {"freesound:123"}),
        ("plain.csv", "123\n456\n", {"freesound:123", "freesound:456"}),
        ("plain.txt", "\ufeff-abcdefghi_\nY0123456789a.wav\n\nbbc:NHU05000001\n",
         {"youtube:-abcdefghi_", "youtube:0123456789a", "bbc:NHU05000001"}),
        ("list.json", '{"AudioSet": ["Yabcdefghijk.wav", "12345678901"], "FreeSound": ["77", 78, "79.flac"]}',
         {"youtube:abcdefghijk", "youtube:12345678901", "freesound:77", "freesound:78", "freesound:79"}),
        ("list.json", "[1, 2]", {"freesound:1", "freesound:2"}),
        ("plain.txt", "freesound:00123\n00456\n", {"freesound:123", "freesound:456"}),
    ],
)  # fmt: skip
def test_published_lists_are_read_in_each_of_their_forms(name, text, expected, tmp_path):
    path = tmp_path / name
    path.write_text(text, "utf-8")
    assert exclusions.read_exclusion_list(path) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "list contains no ids"),
        ("sound_id\nfoo bar\n", r"list, row 2: 'foo bar' is neither a Freesound nor a YouTube id"),
        ("a,b\n1,2\n", "list: no column of ids; the header must contain one of: sound_id"),
        ('{"Vimeo": ["1"]}', "list: unknown key 'Vimeo'; known: AudioSet, FreeSound"),
        ('{"FreeSound": "1"}', "list: 'FreeSound' must hold a list of ids"),
        ('{"FreeSound": [1,\n}', "list, line 2: not JSON"),
        ('{"FreeSound": ["x"]}', "list, FreeSound, id 1: 'x' is neither"),
    ],
)
def test_what_is_not_a_list_of_ids_is_refused(text, said, tmp_path):
    (tmp_path / "list").write_text(text)
    with pytest.raises(UserError, match=said):
        exclusions.read_exclusion_list(tmp_path / "list")


def test_an_absent_list_and_one_in_another_encoding_are_refused(tmp_path):
    with pytest.raises(UserError, match="absent can't be read: No such file"):
        exclusions.read_exclusion_list(tmp_path / "absent")
    (tmp_path / "latin").write_bytes("märkt".encode("latin-1"))
    with pytest.raises(UserError, match="latin isn't UTF-8"):
        exclusions.read_exclusion_list(tmp_path / "latin")

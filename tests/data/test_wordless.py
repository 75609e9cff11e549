"""Captions without a word are in no store: not as captions, not as queries, not as paraphrases."""

import shutil
from dataclasses import replace

import pytest

from data import corpora
from data.captions import has_word
from data.errors import UserError
from data.preparation.wordless import drop_wordless
from data.schema import Paraphrase, Query, Split
from data.store.stored_split import open_split

TABLE = """file_name,caption,split
a.wav,A dog barks.,train
a.wav,...,train
a.wav,?,train
b.wav,-,train
b.wav,"\u200b!",train
c.wav,Rain falls.,validation
d.wav,A cat.,test
d.wav,\u2026,test
"""


@pytest.mark.parametrize("caption", ["...", "?", "", " ", "- \u2013 \u2014", "\u200b", "(!)", "\u2764\ufe0f"])
def test_no_word(caption):
    assert not has_word(caption)


@pytest.mark.parametrize("caption", ["A", "5", "\u00e9t\u00e9", "\u72d7", "...a"])
def test_a_word(caption):
    assert has_word(caption)


def test_they_are_skipped_with_table_and_line_and_all_else_is_stored(write_audio, call_command, tmp_path):
    source, store = tmp_path / "library", tmp_path / "store"
    for seed, name in enumerate("abcd"):
        write_audio(source / f"{name}.wav", 0.2, seed)
    (source / "captions.csv").write_text(TABLE)
    done = call_command("data/prepare.py", "folder", "--source", source, "--store", store)
    assert done.returncode == 0, done.stderr
    train = open_split(store, "folder/train")
    assert list(train.clip_ids) == ["folder/train/a.wav"]
    assert train.captions == [["A dog barks."]]
    assert open_split(store, "folder/test").captions == [["A cat."]]
    table = source / "captions.csv"
    for number, reason in (
        (3, "caption '...' has no word"),
        (4, "caption '?' has no word"),
        (5, "none of its captions has a word: '-', '\\u200b!'"),
        (9, "caption '\u2026' has no word"),
    ):
        (line,) = [line for line in done.stderr.splitlines() if f"skipped: {table}, line {number}" in line]
        assert line.endswith(reason)
    listed = call_command("data/prepare.py", "describe", "--list", "--store", store)
    assert listed.stdout.count("has no word") + listed.stderr.count("has no word") == 3


@pytest.mark.parametrize(
    ("corpus", "folder"), [("clotho", "clotho_v2"), ("audiocaps", "audiocaps"), ("wavcaps", "wavcaps")]
)
def test_every_corpus_as_it_is_published(corpus, folder, published, tmp_path):
    source = shutil.copytree(published / folder, tmp_path / corpus)
    texts = [text for split in corpora.load(corpus).read(source, 0) for clip in split.clips for text in clip.captions]
    text = next(text for text in texts if texts.count(text) == 1 and text.isascii() and '"' not in text)
    for table in (path for path in source.rglob("*") if path.suffix in (".csv", ".json")):
        table.write_bytes(table.read_bytes().replace(text.encode(), b"..."))
    splits = corpora.load(corpus).read(source, 0)
    before = [caption for split in splits for clip in split.clips for caption in clip.captions]
    kept = list(map(drop_wordless, splits))
    after = [caption for split in kept for clip in split.clips for caption in clip.captions]
    assert before.count("...") == 1
    assert after == [caption for caption in before if caption != "..."]
    (skipped,) = [item for split in kept for item in split.set_aside if "word" in item.reason]
    assert ", line " in skipped.origin or ", row " in skipped.origin


def test_a_split_without_any_word_is_refused(make_clip, noise):
    clip = make_clip("a.wav", noise(0.01), ["...", "?"])
    with pytest.raises(
        UserError, match=r"test/train: no caption of its 1 clips has a word \(the first is at table.csv"
    ):
        drop_wordless(Split("test", "train", (clip,)))


def test_what_a_challenge_consists_of_stays(make_clip, noise):
    """Its clips have no captions, and its queries no relevant clips: a submission needs all of them."""
    clip = make_clip("a.wav", noise(0.01), ())
    queries = (Query("..."), Query("A dog."))
    split = Split("test", "challenge", (clip,), queries=queries)
    assert drop_wordless(split) == replace(split, num_listed=1)
    of_clips = replace(split, queries=(Query("?", (clip.clip_id,)), Query("A dog.", (clip.clip_id,))))
    dropped = drop_wordless(of_clips)
    assert [query.text for query in dropped.queries] == ["A dog."]
    assert [(item.origin, item.reason) for item in dropped.set_aside] == [("query '?'", "has no word")]


def test_paraphrases_without_a_word_are_not_stored(make_clip, noise, write_split):
    texts = ["A dog.", "A cat."]
    variants = [("...", "a hound"), ("?",)]
    rows = [Paraphrase("test/train/a.wav", *pair, "x") for pair in zip(texts, variants, strict=True)]
    split = write_split([make_clip("a.wav", noise(0.01), texts)], paraphrases=rows)
    assert [row["variants"] for row in split.read_paraphrases_table().to_pylist()] == [["a hound"]]


def test_such_captions_of_an_older_store_are_not_asked_about(make_clip, noise, write_split, chat_server, call_command):
    split, server = write_split([make_clip("a.wav", noise(0.01), ["A dog barks.", "..."])]), chat_server()
    words = (
        "test",
        "--split",
        "train",
        "--store",
        split.store.path,
        "--model",
        "parrot",
        "--base-url",
        server.base_url,
    )
    done = call_command("data/paraphrase.py", *words)
    assert "5 paraphrases of 1 of 1 captions" in done.stderr
    assert len(server.log()["tries"]) == 1

"""Which splits a sweep pretrains on, fine-tunes on and is judged by."""

import pytest

from data.errors import UserError
from data.schema import Split
from data.splits import Splits, find_splits
from data.store import split_writer
from data.store.storage import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store of three corpora whose splits are empty."""
    folder = tmp_path_factory.mktemp("store")
    splits = {
        "clotho": ("development", "validation", "evaluation"),
        "audiocaps": ("train", "val", "test"),
        "wavcaps": ("FreeSound", "SoundBible"),
    }
    for corpus, names in splits.items():
        for name in names:
            split_writer.write_split(folder / corpus / name, Split(corpus, name, ()), "pcm16", [])
    return Store.of(folder)


CLOTHO = Splits("clotho/development", "clotho/validation", "clotho/evaluation", ("clotho/development",))


def test_a_corpus_is_pretrained_on_its_own_split_to_train_on(store):
    assert find_splits("clotho", store) == CLOTHO


def test_corpora_to_pretrain_on_are_all_their_splits_as_in_the_paper(store, caplog):
    found = find_splits("clotho", store, ["clotho", "audiocaps", "wavcaps"], [])
    assert found.pretrain == (
        "clotho/development",
        "audiocaps/train",
        "audiocaps/val",
        "audiocaps/test",
        "wavcaps/FreeSound",
        "wavcaps/SoundBible",
    )
    assert found.train == "clotho/development"
    assert "wavcaps/AudioSet_SL isn't in the store" in caplog.text


def test_splits_are_held_out_by_a_setting(store):
    found = find_splits("clotho", store, ["clotho", "audiocaps"], ["audiocaps/val", "audiocaps/test"])
    assert found.pretrain == ("clotho/development", "audiocaps/train")


def test_a_split_is_named_as_it_is(store):
    found = find_splits("audiocaps", store, ["wavcaps/FreeSound", "audiocaps/train"], [])
    assert found == Splits(
        "audiocaps/train", "audiocaps/val", "audiocaps/test", ("wavcaps/FreeSound", "audiocaps/train")
    )


@pytest.mark.parametrize(
    ("corpus", "pretrain_on", "hold_out", "said"),
    [
        ("wavcaps", [], [], "wavcaps has no validation split; name it with --pretrain-on"),
        ("clotho", ["clotho", "synthetic"], [], "the store holds none of synthetic/development; prepare it"),
        ("clotho", ["clotho"], ["audiocaps/val"], "--hold-out audiocaps/val: it isn't one of the pretraining splits"),
        ("clotho", ["wavcaps/BBC_Sound_Effects"], [], "holds no split 'wavcaps/BBC_Sound_Effects'"),
        ("audiocaps", ["audiocaps"], [], "audiocaps/test, audiocaps/val would be used both for training and"),
        ("clotho", ["cloto"], [], "unknown corpus 'cloto'"),
    ],
)
def test_what_cannot_be_is_refused(corpus, pretrain_on, hold_out, said, store):
    with pytest.raises(UserError, match=said):
        find_splits(corpus, store, pretrain_on, hold_out)

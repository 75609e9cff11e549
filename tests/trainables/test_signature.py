"""Signatures: what they stand for, what they don't, and that they stay as they are."""

import dataclasses
import json
import runpy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from data.corpora import synthetic
from data.errors import UserError
from data.leakage.exclusions import EXCLUSIONS_FILE
from data.schema import EXCLUSIONS, Split
from data.store.files import write_arrow_table
from data.store.storage import Store, upload_store
from data.store.stored_split import open_split
from trainables.encoders.audio import passt
from trainables.encoders.text import huggingface
from trainables.schedule import Plateau, Schedule
from trainables.signature import compute_signature, read_fingerprints, sign
from trainables.trial import Trial

Stores = Callable[..., Path]


@pytest.fixture(scope="module")
def splits() -> list[Split]:
    """Two, one and one clips, rendered once."""
    read = synthetic.read(None, config=synthetic.Config(2, 1, 1, 5.0, 5.0))
    return [replace(split, clips=tuple(map(rendered, split.clips))) for split in read]


def rendered(clip):
    blocks = list(clip.load())
    return replace(clip, load=lambda: iter(blocks))


@pytest.fixture
def stored(splits, write_split, tmp_path) -> Stores:
    """Writes a store, its development split changed by `change`."""

    def write(name: str, codec: str = "pcm16", change: Callable[[Split], Split] = lambda split: split) -> Path:
        for split in splits:
            write_split(tmp_path / name, change(split) if split.name == "development" else split, codec)
        return tmp_path / name

    return write


def test_where_and_how_clips_are_stored_is_not_signed(stored, fine_tuning):
    signatures = {
        compute_signature(fine_tuning, stored(name, codec)) for name, codec in (("a", "flac"), ("b", "pcm16"))
    }
    assert len(signatures) == 1
    assert len(signatures.pop()) == 16


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"schedule": Schedule(3.1e-3, 1e-4, 2)},
        {"schedule": Schedule(3e-3, 1e-4, 3)},
        {"precision": "bfloat16"},
        {"batch_size": 9},
        {"temperature": 0.2},
        {"fixed_temperature": True},
        {"schedule": Plateau(3e-3, 1e-4, 2, 0.1, 5, 0.0, 0.0, 10, 60)},
        {"paraphrase_probability": 0.2},
        {"longest_audio_s": 5.0},
        {"train": ("synthetic/development", "synthetic/evaluation")},
        {"validation": "synthetic/development"},
        {"test": "synthetic/development"},
        {"pretraining": None},
        {"audio_rate_share": 0.5},
        {"text_rate_share": 0.5},
        {"layer_decay": 0.5},
    ],
    ids=str,
)
def test_what_can_change_a_result_is_signed(stored, fine_tuning, change):
    store = stored("store")
    assert compute_signature(replace(fine_tuning, **change), store) != compute_signature(fine_tuning, store)


def test_encoders_are_signed(stored, trial):
    store = stored("store")
    changed = [
        trial,
        replace(trial, audio=replace(trial.audio, dropout=0.2)),
        replace(trial, audio=replace(trial.audio, front_end=replace(trial.audio.front_end, mask_mels=9))),
        replace(trial, text=replace(trial.text, dropout=0.2)),
        replace(trial, embedding_size=8),
        replace(trial, audio=passt.VARIANTS["N"]),
        replace(trial, audio=replace(passt.VARIANTS["N"], pretrained=False)),
    ]
    assert len({compute_signature(one, store) for one in changed}) == len(changed)


def test_the_pretraining_is_signed(stored, fine_tuning):
    store = stored("store")
    other = replace(fine_tuning, pretraining=replace(fine_tuning.pretraining, seed=1))
    assert compute_signature(other, store) != compute_signature(fine_tuning, store)


def another_caption(split: Split) -> Split:
    """Its paraphrases are still there, under the old caption's hash."""
    first, *rest = split.clips
    corrected = replace(first, captions=("A corrected caption.", *first.captions[1:]))
    return replace(split, clips=(corrected, *rest))


def another_recording(split: Split) -> Split:
    first, *rest = split.clips
    return replace(split, clips=(replace(first, load=lambda: (block * 0.5 for block in first.load())), *rest))


def other_keywords(split: Split) -> Split:
    first, *rest = split.clips
    return replace(split, clips=(replace(first, keywords=("other",), licence="other"), *rest))


def other_paraphrases(split: Split) -> Split:
    first, *rest = split.paraphrases
    return replace(split, paraphrases=(replace(first, variants=("Another wording.",)), *rest))


def another_order(split: Split) -> Split:
    return replace(split, paraphrases=split.paraphrases[::-1])


@pytest.mark.parametrize(
    ("change", "probability", "is_signed"),
    [
        (another_caption, 0.0, True),
        (another_recording, 0.0, True),
        (other_keywords, 0.3, False),
        (other_paraphrases, 0.3, True),
        (other_paraphrases, 0.0, False),
        (another_order, 0.3, False),
    ],
)
def test_contents_are_signed_as_far_as_training_reads_them(stored, trial, change, probability, is_signed):
    one = replace(trial, paraphrase_probability=probability)
    before, after = compute_signature(one, stored("before")), compute_signature(one, stored("after", change=change))
    assert (before != after) == is_signed


def test_exclusions_of_what_is_trained_on_are_signed(stored, trial):
    store = stored("store")
    before = compute_signature(trial, store)
    for split, is_signed in (("synthetic/validation", False), ("synthetic/development", True)):
        row = {"clip_id": open_split(store, split).clip_ids[0], "split": split, "reason": "it is heard elsewhere"}
        write_arrow_table(store / EXCLUSIONS_FILE, pa.Table.from_pylist([row], schema=EXCLUSIONS))
        assert (compute_signature(trial, store) != before) == is_signed


def test_a_text_encoders_contents_are_signed_and_not_its_directory(stored, trial, tmp_path):
    store = stored("store")
    signatures = []
    for name, contents in (("here", b"weights"), ("there", b"weights"), ("elsewhere", b"others")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(contents)
        signatures.append(compute_signature(replace(trial, text=huggingface.Config(str(tmp_path / name))), store))
    assert signatures[0] == signatures[1] != signatures[2]


def test_a_pinned_revision_is_signed(stored, trial):
    store = stored("store")
    revisions: list[dict[str, Any]] = [{"revision": "a" * 40}, {"revision": "b" * 40}]
    assert (
        len(
            {
                compute_signature(replace(trial, text=huggingface.Config("some/model", **one)), store)
                for one in revisions
            }
        )
        == 2
    )


def test_a_trial_on_an_absent_split_is_answered_with_what_there_is(stored, trial):
    with pytest.raises(UserError, match=r"holds no split 'clotho/development' .*synthetic/development"):
        compute_signature(replace(trial, train=("clotho/development",)), stored("store"))


def test_paraphrases_that_are_asked_for_and_absent_are_an_error(stored, trial):
    store = stored("store")
    (store / "synthetic/development/paraphrases.arrow").unlink()
    with pytest.raises(UserError, match="has no paraphrases"):
        compute_signature(trial, store)
    compute_signature(replace(trial, paraphrase_probability=0.0), store)


# What a signature is a function of.


def test_signatures_and_defaults_are_as_they_were():
    """Where this fails, trials have other signatures or other defaults: golden_signatures.py says what to do."""
    module = runpy.run_path(str(Path(__file__).with_name("golden_signatures.py")))
    assert module["golden"]() == json.loads(module["FILE"].read_text())


@dataclass(frozen=True)
class Later(Trial):
    """A trial of a later version, with a setting more."""

    loudness_db: float = -20.0


def test_a_setting_that_is_added_later_changes_a_signature_only_where_it_is_not_at_its_default(stored, fine_tuning):
    fingerprints = read_fingerprints([fine_tuning], stored("store"))
    later = Later(**{field.name: getattr(fine_tuning, field.name) for field in dataclasses.fields(fine_tuning)})
    assert sign(later, fingerprints) == sign(fine_tuning, fingerprints)
    assert sign(replace(later, loudness_db=-10.0), fingerprints) != sign(fine_tuning, fingerprints)


def test_a_sweep_reads_as_much_of_a_store_as_one_trial(stored, fine_tuning, object_store):
    """Each request is counted that the object store answers."""
    upload_store(Store.of(stored("store")), object_store.uri("bucket/signed"))
    requests = []
    for seeds in (1, 6):
        trials = [replace(fine_tuning, seed=seed) for seed in range(seeds)]
        before = len(object_store.requests("GET|HEAD"))
        fingerprints = read_fingerprints(trials, object_store.uri("bucket/signed"))
        assert len({sign(trial, fingerprints) for trial in trials}) == seeds
        requests.append(len(object_store.requests("GET|HEAD")) - before)
    assert requests[1] <= requests[0]

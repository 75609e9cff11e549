"""A trial's config, and the signature that stands for what can change its result."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from data.corpora import synthetic
from data.errors import UserError
from data.leakage.exclusions import EXCLUSIONS_FILE
from data.schema import EXCLUSIONS, Split
from data.store.files import write_table
from data.store.stored_split import open_split
from trainables.encoders.audio import passt
from trainables.encoders.text import huggingface
from trainables.schedule import Plateau, Schedule
from trainables.trial import Trial, fastest_precision, from_json, signature, to_json

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


@pytest.fixture
def fine_tuning(trial) -> Trial:
    return replace(trial, pretraining=replace(trial, paraphrase_probability=0.0))


def test_a_trial_survives_json(trial, fine_tuning):
    twice = replace(fine_tuning, pretraining=fine_tuning)
    plateau = replace(trial, schedule=Plateau(3e-3, 1e-4, 2, 0.1, 5, 0.0, 0.0, 10, 60))
    final = replace(fine_tuning, final_epoch=1, pretraining=replace(fine_tuning.pretraining, final_epoch=2))
    for one in (trial, fine_tuning, twice, published(trial), plateau, final):
        assert from_json(json.loads(json.dumps(to_json(one)))) == one


def published(trial: Trial) -> Trial:
    return replace(trial, audio=passt.VARIANTS["S15"], text=huggingface.VARIANTS["roberta-large"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": "red"}, "colour"),
        ({"precision": "float16"}, "precision"),
        ({"batch_size": "many"}, "batch_size"),
        ({"batch_size": 1}, "batch_size is 1"),
        ({"audio": {"family": "vggish"}}, "known: cnn, cnn14, passt"),
    ],
)
def test_settings_that_a_trial_does_not_have_are_refused(trial, change, message):
    with pytest.raises(UserError, match=message):
        from_json(to_json(trial) | change)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"train": ()}, "at least one split"),
        ({"paraphrase_probability": -0.1}, "paraphrase_probability is -0.1"),
        ({"paraphrase_probability": 1.1}, "paraphrase_probability is 1.1"),
        ({"batch_size": 1}, "batch_size is 1"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"longest_audio_s": 0.0}, "longest_audio_s is 0.0"),
        ({"precision": "float16"}, "precision is 'float16': it must be float32 or bfloat16"),
        ({"seed": -1}, "seed is -1"),
        ({"final_epoch": 0}, "final_epoch is 0: it must be from 1 to epochs"),
        ({"final_epoch": 99}, "final_epoch is 99"),
        ({"final_epoch": 1, "schedule": Plateau(3e-3, 1e-4, 2, 0.1, 5, 0.0, 0.0, 10, 60)}, "goes by validation losses"),
        ({"embedding_size": 8}, "pretraining's encoders and embedding size"),
        ({"audio": passt.VARIANTS["tiny"]}, "pretraining's encoders and embedding size"),
        ({"text": huggingface.VARIANTS["bert-base"]}, "pretraining's encoders and embedding size"),
    ],
)
def test_settings_that_make_no_sense_are_refused(fine_tuning, setting, message):
    with pytest.raises(UserError, match=message):
        replace(fine_tuning, **setting)


def test_a_name_tells_trials_of_a_sweep_apart(trial, fine_tuning):
    other = replace(fine_tuning, paraphrase_probability=0.0, seed=3)
    assert (trial.stage, fine_tuning.stage) == ("pretraining", "fine-tuning")
    assert len({trial.name, fine_tuning.name, other.name, published(trial).name}) == 4
    assert published(trial).name == "passt:S15 huggingface:roberta-large rate 0.003 pretraining seed 0"


def test_the_fastest_precision_is_one_that_a_trial_can_have(trial):
    assert from_json(to_json(replace(trial, precision=fastest_precision()))).precision == fastest_precision()


# Signatures.


def test_where_and_how_clips_are_stored_is_not_signed(stored, fine_tuning):
    signatures = {signature(fine_tuning, stored(name, codec)) for name, codec in (("a", "flac"), ("b", "pcm16"))}
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
    ],
    ids=str,
)
def test_what_can_change_a_result_is_signed(stored, fine_tuning, change):
    store = stored("store")
    assert signature(replace(fine_tuning, **change), store) != signature(fine_tuning, store)


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
    assert len({signature(one, store) for one in changed}) == len(changed)


def test_the_pretraining_is_signed(stored, fine_tuning):
    store = stored("store")
    other = replace(fine_tuning, pretraining=replace(fine_tuning.pretraining, seed=1))
    assert signature(other, store) != signature(fine_tuning, store)


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
    before, after = signature(one, stored("before")), signature(one, stored("after", change=change))
    assert (before != after) == is_signed


def test_exclusions_of_what_is_trained_on_are_signed(stored, trial):
    store = stored("store")
    before = signature(trial, store)
    for split, is_signed in (("synthetic/validation", False), ("synthetic/development", True)):
        row = {"clip_id": open_split(store, split).clip_ids[0], "split": split, "reason": "it is heard elsewhere"}
        write_table(store / EXCLUSIONS_FILE, pa.Table.from_pylist([row], schema=EXCLUSIONS))
        assert (signature(trial, store) != before) == is_signed


def test_a_text_encoders_contents_are_signed_and_not_its_directory(stored, trial, tmp_path):
    store = stored("store")
    signatures = []
    for name, contents in (("here", b"weights"), ("there", b"weights"), ("elsewhere", b"others")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(contents)
        signatures.append(signature(replace(trial, text=huggingface.Config(str(tmp_path / name))), store))
    assert signatures[0] == signatures[1] != signatures[2]


def test_a_pinned_revision_is_signed(stored, trial):
    store = stored("store")
    revisions: list[dict[str, Any]] = [{"revision": "a" * 40}, {"revision": "b" * 40}]
    assert (
        len({signature(replace(trial, text=huggingface.Config("some/model", **one)), store) for one in revisions}) == 2
    )


def test_a_trial_on_an_absent_split_is_answered_with_what_there_is(stored, trial):
    with pytest.raises(UserError, match=r"holds no split 'clotho/development' .*synthetic/development"):
        signature(replace(trial, train=("clotho/development",)), stored("store"))


def test_paraphrases_that_are_asked_for_and_absent_are_an_error(stored, trial):
    store = stored("store")
    (store / "synthetic/development/paraphrases.arrow").unlink()
    with pytest.raises(UserError, match="has no paraphrases"):
        signature(trial, store)
    signature(replace(trial, paraphrase_probability=0.0), store)

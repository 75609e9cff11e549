"""A trial's config, and the signature that stands for what can change its result."""

import json
from dataclasses import replace

import pytest

from data.errors import UserError
from trainables.encoders.audio import passt
from trainables.encoders.text import huggingface
from trainables.precision import fastest_precision
from trainables.schedule import Plateau
from trainables.trial import Teacher, Trial, from_json, to_json


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
        ({"audio": {"family": "vggish"}}, "known: beats, cnn, cnn14, huggingface, passt"),
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
        ({"fixed_temperature": True, "log_temperature": True}, "the temperature isn't learned"),
        ({"pretraining": None, "reset_temperature": True}, "a pretraining always starts with its own temperature"),
        ({"shared_mask": True, "audio": passt.VARIANTS["tiny"]}, "the audio encoder has no SpecAugment"),
        ({"longest_audio_s": 0.0}, "longest_audio_s is 0.0"),
        ({"precision": "float16"}, "precision is 'float16': it must be float32 or bfloat16"),
        ({"seed": -1}, "seed is -1"),
        ({"final_epoch": 0}, "final_epoch is 0: it must be from 1 to epochs"),
        ({"final_epoch": 99}, "final_epoch is 99"),
        (
            {"final_epoch": 1, "schedule": Plateau(3e-3, 1e-4, 2, 0.1, 5, 0.0, 0.0, 10, 60)},
            "has no validation, but Plateau needs it",
        ),
        ({"embedding_size": 8}, "pretraining's encoders and embedding size"),
        ({"audio": passt.VARIANTS["tiny"]}, "pretraining's encoders and embedding size"),
        ({"text": huggingface.VARIANTS["bert-base"]}, "pretraining's encoders and embedding size"),
        ({"audio_rate_share": 0.0}, "audio_rate_share is 0.0: it must be above 0"),
        ({"text_rate_share": float("nan")}, "text_rate_share is nan: it must be above 0"),
        ({"layer_decay": 1.1}, "layer_decay is 1.1: it must be above 0, and layer_decay at most 1"),
        ({"frozen_audio": True, "audio_rate_share": 0.5}, "audio_rate_share has no effect on a frozen encoder"),
        ({"frozen_text": True, "text_rate_share": 0.5}, "text_rate_share has no effect on a frozen encoder"),
        ({"frozen_audio": True, "frozen_text": True, "layer_decay": 0.5}, "layer_decay has no effect on a frozen"),
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


def test_rates_by_part_are_named_and_stored_only_if_they_are_set(trial):
    shared = replace(trial, audio_rate_share=0.1, text_rate_share=2.0, layer_decay=0.75)
    assert "rate 0.003 audio rate share 0.1 text rate share 2 layer decay 0.75 pretraining" in shared.name
    assert from_json(json.loads(json.dumps(to_json(shared)))) == shared
    assert not {name for name in to_json(trial) if "share" in name or "decay" in name}
    half = replace(trial, frozen_text=True, audio_rate_share=0.1, layer_decay=0.75)  # one encoder learns
    assert half.name.endswith("frozen text audio rate share 0.1 layer decay 0.75 pretraining seed 0")


def test_the_fastest_precision_is_one_that_a_trial_can_have(trial):
    assert from_json(to_json(replace(trial, precision=fastest_precision()))).precision == fastest_precision()


def test_a_student_cannot_learn_from_mixtures(trial):
    with pytest.raises(UserError, match="teachers have no scores for mixtures"):
        replace(trial, teachers=(Teacher(replace(trial, seed=9)),), mix_probability=0.5)
    assert "mix 0.5" in replace(trial, mix_probability=0.5).name
    with pytest.raises(UserError, match="mix_probability is 2"):
        replace(trial, mix_probability=2.0)

"""The paper's settings, as its report and its authors' code have them."""

import pytest

from data.errors import UserError
from data.splits import Splits
from trainables import recipes
from trainables.schedule import Plateau, Schedule

SPLITS = Splits("clotho/development", "clotho/validation", "clotho/evaluation", ("clotho/development", "wavcaps/BBC"))


@pytest.fixture(scope="module")
def pretraining():
    return recipes.paper("passt:N", "huggingface:roberta-large", SPLITS, "bfloat16")


def test_the_papers_pretraining(pretraining):
    assert pretraining.train == SPLITS.pretrain
    assert pretraining.schedule == Schedule(2e-5, 1e-7, 16, warmup_epochs=1, final_epochs=1)
    assert (pretraining.batch_size, pretraining.embedding_size, pretraining.temperature) == (64, 1024, 0.01)
    assert (pretraining.paraphrase_probability, pretraining.longest_audio_s) == (0, 30)
    assert (pretraining.clip_norm, pretraining.frozen_audio, pretraining.frozen_text) == (None, False, False)
    assert (pretraining.audio.patchout_frequency, pretraining.audio.patchout_time) == (2, 15)
    assert (pretraining.audio.front_end.mask_mels, pretraining.audio.front_end.mask_frames) == (48, 192)
    assert (pretraining.text.dropout, pretraining.text.max_tokens, pretraining.text.pooling) == (0.2, 32, "first")


def test_the_papers_rates_by_epoch(pretraining):
    rate = pretraining.schedule.rate
    assert [rate(epoch) for epoch in (0, 0.5, 1)] == pytest.approx([0, 1e-5, 2e-5])
    assert rate(8) == pytest.approx((2e-5 + 1e-7) / 2)
    assert [rate(epoch) for epoch in (15, 15.9)] == [1e-7, 1e-7]


def test_the_papers_fine_tuning(pretraining):
    tuning = recipes.paper_fine_tuning(pretraining, SPLITS)
    assert tuning.pretraining == pretraining
    assert tuning.train == ("clotho/development",)
    assert tuning.paraphrase_probability == 0.3
    assert (tuning.schedule.peak_rate, tuning.schedule.final_rate, tuning.schedule.epochs) == (8e-6, 1e-7, 5)
    assert (tuning.batch_size, tuning.temperature) == (64, 0.01)
    faster = recipes.paper_fine_tuning(pretraining, SPLITS, peak_rate=1.6e-5, paraphrase_probability=0)
    assert (faster.schedule.peak_rate, faster.paraphrase_probability) == (1.6e-5, 0)


def test_the_baseline_of_dcase_2023():
    trial = recipes.baseline("cnn14:dcase2023", "huggingface:all-mpnet-base-v2", SPLITS, "bfloat16")
    assert trial.pretraining is None
    assert trial.train == ("clotho/development",)
    assert (trial.batch_size, trial.embedding_size) == (32, 300)
    assert (trial.temperature, trial.fixed_temperature) == (0.07, True)
    assert (trial.frozen_audio, trial.frozen_text, trial.text.pooling) == (False, True, "mean")
    assert (trial.audio.segment_s, trial.longest_audio_s) == (30, 30)
    assert (trial.audio.frozen_statistics, trial.audio.mask_mels, trial.audio.mask_frames) == (False, 0, 0)
    assert isinstance(trial.schedule, Plateau)
    assert (trial.schedule.peak_rate, trial.schedule.final_rate, trial.schedule.epochs) == (1e-3, 1e-6, 80)
    assert (trial.schedule.factor, trial.schedule.patience) == (0.1, 5)


def test_an_unknown_recipe_is_answered_with_the_known():
    assert recipes.find_recipe("small") is recipes.small
    with pytest.raises(UserError, match="unknown recipe 'large'; known: baseline, paper, small"):
        recipes.find_recipe("large")

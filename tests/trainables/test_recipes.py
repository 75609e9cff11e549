"""The paper's settings, as its report and its authors' code have them."""

import pytest

from data.errors import UserError
from data.splits import Splits
from trainables import recipes
from trainables.schedule import Schedule

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


def test_an_unknown_recipe_is_answered_with_the_known():
    assert recipes.recipe("small") is recipes.small
    with pytest.raises(UserError, match="unknown recipe 'large'; known: paper, small"):
        recipes.recipe("large")

"""The front end against hear21passt's own, and what it draws in training."""

import contextlib
import io
import warnings

import pytest
import torch
from hear21passt.models.preprocess import AugmentMelSTFT
from torch import Tensor

from data.errors import UserError
from trainables.encoders.frontend import Config
from trainables.networks.audio import log_mel as frontend
from trainables.networks.audio.log_mel import LogMel, mask_stripes

NO_MASKS = torch.zeros(5, 4)
MASKED = frontend.NORMALISE_SHIFT / frontend.NORMALISE_SCALE  # what a masked entry is after normalising


@pytest.fixture(scope="module")
def segments() -> Tensor:
    """Five seconds of noise that swells, at levels from almost nothing to full scale; one of them is silent."""
    noise = torch.randn(5, 32_000, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    swell = torch.linspace(0, 1, 32_000)
    return noise * swell * torch.tensor([1.0, 0.1, 1e-3, 1e-5, 0.0])[:, None]


def theirs() -> AugmentMelSTFT:
    with contextlib.redirect_stdout(io.StringIO()):
        return AugmentMelSTFT(
            n_mels=128,
            sr=32000,
            win_length=800,
            hopsize=320,
            n_fft=1024,
            freqm=48,
            timem=192,
            htk=False,
            fmin=0.0,
            fmax=None,
            norm=1,
            fmin_aug_range=10,
            fmax_aug_range=2000,
        )


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_in_evaluation_it_is_what_passt_was_trained_with(segments):
    with warnings.catch_warnings(action="ignore"):
        expected = theirs().eval()(segments)
    log_mel = LogMel(Config()).eval()(segments, NO_MASKS, generator())
    assert log_mel.shape == (5, 128, 100)
    torch.testing.assert_close(log_mel, expected, rtol=0, atol=1e-5)


def test_in_training_without_masks_it_is_theirs_with_the_same_jitter(segments):
    reference = theirs().train()
    reference.freqm, reference.timem = torch.nn.Identity(), torch.nn.Identity()
    with warnings.catch_warnings(action="ignore"), torch.random.fork_rng():
        torch.manual_seed(3)
        expected = reference(segments)
    log_mel = LogMel(Config()).train()(segments, NO_MASKS, generator(3))
    torch.testing.assert_close(log_mel, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_the_global_generator_is_left_alone_and_nothing_is_printed(segments, training, capsys):
    before = torch.get_rng_state()
    LogMel(Config()).train(training)(segments, torch.full((5, 4), 0.5), generator())
    assert torch.equal(torch.get_rng_state(), before)
    assert capsys.readouterr() == ("", "")


def test_evaluations_filter_bank_is_built_once(segments, monkeypatch):
    front_end = LogMel(Config()).eval()
    expected = front_end(segments, NO_MASKS, generator())
    monkeypatch.delattr(frontend, "get_mel_banks")
    assert torch.equal(front_end(segments, NO_MASKS, generator()), expected)
    with pytest.raises(NameError):
        front_end.train()(segments, NO_MASKS, generator())


def test_evaluation_draws_nothing_and_masks_nothing(segments):
    drawn = generator()
    front_end = LogMel(Config()).eval()
    first = front_end(segments, torch.full((5, 4), 0.9), drawn)
    assert torch.equal(drawn.get_state(), generator().get_state())
    assert torch.equal(first, front_end(segments, NO_MASKS, generator(1)))


def test_jitter_repeats_with_its_seed_and_differs_between_seeds(segments):
    front_end = LogMel(Config()).train()
    first, again, other = (front_end(segments, NO_MASKS, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first[0], other[0], atol=1e-3)


def test_without_jitter_or_masks_training_equals_evaluation(segments):
    front_end = LogMel(Config(fmin_jitter_hz=0, fmax_jitter_hz=0, mask_mels=0, mask_frames=0))
    evaluated = front_end.eval()(segments, NO_MASKS, generator())
    torch.testing.assert_close(front_end.train()(segments, NO_MASKS, generator()), evaluated, rtol=0, atol=1e-6)


@pytest.mark.parametrize("block", [1, 2, 5, 100])
def test_how_many_segments_are_computed_at_a_time_does_not_matter(segments, block, monkeypatch):
    front_end = LogMel(Config()).eval()
    expected = front_end(segments, NO_MASKS, generator())
    monkeypatch.setattr(frontend, "CPU_BLOCK", block)
    torch.testing.assert_close(front_end(segments, NO_MASKS, generator()), expected, rtol=0, atol=1e-6)


def test_it_is_computed_in_float32_under_autocast(segments):
    front_end = LogMel(Config()).eval()
    with torch.autocast("cpu", torch.bfloat16):
        log_mel = front_end(segments, NO_MASKS, generator())
    assert torch.equal(log_mel, front_end(segments, NO_MASKS, generator()))


def test_buffers_are_no_weights():
    assert not LogMel(Config()).state_dict()


def test_training_masks_one_stripe_of_bands_and_one_of_frames_in_each_segment(segments):
    front_end = LogMel(Config(mask_mels=48, mask_frames=60)).train()
    draws = torch.rand(5, 4, generator=generator(1))
    plain, masked = (front_end(segments, given, generator(2)) for given in (NO_MASKS, draws))
    expected = plain.clone()
    for log_mel, (width_m, place_m, width_t, place_t) in zip(expected, draws.tolist(), strict=True):
        bands, frames = int(width_m * 48), int(width_t * 60)
        first_band, first_frame = int(place_m * (128 - bands)), int(place_t * (100 - frames))
        log_mel[first_band : first_band + bands] = MASKED
        log_mel[:, first_frame : first_frame + frames] = MASKED
    assert not torch.equal(plain, masked)
    torch.testing.assert_close(masked, expected, rtol=0, atol=0)


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("widest", [0, 1, 7, 20, 50])
def test_a_mask_stays_within_its_bounds(dim, widest):
    draws = torch.rand(500, 2, generator=generator())
    draws[:4] = torch.tensor([[0.0, 0.0], [0.0, 0.999999], [0.999999, 0.0], [0.999999, 0.999999]])
    masked = mask_stripes(torch.ones(500, 20, 20), dim, widest, draws) == 0
    stripe = masked.any(dim=3 - dim)
    assert torch.equal(stripe, masked.all(dim=3 - dim))
    assert stripe.sum(dim=1).max() == max(0, min(widest, 20) - 1)
    assert (stripe.int().diff(dim=1, prepend=torch.zeros(500, 1)) == 1).sum(dim=1).max() <= 1  # it begins once


def test_equal_draws_give_equal_masks():
    draws = torch.rand(1, 2, generator=generator()).expand(6, 2)
    masked = mask_stripes(torch.ones(6, 40, 30), 1, 20, draws)
    assert torch.equal(masked, masked[:1].expand(6, -1, -1))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"window_samples": 0}, "window_samples is 0"),
        ({"window_samples": 1025}, "window_samples is 1025"),
        ({"fmax_hz": 15_001.0}, "must not exceed 16000 Hz"),
        ({"fmax_jitter_hz": 2_002}, "must not exceed 16000 Hz"),
        ({"mask_mels": 129}, "mask_mels is 129"),
        ({"mask_mels": -1}, "mask_mels is -1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(setting, message):
    with pytest.raises(UserError, match=message):
        Config(**setting)

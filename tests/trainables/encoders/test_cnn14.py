"""CNN14 against a plain implementation from the names of its weights, and what it does in training."""

from dataclasses import replace

import librosa
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from data.errors import UserError
from trainables.encoders.audio import cnn14
from trainables.encoders.audio.cnn14 import VARIANTS, Config
from trainables.networks import load_network_module
from trainables.networks.audio.cnn14 import Cnn14Encoder

SMALL = replace(VARIANTS["audioset"], pretrained=False, channels=(4, 6, 8, 8, 10, 12), segment_s=2.0)


def built(config: Config = SMALL) -> Cnn14Encoder:
    """An encoder whose statistics and affine weights are as if it were trained."""
    torch.manual_seed(0)
    encoder = load_network_module(config).build(config)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in ((module.weight, 0.5, 1.5), (module.bias, -0.5, 0.5)):
                nn.init.uniform_(tensor, low, high)
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    encoder.bn0.running_mean.sub_(40)  # decibels
    encoder.bn0.running_var.mul_(100)
    return encoder


def noise(num_segments: int = 3, seconds: float = 2.0) -> Tensor:
    """At levels from full scale to silence."""
    samples = torch.randn(num_segments, round(seconds * 32_000), generator=torch.Generator().manual_seed(0))
    return samples.clamp(-1, 1) * torch.logspace(0, -6, num_segments)[:, None]


def draws(num_segments: int = 3) -> Tensor:
    return torch.rand(num_segments, 4, generator=torch.Generator().manual_seed(1))


def log_mel_by_librosa(segment: Tensor) -> np.ndarray:
    spectrum = librosa.stft(segment.numpy(), n_fft=1024, hop_length=320, window="hann", center=True, pad_mode="reflect")
    bank = librosa.filters.mel(sr=32_000, n_fft=1024, n_mels=64, fmin=50, fmax=14_000)
    return librosa.power_to_db(bank @ np.abs(spectrum) ** 2, ref=1.0, amin=1e-10, top_db=None).T


def plain(state: dict[str, Tensor], log_mel_STM: Tensor) -> Tensor:
    """CNN14 in evaluation, from its released names."""

    def norm(features: Tensor, name: str) -> Tensor:
        mean, variance, weight, bias = (
            state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return functional.batch_norm(features, mean, variance, weight, bias)

    features = norm(log_mel_STM.transpose(1, 2).unsqueeze(3), "bn0").squeeze(3).transpose(1, 2).unsqueeze(1)
    for block in range(1, 7):
        for layer in (1, 2):
            features = functional.conv2d(features, state[f"conv_block{block}.conv{layer}.weight"], padding=1)
            features = functional.relu(norm(features, f"conv_block{block}.bn{layer}"))
        if block < 6:
            features = functional.avg_pool2d(features, 2)
    features = features.mean(dim=3)
    features = features.max(dim=2).values + features.mean(dim=2)
    return functional.relu(functional.linear(features, state["fc1.weight"], state["fc1.bias"]))


@torch.no_grad()
def test_it_equals_a_plain_implementation():
    encoder, segments = built().eval(), noise()
    log_mel = torch.from_numpy(np.stack([log_mel_by_librosa(segment) for segment in segments]))
    torch.testing.assert_close(encoder.compute_log_mel(segments).mT, log_mel, rtol=0, atol=1e-3)  # of -100 to 30 dB
    features = encoder(segments, draws(), torch.Generator())
    assert features.shape == (3, encoder.width)
    assert (features > 0).any(dim=0).sum() > 3
    torch.testing.assert_close(features, plain(encoder.state_dict(), log_mel), rtol=0, atol=1e-4)


@torch.no_grad()
def test_the_front_end_is_computed_in_float32_under_autocast():
    encoder = built().eval()
    with torch.autocast("cpu", torch.bfloat16):
        features = encoder(noise(), draws(), torch.Generator())
    expected = encoder(noise(), draws(), torch.Generator())
    torch.testing.assert_close(features.float(), expected, rtol=0.1, atol=0.05)


@pytest.mark.parametrize("is_frozen", [True, False])
def test_statistics_move_in_training_only_where_they_are_not_frozen(is_frozen):
    encoder = built(replace(SMALL, frozen_statistics=is_frozen)).train()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    encoder(noise(), draws(), torch.Generator()).square().sum().backward()
    after = encoder.state_dict()
    assert all(torch.equal(after[name], before[name]) == is_frozen for name in after if "running" in name)
    assert not [name for name, parameter in encoder.named_parameters() if parameter.grad is None]
    assert "bn0.weight" in dict(encoder.named_parameters())


def test_with_frozen_statistics_training_without_dropout_or_masks_equals_evaluation():
    encoder = built(replace(SMALL, block_dropout=0.0, dropout=0.0, mask_mels=0, mask_frames=0))
    trained, evaluated = (encoder.train(mode)(noise(), draws(), torch.Generator()).detach() for mode in (True, False))
    assert torch.equal(trained, evaluated)


def test_masks_are_drawn_for_each_segment_and_dropout_from_the_global_generator():
    encoder = built(replace(SMALL, block_dropout=0.0, dropout=0.0)).train()
    first, again = (encoder(noise(), draws(), torch.Generator()) for _ in range(2))
    other = encoder(noise(), 1 - draws(), torch.Generator())
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    encoder = built().train()
    features = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        features.append(encoder(noise(), draws(), torch.Generator()))
    assert torch.equal(features[0], features[1])
    assert not torch.equal(features[0], features[2])


@torch.no_grad()
def test_masks_are_zeros_after_the_first_normalisation():
    encoder = built(replace(SMALL, block_dropout=0.0, dropout=0.0, mask_mels=8, mask_frames=64)).train()
    inputs = []
    encoder.blocks[0].register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    full = torch.full((1, 4), 0.999)
    encoder(noise(1), full, torch.Generator())
    masked = inputs[0][0, 0] == 0
    assert masked.all(dim=0).sum() == 7
    assert masked.all(dim=1).sum() == 63


def test_names_and_blocks_are_the_released_ones():
    encoder = built()
    assert [name for name in ("window", "bank") if name in encoder.state_dict()] == []
    assert [block.conv2.weight.shape[0] for block in encoder.blocks] == list(SMALL.channels)
    assert cnn14.VARIANTS["audioset"].channels[-1] == 2048


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"channels": (8, 8)}, "set pretrained=False"),
        ({"channels": (), "pretrained": False}, "CNN14 has 0 blocks"),
        ({"block_dropout": 1.0}, "block_dropout is 1.0"),
        ({"dropout": -0.1}, "dropout is -0.1"),
        ({"mask_mels": 65}, "mask_mels is 65"),
        ({"mask_frames": -1}, "mask_frames is -1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(setting, message):
    with pytest.raises(UserError, match=message):
        replace(VARIANTS["audioset"], **setting)

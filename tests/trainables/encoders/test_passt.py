"""PaSST's forward pass against hear21passt's own, from the same parameters."""

import contextlib
import io
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from data.errors import UserError
from data.schema import SAMPLE_RATE_HZ
from trainables.encoders.audio import passt
from trainables.encoders.audio.passt import VARIANTS, Config
from trainables.networks import load_network_module
from trainables.networks.audio import passt as networks
from trainables.networks.audio.passt import PasstEncoder

SHAPES = {
    name: replace(VARIANTS[name], arch=None, pretrained=False, width=48, depth=1, heads=3) for name in ("N", "S", "S15")
}
"""The paper's variants with one small layer."""

WITH_PATCHOUT = {**SHAPES, "tiny": replace(VARIANTS["tiny"], patchout_time=9)}


def noise(config: Config, num_segments: int = 2) -> Tensor:
    samples = round(config.segment_s * SAMPLE_RATE_HZ)
    return 0.1 * torch.randn(num_segments, samples, generator=torch.Generator().manual_seed(0))


def built(config: Config) -> PasstEncoder:
    """An encoder whose position embeddings and class tokens are large enough to matter."""
    torch.manual_seed(0)
    encoder = load_network_module(config).build(config)
    for name, parameter in encoder.net.named_parameters():
        if "pos_embed" in name or "token" in name:
            torch.nn.init.normal_(parameter)
    return encoder


def theirs(encoder: PasstEncoder, log_mel: Tensor, generator: torch.Generator | None = None) -> tuple[Any, Tensor]:
    """hear21passt's own model with the same weights, attention included, and its features, pooled as the config says.

    What it draws from the global generator (which columns are dropped, then which rows) are `generator`'s next numbers.
    """
    net = networks.make_passt(encoder.config).train(encoder.training)
    net.load_state_dict(encoder.net.state_dict(), strict=False)  # but for the heads
    sequences: list[Tensor] = []
    net.norm.register_forward_hook(lambda _norm, _inputs, sequence_SLD: sequences.append(sequence_SLD))
    with (
        warnings.catch_warnings(action="ignore"),
        contextlib.redirect_stdout(io.StringIO()),
        torch.random.fork_rng(),
    ):
        if generator:
            torch.set_rng_state(generator.get_state())
        features = net(log_mel.unsqueeze(1))[1]
    if encoder.config.pooling == "class":
        return net, features
    patches_SPD = sequences[0][:, 2:]
    return net, patches_SPD.sum(dim=1) / patches_SPD.shape[1] + patches_SPD.max(dim=1).values


@pytest.fixture(params=["plain", "fused"])
def attention(request, monkeypatch) -> None:
    """Both forms, on a CPU."""
    monkeypatch.setattr(networks, "FUSED_DEVICES", ("cpu",) if request.param == "fused" else ())


@pytest.mark.usefixtures("attention")
@pytest.mark.parametrize(
    "config",
    [
        pytest.param(config, id=name)
        for name, config in {**SHAPES, **VARIANTS, "class": replace(VARIANTS["tiny"], pooling="class")}.items()
        if not config.pretrained
    ],
)
@torch.inference_mode()
def test_in_evaluation_it_equals_hear21passt(config):
    encoder, segments = built(config).eval(), noise(config)
    draws = torch.zeros(2, 4)
    log_mel = encoder.front_end(segments, draws, torch.Generator())
    features = encoder(segments, draws, torch.Generator())
    assert features.shape == (2, encoder.width)
    torch.testing.assert_close(features, theirs(encoder, log_mel)[1], rtol=0, atol=1e-5)


@pytest.mark.usefixtures("attention")
@pytest.mark.parametrize("name", WITH_PATCHOUT)
@torch.inference_mode()
def test_in_training_it_equals_hear21passt_with_the_same_patches_dropped(name):
    encoder, segments = built(WITH_PATCHOUT[name]).train(), noise(WITH_PATCHOUT[name])
    draws = torch.rand(2, 4, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    log_mel = encoder.front_end(segments, draws, generator)
    expected = theirs(encoder, log_mel, generator)[1]
    features = encoder(segments, draws, torch.Generator().manual_seed(2))
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("attention")
@pytest.mark.parametrize("training", [False, True])
def test_segments_equal_those_of_padded_clips_gradients_included(training):
    """As the authors do, both clips are padded to the longer one's three segments, and all six are embedded."""
    config = SHAPES["N"]
    encoder = built(config).train(training)
    samples = round(config.segment_s * SAMPLE_RATE_HZ)
    padded = noise(config, 6).view(2, 3, samples)
    padded[0, 1, samples // 5 :] = padded[1, 2, samples // 2 :] = 0  # clips of 12 and 25 s
    padded[0, 2] = 0
    is_real = torch.tensor([[True, True, False], [True, True, True]])
    draws = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(1))

    generator = torch.Generator().manual_seed(2)
    log_mel = encoder.front_end(padded.flatten(0, 1), draws.flatten(0, 1), generator)
    net, features = theirs(encoder, log_mel, generator)
    weight = torch.randn(encoder.width, generator=torch.Generator().manual_seed(3))
    (features.view(2, 3, -1)[is_real] @ weight).sum().backward()

    segments = encoder(padded[is_real], draws[is_real], torch.Generator().manual_seed(2))
    (segments @ weight).sum().backward()
    torch.testing.assert_close(segments, features.view(2, 3, -1)[is_real], rtol=0, atol=1e-4)
    gradients = {name: parameter.grad for name, parameter in net.named_parameters()}
    for name, parameter in encoder.net.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "tokens"), [("N", 6 * 47), ("S", 8 * 49), ("S15", 8 * 69)])
@torch.inference_mode()
def test_training_keeps_as_many_tokens_as_the_paper(name, tokens):
    encoder, lengths = built(SHAPES[name]), []
    encoder.net.blocks.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    for training in (True, False):
        encoder.train(training)(noise(SHAPES[name], 1), torch.zeros(1, 4), torch.Generator())
    rows, columns = SHAPES[name].grid
    assert lengths == [tokens + 2, rows * columns + 2]  # and the class and distillation tokens


@torch.inference_mode()
def test_dropped_patches_repeat_with_their_seed_and_are_the_same_in_the_whole_batch():
    config = replace(SHAPES["N"], front_end=replace(SHAPES["N"].front_end, fmin_jitter_hz=0, fmax_jitter_hz=0))
    encoder = built(config).train()
    twice, draws = noise(config, 1).expand(2, -1), torch.zeros(2, 4)
    first, again, other = (encoder(twice, draws, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    torch.testing.assert_close(first[0], first[1], rtol=0, atol=1e-6)
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-3)


@pytest.mark.parametrize("training", [False, True])
def test_nothing_is_printed_and_the_global_generator_is_left_alone(training, capsys):
    encoder = built(SHAPES["S"]).train(training)
    before = torch.get_rng_state()
    encoder(noise(SHAPES["S"], 1), torch.zeros(1, 4), torch.Generator())
    assert capsys.readouterr() == ("", "")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("training", [False, True])
def test_every_parameter_gets_a_gradient(training):
    encoder = built(SHAPES["S"]).train(training)
    encoder(noise(SHAPES["S"], 1), torch.zeros(1, 4), torch.Generator()).square().sum().backward()
    assert not [name for name, parameter in encoder.named_parameters() if parameter.grad is None]


@pytest.mark.parametrize(("name", "positions"), [("N", (8, 62)), ("S", (12, 99)), ("S15", (12, 200))])
def test_a_published_architecture_is_restored_without_its_weights(name, positions, capsys):
    encoder = load_network_module(VARIANTS[name]).restore(VARIANTS[name])
    assert capsys.readouterr() == ("", "")
    assert encoder.width == 768
    assert len(encoder.net.blocks) == 12
    assert (encoder.net.freq_new_pos_embed.shape[2], encoder.net.time_new_pos_embed.shape[3]) == positions


def test_published_weights_are_part_of_the_fingerprint():
    fingerprints = {passt.weights_fingerprint(VARIANTS[name]) for name in ("N", "S", "S15", "tiny")}
    assert len(fingerprints) == 4
    assert passt.weights_fingerprint(replace(VARIANTS["N"], pretrained=False)) == "random"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"arch": None}, "set pretrained=False"),
        ({"arch": "passt_50sec"}, "exist for passt_s_p16_s16_128_ap468, passt_s_kd"),
        ({"patchout_frequency": 8}, "leaves nothing of 8 x 62"),
        ({"patchout_time": 62}, "leaves nothing of 8 x 62"),
        ({"patchout_time": -1}, "leaves nothing"),
    ],
)
def test_settings_that_make_no_sense_are_refused(setting, message):
    with pytest.raises(UserError, match=message):
        replace(VARIANTS["N"], **setting)

"""PaSST's forward pass against hear21passt's own, from the same parameters."""

import contextlib
import io
import warnings
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from data.errors import UserError
from data.schema import SAMPLE_RATE_HZ
from trainables.encoders.audio import passt
from trainables.encoders.audio.passt import VARIANTS, Config, PasstEncoder

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
    encoder = passt.build(config)
    for name, parameter in encoder.net.named_parameters():
        if "pos_embed" in name or "token" in name:
            torch.nn.init.normal_(parameter)
    return encoder


def theirs(encoder: PasstEncoder, log_mel: Tensor) -> Tensor:
    """hear21passt's features: it returns (logits, features)."""
    with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
        return encoder.net(log_mel.unsqueeze(1))[1]


@pytest.mark.parametrize(
    "config", [pytest.param(config, id=name) for name, config in (SHAPES | VARIANTS).items() if not config.pretrained]
)
@torch.inference_mode()
def test_in_evaluation_it_equals_hear21passt(config):
    encoder, segments = built(config).eval(), noise(config)
    draws = torch.zeros(2, 4)
    log_mel = encoder.front_end(segments, draws, torch.Generator())
    features = encoder(segments, draws, torch.Generator())
    assert features.shape == (2, encoder.width)
    torch.testing.assert_close(features, theirs(encoder, log_mel), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", WITH_PATCHOUT)
@torch.inference_mode()
def test_in_training_it_equals_hear21passt_with_the_same_patches_dropped(name):
    encoder, segments = built(WITH_PATCHOUT[name]).train(), noise(WITH_PATCHOUT[name])
    draws = torch.rand(2, 4, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    log_mel = encoder.front_end(segments, draws, generator)
    with torch.random.fork_rng():
        torch.set_rng_state(generator.get_state())  # both draw columns, then rows
        expected = theirs(encoder, log_mel)
    features = encoder(segments, draws, torch.Generator().manual_seed(2))
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-5)


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
    encoder = passt.restore(VARIANTS[name])
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
        ({"patchout_frequency": 8}, "leaves nothing of 8 x 62"),
        ({"patchout_time": 62}, "leaves nothing of 8 x 62"),
        ({"patchout_time": -1}, "leaves nothing"),
    ],
)
def test_settings_that_make_no_sense_are_refused(setting, message):
    with pytest.raises(UserError, match=message):
        replace(VARIANTS["N"], **setting)

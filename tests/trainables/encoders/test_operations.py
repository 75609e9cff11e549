"""Floating-point operations, against torch's own count of what an encoder computes."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from data.errors import UserError
from data.loading.batch import NUM_MASK_DRAWS
from data.schema import SAMPLE_RATE_HZ
from trainables import encoders
from trainables.encoders.audio import cnn, cnn14, passt
from trainables.encoders.text import huggingface, transformer
from trainables.encoders.text.huggingface import Config
from trainables.networks import load_network_module

AUDIO = [
    cnn.VARIANTS["small"],
    cnn.VARIANTS["small5"],
    replace(cnn.VARIANTS["small"], convolutions=(1, 2, 1, 3), segment_s=3.0),
    replace(cnn14.VARIANTS["audioset"], pretrained=False, segment_s=1.0, channels=(4, 8, 8)),
    replace(cnn14.VARIANTS["audioset"], pretrained=False, segment_s=7.0, channels=(4, 4, 4, 4, 8, 8)),
    passt.VARIANTS["tiny"],
    replace(passt.VARIANTS["N"], arch=None, pretrained=False, width=48, depth=2, heads=3),
    replace(passt.VARIANTS["S15"], arch=None, pretrained=False, width=48, depth=1, heads=3),
]
CAPTIONS = ["a dog barks", "rain falls"]


def counted(module, *inputs):
    """What torch counts, without the front end's filter bank; of a CPU's fused attention it counts nothing."""
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        module(*inputs)
    counts = counter.get_flop_counts()
    front_end = sum(sum(of_operator.values()) for name, of_operator in counts.items() if name.endswith("front_end"))
    return counter.get_total_flops() - front_end


@pytest.mark.parametrize("config", AUDIO, ids=lambda config: encoders.format_label(config))
def test_an_audio_encoders_operations_are_those_that_torch_counts_in_training(config):
    family = encoders.module_of_config(config)
    encoder = load_network_module(config).build(config).train()
    segments = torch.randn(1, round(config.segment_s * SAMPLE_RATE_HZ))
    inputs = (segments, torch.rand(1, NUM_MASK_DRAWS), torch.Generator().manual_seed(0))
    front_end = 0 if hasattr(encoder, "front_end") else 2 * encoder.bank.numel() * (segments.shape[1] // 320 + 1)
    assert family.flops(config) == pytest.approx(counted(encoder, *inputs) - front_end, rel=0.01)


def test_a_text_encoders_operations_are_those_that_torch_counts():
    config = replace(transformer.VARIANTS["small"], layers=3)
    encoder = load_network_module(config).build(config, CAPTIONS)
    tokens = encoder.tokenize(CAPTIONS[:1])
    length = tokens.ids.shape[1]
    assert transformer.flops(config, length) == pytest.approx(counted(encoder.train(), tokens), rel=0.01)
    assert transformer.flops(config, 1000) == transformer.flops(config, config.max_tokens)


def test_a_directorys_operations_are_those_that_torch_counts(write_text_model, tmp_path):
    shape = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 192}
    folder = write_text_model(tmp_path / "bert", "bert", CAPTIONS, vocab_size=300, **shape)
    config = Config(str(folder))
    encoder = load_network_module(config).build(config, CAPTIONS)
    tokens = encoder.tokenize(CAPTIONS[:1])
    length = tokens.ids.shape[1]
    assert huggingface.flops(encoder.config, length) == pytest.approx(counted(encoder, tokens), rel=0.01)


def test_the_named_models_have_known_sizes_and_others_none():
    assert all(huggingface.flops(config, 20) for config in huggingface.VARIANTS.values())
    base, large = (huggingface.flops(huggingface.VARIANTS[name], 20) for name in ("bert-base", "roberta-large"))
    assert base == pytest.approx(2 * 85e6 * 20, rel=0.05)
    assert large == pytest.approx(2 * 302e6 * 20, rel=0.05)
    assert huggingface.flops(Config("some/model"), 20) is None


def test_a_directory_that_says_nothing_of_its_model_is_named(tmp_path):
    with pytest.raises(UserError, match=f"text encoder '{tmp_path}' can't be loaded"):
        huggingface.flops(Config(str(tmp_path)), 20)

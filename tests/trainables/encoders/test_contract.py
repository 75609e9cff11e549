"""The contract of encoders, which docs/encoders.md describes, checked on every encoder or on one.

    python -m pytest tests/trainables/encoders/test_contract.py --encoder trainables/encoders/text/NAME.py

With `--weights DIR`, published weights are read from that directory. Without `--encoder`, every variant with random
weights is checked, and a small model of each kind in the layout of the hub; of each family of published audio encoders,
one network with random weights is checked by tests that are marked slow.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

from data.loading.batch import NUM_MASK_DRAWS, Batch
from data.schema import SAMPLE_RATE_HZ
from trainables import encoders
from trainables.encoders.audio import AudioConfig
from trainables.encoders.text import TextConfig, Tokens
from trainables.networks import load_network_module, validation
from trainables.networks.dual_encoder import embed_segments, restore_audio_encoder, with_checkpointing

ROOT = Path(__file__).parents[3]
CAPTIONS = [*validation.SENTENCES, "rain", "a dog barks twice"]
HUB_SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
FILES = {".json", ".txt", ".model"}
"""Kinds of files that a tokenizer may be saved in: none can hold code."""


@dataclass(frozen=True)
class Case:
    """An encoder to check: a variant of a family, or (`variant` None) a small model in the layout of the hub."""

    kind: encoders.Kind
    family: str
    variant: str | None
    only_restored: bool = False  # without the published weights

    def __str__(self) -> str:
        return f"{self.kind}-{self.family}:{self.variant or 'folder'}"


def family_of_file(file: str) -> tuple[encoders.Kind, str]:
    """The kind and the name of the encoder that a file defines."""
    path = Path(file).resolve()
    for kind in ("audio", "text"):
        if path.parent == ROOT / "trainables/encoders" / kind and path.is_file():
            return kind, path.stem
    raise pytest.UsageError(
        f"--encoder {file}: it must be a file in trainables/encoders/audio or trainables/encoders/text"
    )


def list_cases(file: str | None) -> list[Any]:
    """The encoders to check, as parameters of tests."""
    if file:
        kind, family = family_of_file(file)
        return [Case(kind, family, variant) for variant in encoders.load_family(kind, family).VARIANTS]
    cases: list[Any] = [Case("text", "huggingface", None), Case("audio", "huggingface", None)]
    for kind in ("audio", "text"):
        for family in encoders.list_families(kind):
            variants = encoders.load_family(kind, family).VARIANTS
            published = [name for name, config in variants.items() if config.is_published]
            cases += [Case(kind, family, name) for name in variants if name not in published]
            # One of them: they differ in size alone. Those of the hub can't be restored without their files.
            if published and kind == "audio" and family != "huggingface":
                case = Case(kind, family, published[0], only_restored=True)
                cases.append(pytest.param(case, marks=pytest.mark.slow))
    return cases


def pytest_generate_tests(metafunc):
    kinds = {"case": ("audio", "text"), "audio_case": ("audio",), "text_case": ("text",)}
    for name, allowed in kinds.items():
        if name in metafunc.fixturenames:
            cases = list_cases(metafunc.config.getoption("--encoder"))
            chosen = [one for one in cases if getattr(one, "values", [one])[0].kind in allowed]
            metafunc.parametrize(name, chosen, ids=str, scope="module")


@pytest.fixture(scope="module")
def make(request, tmp_path_factory, write_text_model):
    """A function that returns the config of a case, and an encoder with its initial weights."""
    directory = request.config.getoption("--weights")

    def build(case):
        config, weights = config_of(case), Path(directory) if directory else None
        if case.variant is None:
            config = encoders.load_family(case.kind, "huggingface").Config(str(folders[case.kind]))
        torch.manual_seed(0)
        module = load_network_module(config)
        if case.only_restored:
            return config, module.restore(config)
        return config, module.build(config, *([CAPTIONS] if case.kind == "text" else []), weights)

    folders = {kind: tmp_path_factory.mktemp("hub") / kind for kind in ("audio", "text")}
    write_text_model(folders["text"], "bert", CAPTIONS, vocab_size=60, max_position_embeddings=40, **HUB_SHAPE)
    torch.manual_seed(0)
    ASTModel(ASTConfig(**HUB_SHAPE, max_length=98, num_mel_bins=32)).save_pretrained(folders["audio"])
    ASTFeatureExtractor(max_length=98, num_mel_bins=32).save_pretrained(folders["audio"])
    return build


def config_of(case):
    """The config of a variant; of a model in a folder, the family's first."""
    variants = encoders.load_family(case.kind, case.family).VARIANTS
    return variants[case.variant] if case.variant else next(iter(variants.values()))


def noise(config, lengths):
    """A batch of segments of noise, of which shares are filled; the rest is zero."""
    size = round(config.segment_s * SAMPLE_RATE_HZ)
    segments = 0.1 * torch.randn(len(lengths), size, generator=torch.Generator().manual_seed(0))
    counts = torch.tensor([round(share * size) for share in lengths])
    segments *= torch.arange(size) < counts[:, None]
    draws = torch.full((len(lengths), NUM_MASK_DRAWS), 0.5)
    ones = torch.ones(len(lengths), dtype=torch.int64)
    return Batch(segments, ones, draws, [""] * len(lengths), torch.arange(len(lengths)), counts)


def embed_audio(encoder, batch):
    """Segments by an encoder; all that it may draw from is seeded, so that nothing depends on earlier tests."""
    torch.manual_seed(0)
    return embed_segments(encoder, batch, torch.Generator().manual_seed(0))


def embed_text(encoder, captions):
    torch.manual_seed(0)
    return encoder(encoder.tokenize(captions))


def trained_without_gradient(encoder):
    return [name for name, one in encoder.named_parameters() if one.requires_grad and one.grad is None]


def gradients(encoder, embed):
    encoder.zero_grad()
    embed(encoder).square().sum().backward()
    return {name: one.grad.clone() for name, one in encoder.named_parameters() if one.grad is not None}


# Both kinds.


def test_the_family_has_all_that_training_asks_for(case):
    module, config = encoders.load_family(case.kind, case.family), config_of(case)
    assert type(config) is module.Config
    assert isinstance(config, {"audio": AudioConfig, "text": TextConfig}[case.kind])
    assert {config: "a key"}[config]
    assert isinstance(config.is_published, bool)
    assert all(callable(getattr(module, name)) for name in ("weights_fingerprint", "flops"))
    assert all(callable(getattr(load_network_module(config), name)) for name in ("build", "restore"))
    flops = module.flops(config, *([10.0] if case.kind == "text" else []))
    assert flops is None or flops > 0


def test_a_config_survives_json_and_is_chosen_by_its_name(case):
    config = config_of(case)
    assert encoders.from_json(case.kind, json.loads(json.dumps(encoders.to_json(config)))) == config
    name = encoders.format_label(config)
    assert encoders.config_of_variant(case.kind, name) == config
    assert case.variant is None or name == f"{case.family}:{case.variant}"


def test_the_fingerprint_of_the_weights_is_the_same_each_time(case, make, request):
    config, _ = make(case)
    if case.only_restored:
        pytest.skip("its weights aren't there")
    weights = request.config.getoption("--weights")
    first, again = (
        encoders.module_of_config(config).weights_fingerprint(config, Path(weights) if weights else None)
        for _ in range(2)
    )
    assert first == again
    assert (first == "random") != config.is_published


def test_the_blocks_hold_most_of_the_weights(case, make):
    """Tables of tokens and positions, which cost no time, aside."""
    _, encoder = make(case)
    tables = {id(module.weight) for module in encoder.modules() if isinstance(module, nn.Embedding)}
    count = {id(one): one.numel() for one in encoder.parameters() if id(one) not in tables}
    held = {id(one) for block in encoder.blocks for one in block.parameters()}
    assert sum(count[one] for one in held & count.keys()) > sum(count.values()) / 2


def test_every_weight_is_trained_and_checkpointed_blocks_give_the_same_gradients(case, make):
    """DDP waits for a gradient of every parameter; activation checkpointing runs each block a second time."""
    config, encoder = make(case)
    encoder.train()
    batch = noise(config, (0.5,)) if case.kind == "audio" else None

    def embed(encoder):
        return embed_text(encoder, CAPTIONS) if batch is None else embed_audio(encoder, batch)

    expected = gradients(encoder, embed)
    assert not trained_without_gradient(encoder)
    for block in encoder.blocks:
        block.forward = with_checkpointing(block.forward)
    for name, gradient in gradients(encoder, embed).items():
        torch.testing.assert_close(gradient, expected[name], msg=name)


# Audio encoders.


@torch.no_grad()
def test_an_audio_encoder_embeds_each_segment_by_itself(audio_case, make):
    config, encoder = make(audio_case)
    validation.require_working_audio_encoder(config, encoder)
    whole = noise(config, (1.0, 0.6))
    together = embed_audio(encoder.eval(), whole)
    assert together.shape == (2, encoder.width)
    scale = together.abs().max().item()
    for part, vector in zip(whole.split(1), together, strict=True):
        torch.testing.assert_close(embed_audio(encoder, part)[0], vector, rtol=0, atol=1e-5 * scale)


@torch.no_grad()
def test_a_restored_audio_encoder_takes_the_weights_of_a_built_one(audio_case, make, tmp_path):
    config, built = make(audio_case)
    if hasattr(built, "save_extractor"):
        built.save_extractor(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} <= FILES
    restored = restore_audio_encoder(config, tmp_path).eval()
    restored.load_state_dict(built.state_dict())
    batch = noise(config, (0.5,))
    assert torch.equal(embed_audio(restored, batch), embed_audio(built.eval(), batch))


@torch.no_grad()
def test_an_audio_encoders_draws_come_from_seeded_generators_only(audio_case, make):
    """The one that it is given and torch's own, which training seeds for each step."""
    config, encoder = make(audio_case)
    batch = noise(config, (0.5,))
    assert torch.equal(embed_audio(encoder.train(), batch), embed_audio(encoder, batch))


@torch.no_grad()
def test_an_audio_encoder_uses_the_number_of_samples_if_it_says_so(audio_case, make):
    """Any other takes the zeros after a recording as silence."""
    config, encoder = make(audio_case)
    batch = noise(config, (1.0, 0.5))
    unknown = Batch(batch.segments, batch.segments_per_clip, batch.mask_draws, batch.captions, batch.clips)
    known, as_silence = (embed_audio(encoder.eval(), one) for one in (batch, unknown))
    torch.testing.assert_close(known[0], as_silence[0])
    assert torch.allclose(known[1], as_silence[1]) != getattr(encoder, "reads_num_samples", False)


# Text encoders.


@torch.no_grad()
def test_a_text_encoder_embeds_each_caption_by_itself(text_case, make):
    config, encoder = make(text_case)
    validation.require_working_text_encoder(config, encoder)
    together = embed_text(encoder.eval(), CAPTIONS)
    assert together.shape == (len(CAPTIONS), encoder.width)
    scale = together.abs().max().item()
    for caption, vector in zip(CAPTIONS, together, strict=True):
        torch.testing.assert_close(embed_text(encoder, [caption])[0], vector, rtol=0, atol=1e-5 * scale)


@torch.no_grad()
def test_a_text_encoder_cuts_and_pads_captions(text_case, make):
    config, encoder = make(text_case)
    tokens = encoder.tokenize(["rain", validation.LONG_SENTENCE])
    assert isinstance(tokens, Tokens)
    assert tokens.ids.shape == tokens.mask.shape
    assert tokens.ids.dtype == tokens.mask.dtype == torch.int64
    assert tokens.ids.shape[1] <= config.max_tokens
    assert tokens.mask[0].sum() < tokens.mask[1].sum() == tokens.ids.shape[1]


@torch.no_grad()
def test_a_text_encoder_is_restored_from_its_tokenizers_files(text_case, make, tmp_path):
    config, built = make(text_case)
    built.save_tokenizer(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} <= FILES
    restored = load_network_module(config).restore(config, tmp_path).eval()
    restored.load_state_dict(built.state_dict())
    assert torch.equal(embed_text(restored, CAPTIONS), embed_text(built.eval(), CAPTIONS))

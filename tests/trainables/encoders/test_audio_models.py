"""Audio models that users bring as `huggingface:FOLDER`: each family's vectors, compared with what transformers' own
model and feature extractor compute, and what is refused.

All are real models of transformers, tiny and with random weights, saved with their feature extractors.
"""

import io
import json
import math
import shutil
import sys
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

import pytest
import torch
import transformers as library
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch.nn import functional
from torchaudio.functional import resample

from data.corpora import synthetic
from data.errors import UserError
from data.loading.batch import NUM_MASK_DRAWS
from data.schema import SAMPLE_RATE_HZ
from data.store.stored_split import open_split
from trainables import encoders
from trainables.encoders.audio import huggingface
from trainables.encoders.audio.huggingface import Config
from trainables.encoders.text import huggingface as text_models
from trainables.networks import dual_encoder, load_network_module, validation
from trainables.networks.audio import feature_extraction, front_ends
from trainables.networks.validation import require_working_encoders
from trainables.records import checkpoint
from trainables.signature import compute_signature
from trainables.training.embedding import embed_split
from trainables.training.features import hash_encoder
from trainables.training.train import Callbacks, TrainingStart, train
from trainables.trial import from_json, to_json

pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")  # WavLM's

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
CONVOLUTIONS = {"conv_dim": (16, 16, 16), "conv_kernel": (10, 8, 4), "conv_stride": (8, 8, 5)}
SPEECH = {**SIZES, **CONVOLUTIONS, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
MASKED = {**SPEECH, "feat_extract_norm": "layer", "do_stable_layer_norm": True}
WHISPER = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 64,
           "decoder_attention_heads": 2, "decoder_ffn_dim": 64, "num_mel_bins": 16, "max_source_positions": 50,
           "vocab_size": 20, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
           "decoder_start_token_id": 1}  # fmt: skip
CLAP_AUDIO = {"spec_size": 64, "num_mel_bins": 16, "patch_size": 4, "patch_stride": [4, 4], "window_size": 4,
              "depths": [1, 2], "num_attention_heads": [1, 2], "patch_embeds_hidden_size": 16, "hidden_size": 32,
              "num_hidden_layers": 2}  # fmt: skip
TEXT = {**SIZES, "vocab_size": 20}
DAC = {"encoder_hidden_size": 4, "downsampling_ratios": [8, 8], "decoder_hidden_size": 16, "n_codebooks": 2,
       "codebook_size": 16, "codebook_dim": 8, "sampling_rate": 16_000, "hop_length": 64,
       "hidden_size": 32}  # fmt: skip
ENCODEC = {"num_filters": 4, "upsampling_ratios": [8, 4], "num_lstm_layers": 1, "hidden_size": 32, "codebook_dim": 32,
           "codebook_size": 16, "target_bandwidths": [1.5], "sampling_rate": 24_000}  # fmt: skip
MODERN_BERT = {"model_type": "modernbert", "pad_token_id": 0}
PE_AUDIO = {**SIZES, "head_dim": 16, "dac_config": DAC | {"sampling_rate": 48_000}}


def clap(**more):
    return library.ClapModel(library.ClapConfig(text_config=TEXT, audio_config=CLAP_AUDIO | more, projection_dim=16))


def with_large_filters(model):
    """The model with convolutions whose output is as large as their input, so that what they are given matters."""
    for module in model.modules():
        if isinstance(module, torch.nn.Conv1d):
            torch.nn.init.kaiming_normal_(module.weight)
    return model


def waveform(masked):
    return lambda: library.Wav2Vec2FeatureExtractor(return_attention_mask=masked)


@dataclass(frozen=True)
class Family:
    """A family: its model, its extractor, and what a test has to know of it."""

    model: Any
    extractor: Any
    tower: Any = lambda model: model
    own_s: float = 10.0  # the length of a segment that it asks for
    input_s: float | None = None  # the length that its extractor fills
    pools: bool = False  # it has an output of its own for all of the audio
    tolerance: float = 1e-5
    is_exact: bool = False  # padding changes nothing at all
    unused: tuple[str, ...] = ()  # parts of the model whose weights aren't trained


FAMILIES = {
    "ast": Family(
        lambda: library.ASTForAudioClassification(library.ASTConfig(**SIZES, max_length=98, num_mel_bins=32)),
        lambda: library.ASTFeatureExtractor(max_length=98, num_mel_bins=32),
        own_s=0.98,
        input_s=0.98,
        pools=True,
    ),
    "clap": Family(
        lambda: clap(enable_fusion=False),
        lambda: library.ClapFeatureExtractor(feature_size=16, max_length_s=1, truncation="rand_trunc"),
        lambda model: model.audio_model,
        own_s=1.0,
        input_s=1.0,
        pools=True,
    ),
    "clap-fused": Family(
        lambda: clap(enable_fusion=True, fusion_type=None),
        lambda: library.ClapFeatureExtractor(feature_size=16, max_length_s=1, truncation="fusion"),
        lambda model: model.audio_model,
        own_s=1.0,
        input_s=1.0,
        pools=True,
        unused=("patch_embed.fusion_model", "patch_embed.mel_conv2d"),
    ),
    "pe-audio": Family(
        lambda: with_large_filters(
            library.PeAudioModel(library.PeAudioConfig(text_config=TEXT | MODERN_BERT, audio_config=PE_AUDIO))
        ),
        lambda: library.PeAudioFeatureExtractor(hop_length=64),
        lambda model: model.audio_encoder,
        pools=True,
        unused=("embedder.dac_encoder", "embedder.bottleneck"),
    ),
    "whisper": Family(
        lambda: library.WhisperForConditionalGeneration(library.WhisperConfig(**WHISPER)),
        lambda: library.WhisperFeatureExtractor(feature_size=16, chunk_length=1),
        lambda model: model.encoder,
        own_s=1.0,
        input_s=1.0,
        unused=("embed_positions",),
    ),
    "wav2vec2": Family(lambda: library.Wav2Vec2ForCTC(library.Wav2Vec2Config(**SPEECH)), waveform(False),
                       unused=("masked_spec_embed",)),
    "wav2vec2-masked": Family(lambda: library.Wav2Vec2Model(library.Wav2Vec2Config(**MASKED)), waveform(True),
                              is_exact=True, unused=("masked_spec_embed",)),
    "wav2vec2-conformer": Family(
        lambda: library.Wav2Vec2ConformerModel(library.Wav2Vec2ConformerConfig(
            **{**SPEECH, "feat_extract_norm": "layer"}, position_embeddings_type="relative")),
        waveform(True), unused=("masked_spec_embed", "pos_conv_embed")),
    "wav2vec2-bert": Family(
        lambda: library.Wav2Vec2BertModel(library.Wav2Vec2BertConfig(**SIZES, feature_projection_input_dim=32)),
        lambda: library.SeamlessM4TFeatureExtractor(feature_size=16, num_mel_bins=16, padding_value=1.0),
        tolerance=5e-5,  # its extractor sums a mel band's frames one by one in float32
        is_exact=True, unused=("masked_spec_embed",)),
    "hubert": Family(lambda: library.HubertModel(library.HubertConfig(**MASKED)), waveform(True), is_exact=True,
                     unused=("masked_spec_embed",)),
    "wavlm": Family(lambda: library.WavLMModel(library.WavLMConfig(**SPEECH)), waveform(True),
                    unused=("masked_spec_embed",)),
    "data2vec-audio": Family(
        lambda: library.Data2VecAudioModel(library.Data2VecAudioConfig(
            **{**SIZES, **CONVOLUTIONS}, conv_pos_kernel_size=5, num_conv_pos_embeddings=2,
            num_conv_pos_embedding_groups=2)),
        waveform(True), unused=("masked_spec_embed",)),
    "dac": Family(lambda: with_large_filters(library.DacModel(library.DacConfig(**DAC))),
                  lambda: library.DacFeatureExtractor(hop_length=64), lambda model: model.encoder),
    "encodec": Family(lambda: library.EncodecModel(library.EncodecConfig(**ENCODEC)),
                      lambda: library.EncodecFeatureExtractor(), lambda model: model.encoder),
}  # fmt: skip


SEGMENT_S = 1.0
"""Length of a segment of a family that takes any."""

LENGTHS = (1.0, 0.57, 0.23)
"""Shares of a segment that are the recording's."""


def segment_of(name):
    return FAMILIES[name].input_s or SEGMENT_S


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A function that returns the folder of a family's model, which is written once."""
    folder = tmp_path_factory.mktemp("models")

    def write(name):
        if not (folder / name).exists():
            torch.manual_seed(0)
            FAMILIES[name].model().save_pretrained(folder / name)
            FAMILIES[name].extractor().save_pretrained(folder / name)
        return folder / name

    return write


@pytest.fixture(scope="module")
def built(models):
    """A function that returns the config of a family and its encoder, which is built once; tests don't change it."""
    encoders_by_name = {}

    def build_once(name):
        if name not in encoders_by_name:
            config = Config(str(models(name)), segment_s=segment_of(name))
            encoders_by_name[name] = config, load_network_module(config).build(config).eval()
        return encoders_by_name[name]

    return build_once


def noise(segment_s, shares=LENGTHS):
    """Segments of coloured noise, of which shares are filled, and their numbers of samples."""
    size = round(segment_s * SAMPLE_RATE_HZ)
    segments = torch.randn(len(shares), size, generator=torch.Generator().manual_seed(0)).cumsum(1)
    segments = 0.1 * (segments - functional.avg_pool1d(segments, 65, 1, 32))
    counts = torch.tensor([round(share * size) for share in shares])
    return segments * (torch.arange(size) < counts[:, None]), counts


def embed(encoder, segments, counts):
    return encoder(segments, torch.zeros(len(segments), NUM_MASK_DRAWS), torch.Generator(), num_samples_S=counts)


class Library:
    """A family's model and extractor, as transformers loads and calls them for one recording."""

    def __init__(self, name, folder):
        self.family = FAMILIES[name]
        self.extractor = library.AutoFeatureExtractor.from_pretrained(folder)
        self.model = self.family.tower(library.AutoModel.from_pretrained(folder).eval())

    def extract(self, samples):
        rate_hz = self.extractor.sampling_rate
        samples = resample(samples, SAMPLE_RATE_HZ, rate_hz).numpy()
        inputs = dict(self.extractor([samples], sampling_rate=rate_hz, return_tensors="pt"))
        if "is_longer" in inputs:
            inputs["is_longer"][:] = False
        return inputs

    def count_outputs(self, inputs, count):
        """The number of outputs for a recording of a number of samples at 32 kHz, given its own input."""
        number = len(self.outputs(inputs)[1])
        mask = inputs.get("attention_mask", torch.ones(1, 0))
        if mask.shape[1] == number:
            return int(mask.sum())
        return math.ceil(count / 2 / 320) if "Whisper" in type(self.extractor).__name__ else number

    def outputs(self, inputs):
        """The model's own vector, if it has one, and its outputs [F, W]."""
        if isinstance(self.model, library.PreTrainedModel):
            inputs = {name: value for name, value in inputs.items() if name in signature(self.model.forward).parameters}
            outputs = self.model(**inputs)
            return getattr(outputs, "pooler_output", None), outputs.last_hidden_state[0]
        return None, self.model(inputs["input_values"])[0].T


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_vectors_are_those_of_the_library(name, built, models):
    """For a whole segment, and for a recording that the library pads to the same length."""
    config, encoder = built(name)
    segments, counts = noise(config.segment_s)
    vectors = embed(encoder, segments, counts)
    reference = Library(name, models(name))
    whole = reference.extract(segments[0])
    for segment, count, vector in zip(segments, counts, vectors, strict=True):
        inputs = reference.extract(segment[:count])
        own = reference.count_outputs(inputs, count)
        for key, value in inputs.items():
            missing = [end - now for now, end in zip(value.shape[::-1], whole[key].shape[::-1], strict=True)]
            padding = 0 if "mask" in key else reference.extractor.padding_value
            inputs[key] = functional.pad(value, [size for end in missing for size in (0, end)], value=padding)
        pooled, states = reference.outputs(inputs)
        expected = pooled[0] if FAMILIES[name].pools else states[:own].mean(dim=0)
        assert vector.shape == expected.shape == (encoder.width,)
        atol = FAMILIES[name].tolerance * expected.abs().max().item()
        torch.testing.assert_close(vector, expected, rtol=1e-5, atol=atol)


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_a_segment_is_embedded_by_itself(name, built):
    """In a batch as alone, and whatever the segment holds after the recording."""
    config, encoder = built(name)
    validation.require_working_audio_encoder(config, encoder)
    segments, counts = noise(config.segment_s, (1.0, 0.57, 0.01))
    together = embed(encoder, segments, counts)
    for segment, count, vector in zip(segments, counts, together, strict=True):
        torch.testing.assert_close(embed(encoder, segment[None], count[None])[0], vector, rtol=1e-5, atol=1e-5)
    assert torch.equal(segments, noise(config.segment_s, (1.0, 0.57, 0.01))[0]), "the batch is left as it was"


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.is_exact])
def test_padding_makes_no_difference_where_the_model_masks_it(name, built, models):
    config, encoder = built(name)
    segments, counts = noise(config.segment_s)
    reference = Library(name, models(name))
    inputs = reference.extract(segments[1][: counts[1]])
    _, states = reference.outputs(inputs)
    expected = states[: reference.count_outputs(inputs, int(counts[1]))].mean(dim=0)
    torch.testing.assert_close(embed(encoder, segments, counts)[1], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_trained_weight_has_a_gradient_and_no_other_is_trained(name, built):
    """DDP waits for a gradient of every trained parameter; activation checkpointing runs each block a second time."""
    config, encoder = built(name)
    segments, counts = noise(config.segment_s)
    names = dict(encoder.model.named_parameters())
    frozen = {key for key, one in names.items() if not one.requires_grad}
    unused = FAMILIES[name].unused
    assert frozen == {key for key in names if any(part in key for part in unused)}
    assert all(any(part in key for key in frozen) for part in unused)

    def gradients(model):
        model.zero_grad()
        torch.manual_seed(0)
        embed(model, segments, counts).square().sum().backward()
        return {key: one.grad for key, one in model.model.named_parameters() if one.grad is not None}

    statistics = [one.clone() for one in encoder.model.buffers()]
    first = gradients(encoder.train())
    assert all(map(torch.equal, statistics, encoder.model.buffers())), "those of batch normalisation are kept"
    assert first.keys() == names.keys() - frozen
    first = {key: one.clone() for key, one in first.items()}
    forwards = [block.forward for block in encoder.blocks]
    for block in encoder.blocks:
        block.forward = dual_encoder.with_checkpointing(block.forward)
    torch.testing.assert_close(gradients(encoder), first)
    for block, forward in zip(encoder.blocks, forwards, strict=True):
        block.forward = forward
    encoder.eval()


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_an_encoder_is_restored_from_what_it_has_saved(name, built, tmp_path):
    config, encoder = built(name)
    encoder.save_extractor(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json"}
    restored = dual_encoder.restore_audio_encoder(replace(config, model="/gone"), tmp_path).eval()
    restored.load_state_dict(encoder.state_dict())
    segments, counts = noise(config.segment_s)
    assert torch.equal(embed(restored, segments, counts), embed(encoder, segments, counts))
    trained, again = (
        {name: one.requires_grad for name, one in model.named_parameters()} for model in (encoder, restored)
    )
    assert trained == again


@pytest.fixture(scope="module")
def small_store(tmp_path_factory, write_split):
    """Four clips to train on and two to validate, a few seconds long."""
    folder = tmp_path_factory.mktemp("small")
    sizes = synthetic.Config(development=4, validation=2, evaluation=2, min_duration_s=1.0, max_duration_s=5.0)
    for split in synthetic.read(None, config=sizes):
        write_split(folder, split, "pcm16")
    return folder


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("is_frozen", [False, True])
def test_a_trial_of_two_epochs(name, is_frozen, models, small_store, trial, tmp_path):
    """In this process, as a Ray worker does it; the model then embeds without the folder that it came from."""
    folder = shutil.copytree(models(name), tmp_path / name)
    audio = encoders.config_of_variant("audio", f"huggingface:{folder}")
    if FAMILIES[name].input_s is None:
        audio = replace(audio, segment_s=SEGMENT_S)
    trial = replace(trial, audio=audio, frozen_audio=is_frozen, paraphrase_probability=0.0, longest_audio_s=1.5)
    initial = load_network_module(audio).build(audio).state_dict()
    network = train(trial, str(small_store), Callbacks(lambda *_: None), TrainingStart(), torch.device("cpu"))
    changed = [key for key, value in network.audio.state_dict().items() if not torch.equal(value, initial[key])]
    assert bool(changed) != is_frozen
    checkpoint.save_model(tmp_path / "trained", trial, network, checkpoint.copy_weights(network))
    shutil.rmtree(folder)
    split = open_split(str(small_store), trial.validation)
    vectors = embed_split(network, trial, "", split).audio_AD
    assert (embed_split(checkpoint.load_model(tmp_path / "trained"), trial, "", split).audio_AD == vectors).all()


# Configs.


@pytest.mark.parametrize("name", FAMILIES)
def test_the_length_of_a_segment_is_the_models_own_and_known_from_its_files(name, models):
    config = encoders.config_of_variant("audio", f"huggingface:{models(name)}")
    assert config.segment_s == pytest.approx(FAMILIES[name].own_s)
    assert encoders.from_json("audio", json.loads(json.dumps(encoders.to_json(config)))) == config
    assert config == Config(str(models(name)))


def test_a_trial_keeps_the_length_of_its_segments_where_the_folder_is_gone(trial, models, tmp_path):
    folder = shutil.copytree(models("ast"), tmp_path / "my-ast")
    own = replace(trial, audio=Config(str(folder)))
    value = json.loads(json.dumps(to_json(own)))
    shutil.rmtree(folder)
    assert from_json(value) == own
    assert own.audio.segment_s == 0.98
    assert encoders.format_label(own.audio) == "huggingface:my-ast:0.98s"


@pytest.mark.parametrize(
    ("suffix", "config"),
    [
        ("", Config("org/model", segment_s=10.0)),
        (":mean", Config("org/model", segment_s=10.0, pooling="mean")),
        ("@1a2b:2.5s", Config("org/model", "1a2b", segment_s=2.5)),
        (":mean:5s", Config("org/model", segment_s=5.0, pooling="mean")),
    ],
)
def test_a_model_of_the_hub_is_chosen_by_its_id(suffix, config, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--org--model" / "snapshots" / ("a" * 40)
    FAMILIES["dac"].extractor().save_pretrained(snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("a" * 40)
    assert encoders.config_of_variant("audio", f"huggingface:org/model{suffix}") == config
    expected = f"huggingface:org/model{suffix}"
    assert encoders.format_label(config) == expected


def test_a_hub_that_cannot_be_reached_is_named_with_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"'org/model': .* can't be read from the hub .*huggingface:org/model:10s"):
        encoders.config_of_variant("audio", "huggingface:org/model")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # a hub that refuses connections
    config = encoders.config_of_variant("audio", "huggingface:org/model:10s")
    with pytest.raises(UserError, match="audio encoder 'org/model' is neither a directory nor found on the hub"):
        require_audio(config)


def require_audio(config, weights=None):
    validation.require_working_audio_encoder(config, load_network_module(config).build(config, weights))


def test_a_model_is_found_in_the_directory_of_published_weights(models, tmp_path):
    shutil.copytree(models("whisper"), tmp_path / "whisper-tiny")
    config = replace(huggingface.VARIANTS["whisper-tiny"], segment_s=1.0)
    require_audio(config, tmp_path)
    local = Config(str(models("whisper")))
    assert huggingface.weights_fingerprint(config, tmp_path) == huggingface.weights_fingerprint(local)
    with pytest.raises(UserError, match=r"holds no directory 'MIT/ast.*preprocessor_config\.json"):
        huggingface.weights_fingerprint(huggingface.VARIANTS["ast"], tmp_path)


def test_the_signature_is_that_of_weights_extractor_and_configuration(models, tmp_path, trial, store):
    folder = shutil.copytree(models("ast"), tmp_path / "one")
    moved = shutil.copytree(models("ast"), tmp_path / "two")
    (moved / "README.md").write_text("other")
    (moved / "tokenizer.json").write_text("{}")

    def sign(folder):
        return compute_signature(replace(trial, audio=Config(str(folder))), str(store))

    before = sign(folder)
    assert sign(moved) == before
    for name in ("model.safetensors", "config.json", "preprocessor_config.json"):
        contents = (folder / name).read_bytes()
        (folder / name).write_bytes(contents + b" ")
        assert sign(folder) != before, name
        (folder / name).write_bytes(contents)
    assert compute_signature(replace(trial, audio=Config(str(folder), pooling="mean")), str(store)) != before
    assert compute_signature(replace(trial, audio=Config(str(folder), segment_s=0.5)), str(store)) != before


def test_features_of_a_frozen_model_belong_to_its_extractor_too(models, tmp_path, trial):
    """Two models that differ in a setting of the extractor alone, which is no weight."""
    folder, other = (shutil.copytree(models("ast"), tmp_path / name) for name in ("one", "other"))
    edit_json(other / "preprocessor_config.json", mean=0.0)
    hashes = [
        hash_encoder(dual_encoder.build(replace(trial, audio=Config(str(one))), ["a dog barks"]), "audio")
        for one in (folder, folder, other)
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_settings_change_what_they_say(models, built):
    for name, family in FAMILIES.items():
        if not family.pools:
            continue
        config, encoder = built(name)
        segments, counts = noise(config.segment_s)
        mean = load_network_module(config).build(replace(config, pooling="mean")).eval()
        with torch.no_grad():
            states = encoder.call_model(encoder.extract(segments[:1], counts[:1]).arguments)[0][0]
            torch.testing.assert_close(embed(mean, segments[:1], counts[:1])[0], states.mean(dim=0))
    config = Config(str(models("ast")), dropout=0.5)
    encoder = load_network_module(config).build(config).train()
    segments, counts = noise(config.segment_s)
    assert not torch.equal(embed(encoder, segments, counts), embed(encoder, segments, counts))
    with torch.no_grad():
        untouched = load_network_module(config).build(replace(config, dropout=None)).train()
        assert torch.equal(embed(untouched, segments, counts), embed(untouched, segments, counts))


def test_the_mean_of_ast_leaves_padding_out(models):
    config = Config(str(models("ast")), pooling="mean")
    encoder = load_network_module(config).build(config).eval()
    segments, counts = noise(config.segment_s)
    with torch.no_grad():
        inputs = encoder.extract(segments, counts)
        grid = encoder.model(inputs.arguments["input_values"]).last_hidden_state[1, 2:].unflatten(0, (2, 9))
        frames = math.ceil(int(inputs.valid_S[1]) * 9 / 98)
        assert frames < 9
        torch.testing.assert_close(embed(encoder, segments, counts)[1], grid[:, :frames].mean(dim=(0, 1)))


@pytest.mark.parametrize("name", ["ast", "whisper", "wav2vec2", "hubert"])
def test_the_cost_of_a_transformer_is_estimated_from_its_configuration(name, models):
    outputs = {"ast": 2 * 9 + 2, "whisper": 50, "wav2vec2": 500, "hubert": 500}[name]
    assert huggingface.flops(Config(str(models(name)))) == pytest.approx(
        huggingface.operations.count_transformer(outputs, 2, 32)
    )
    assert huggingface.flops(Config(str(models("clap")))) is None


# Front ends.


REAL = {
    "ast": lambda: library.ASTFeatureExtractor(),
    "ast 32 kHz": lambda: library.ASTFeatureExtractor(sampling_rate=32_000, max_length=300, do_normalize=False),
    "clap": lambda: library.ClapFeatureExtractor(truncation="rand_trunc"),
    "clap-fused": lambda: library.ClapFeatureExtractor(padding="repeat"),
    "clap, padded": lambda: library.ClapFeatureExtractor(padding="pad", max_length_s=2),
    "whisper": lambda: library.WhisperFeatureExtractor(feature_size=128),
    "seamless": lambda: library.SeamlessM4TFeatureExtractor(),
    "wav2vec2": lambda: library.Wav2Vec2FeatureExtractor(),
    "wav2vec2, as it is": lambda: library.Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True),
    "dac": lambda: library.DacFeatureExtractor(),
    "encodec": lambda: library.EncodecFeatureExtractor(),
    "pe-audio": lambda: library.PeAudioFeatureExtractor(),
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("name", REAL)
def test_front_ends_compute_what_the_published_extractors_do(name):
    """Of real size: for noise, and for loud and soft recordings of other lengths."""
    extractor = REAL[name]()
    segment_s = huggingface.get_own_segment_s(extractor.to_dict()) or 2.0
    size = round(segment_s * extractor.sampling_rate)
    own = feature_extraction.ExtractorFrontEnd(extractor, size)
    front_end = feature_extraction.FRONT_ENDS[type(extractor).__name__](extractor)
    assert feature_extraction.measure_difference(front_end, own, size) < 1e-4
    seconds, _ = noise(segment_s, (1.0, 1.0, 1.0))
    samples = resample(seconds, SAMPLE_RATE_HZ, extractor.sampling_rate)[:, :size] * torch.tensor(
        [[5.0], [1.0], [0.01]]
    )
    counts = torch.tensor([size - 1, size // 3 + 7, size // 2])
    samples *= torch.arange(size) < counts[:, None]
    actual, expected = front_end(samples, counts), own(samples, counts)
    for key, value in expected.arguments.items():
        scale = max(1.0, value.double().abs().max().item())
        torch.testing.assert_close(actual.arguments[key].double(), value.double(), rtol=0, atol=1e-4 * scale, msg=key)
    assert type(feature_extraction.make_front_end(extractor, segment_s)) is type(front_end)


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_an_extractor_without_a_front_end_is_called_itself(name, built, monkeypatch):
    config, encoder = built(name)
    monkeypatch.setattr(feature_extraction, "FRONT_ENDS", {})
    called = load_network_module(config).build(config).eval()
    assert isinstance(called.front_end, feature_extraction.ExtractorFrontEnd)
    segments, counts = noise(config.segment_s, (1.0, 0.57, 0.01))
    torch.testing.assert_close(embed(called, segments, counts), embed(encoder, segments, counts), rtol=1e-4, atol=1e-4)


def test_a_front_end_that_differs_from_the_extractor_is_not_used(caplog):
    extractor = library.WhisperFeatureExtractor(chunk_length=1)
    extractor.mel_filters = extractor.mel_filters * 1.001
    assert isinstance(feature_extraction.make_front_end(extractor, 1.0), front_ends.WhisperFrontEnd)
    front_end = front_ends.WhisperFrontEnd(extractor)
    front_end.mel.bank *= 1.01
    own = feature_extraction.ExtractorFrontEnd(extractor, 16_000)
    assert feature_extraction.measure_difference(front_end, own, 16_000) > feature_extraction.TOLERANCE

    class Changed(library.WhisperFeatureExtractor):
        def __call__(self, *given, **options):
            output = super().__call__(*given, **options)
            output["input_features"] = output["input_features"] + 0.01
            return output

    Changed.__name__ = "WhisperFeatureExtractor"
    made = feature_extraction.make_front_end(Changed(chunk_length=1), 1.0)
    assert isinstance(made, feature_extraction.ExtractorFrontEnd)
    assert "WhisperFeatureExtractor differs from its torch version by 0.0" in caplog.text


# What is refused.


@pytest.fixture
def check(trial):
    """A function that validates a trial with an audio encoder, as pretrain.py and a sweep do."""
    return lambda name: require_working_encoders(
        [replace(trial, audio=encoders.config_of_variant("audio", name))], None
    )


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def write_extractor(folder, extractor):
    (folder / "preprocessor_config.json").unlink()
    extractor.save_pretrained(folder)


def change_weights(folder, change):
    weights = change(load_file(folder / "model.safetensors"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def without(part):
    return lambda weights: {name: tensor for name, tensor in weights.items() if part not in name}


def with_nan(weights):
    next(tensor for name, tensor in weights.items() if "layernorm" in name)[0] = float("nan")
    return weights


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        (
            "ast",
            lambda folder: (folder / "preprocessor_config.json").unlink(),
            "has no feature extractor .*save_pr",
        ),
        ("ast", lambda folder: (folder / "preprocessor_config.json").write_text("{"), "can't be read"),
        ("ast", lambda folder: (folder / "preprocessor_config.json").write_text("[1]"), "isn't an object"),
        (
            "ast",
            lambda folder: (folder / "preprocessor_config.json").write_text('{"image_processor_type": "ViT"}'),
            "has no sampling_rate: a model of images or text can't be an audio encoder",
        ),
        ("ast", lambda folder: (folder / "model.safetensors").unlink(), r"has no model\.safetensors"),
        ("ast", lambda folder: (folder / "config.json").unlink(), r"has no config\.json"),
        ("ast", lambda folder: (folder / "adapter_config.json").write_text("{}"), "an adapter .*merge_and_unload"),
        ("ast", lambda folder: (folder / "model.safetensors").rename(folder / "m.gguf"), "weights in GGUF"),
        ("ast", lambda folder: (folder / "model.safetensors").rename(folder / "m.onnx"), "weights in ONNX"),
        ("ast", lambda folder: change_weights(folder, without(".1.")), "names are missing"),
        ("ast", lambda folder: change_weights(folder, with_nan), "aren't finite"),
        ("clap", lambda folder: change_weights(folder, without("audio_encoder.norm")), "names are missing"),
        ("whisper", lambda folder: change_weights(folder, without("encoder.conv1")), "names are missing"),
        ("dac", lambda folder: change_weights(folder, without("encoder.conv1")), "names are missing"),
        ("ast", lambda folder: edit_json(folder / "config.json", hidden_size=64), "shapes differ"),
        ("ast", lambda folder: edit_json(folder / "config.json", max_length=50), "max_length is 50, but its AST.* 98"),
        ("whisper", lambda folder: edit_json(folder / "config.json", num_mel_bins=20), "feature_size is 16"),
        ("dac", lambda folder: edit_json(folder / "config.json", sampling_rate=44_100), "sampling_rate is 16000"),
        ("encodec", lambda folder: edit_json(folder / "preprocessor_config.json", sampling_rate=8000), "is 8000"),
        ("encodec", lambda folder: edit_json(folder / "preprocessor_config.json", feature_size=2), "feature_size is 2"),
        (
            "whisper",
            lambda folder: write_extractor(folder, library.Wav2Vec2FeatureExtractor()),
            "reads input_features, but its Wav2Vec2FeatureExtractor makes input_values",
        ),
        (
            "clap",
            lambda folder: edit_json(folder / "preprocessor_config.json", truncation="fusion"),
            "can't be loaded",
        ),
    ],
)
def test_a_damaged_or_wrong_folder_is_refused(name, damage, message, models, tmp_path, check):
    """Before audio is read: by the name on the command line, or where the encoders are checked."""
    folder = shutil.copytree(models(name), tmp_path / name)
    damage(folder)
    with pytest.raises(UserError, match=message):
        check(f"huggingface:{folder}")


def test_models_of_images_and_of_text_are_refused(tmp_path, models):
    vit = library.ViTModel(library.ViTConfig(**SIZES, image_size=32))
    bert = library.BertModel(library.BertConfig(**TEXT))
    for model, name in ((vit, "pixel_values"), (bert, "input_ids")):
        folder = tmp_path / type(model).__name__
        model.save_pretrained(folder)
        with pytest.raises(UserError, match="has no feature extractor"):
            encoders.config_of_variant("audio", f"huggingface:{folder}")
        library.Wav2Vec2FeatureExtractor().save_pretrained(folder)
        with pytest.raises(UserError, match=f"reads {name}, but its Wav2Vec2FeatureExtractor makes input_values"):
            require_audio(encoders.config_of_variant("audio", f"huggingface:{folder}"))
    config = text_models.Config(str(models("wav2vec2")))
    library.BertTokenizer(vocab={"[PAD]": 0, "[UNK]": 1, "rain": 2}).save_pretrained(tmp_path / "words")
    folder = shutil.copytree(models("wav2vec2"), tmp_path / "speech")
    shutil.copytree(tmp_path / "words", folder, dirs_exist_ok=True)
    with pytest.raises(UserError, match="a wav2vec2 model reads input_values, not text"):
        load_network_module(config).build(replace(config, model=str(folder)), ["rain"])


def test_an_adapter_is_refused_as_a_text_encoder(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"adapter_config\.json: the folder holds an adapter"):
        encoders.config_of_variant("text", f"huggingface:{tmp_path}")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"segment_s": 1.5}, "segment_s is 1.5, but the model reads 1 s"),
        ({"segment_s": 0.01}, "it must be at least 0.1 s"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"pooling": "last"}, "pooling is 'last': it must be own or mean"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(settings, message, models):
    with pytest.raises(UserError, match=message):
        require_audio(Config(str(models("whisper")), **settings))


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
def test_code_that_comes_with_a_model_is_never_run(file, models, tmp_path, monkeypatch):
    folder = shutil.copytree(models("ast"), tmp_path / "ast")
    (folder / "evil.py").write_text("import pathlib\npathlib.Path(__file__).with_name('marker').touch()\n")
    kind = "AutoConfig" if file == "config.json" else "AutoFeatureExtractor"
    names = {"model_type": "evil", "feature_extractor_type": "EvilExtractor"}
    edit_json(folder / file, auto_map={kind: "evil.Evil"}, **names)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    with pytest.raises(UserError, match="needs Python code that comes with the model"):
        require_audio(Config(str(folder)))
    assert sys.stdin.read() == "y\n"
    assert not (folder / "marker").exists()

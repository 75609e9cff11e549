"""Audio models that users bring as `huggingface:FOLDER`: each family's vectors, compared with what transformers' own
model and feature extractor compute, and what is refused.

All are real models of transformers, tiny and with random weights, saved with their feature extractors.
"""

import json
import math
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as library
from torch.nn import functional
from torchaudio.functional import resample

from data.loading.batch import NUM_MASK_DRAWS
from data.schema import SAMPLE_RATE_HZ
from trainables.encoders.audio.huggingface import Config
from trainables.networks import load_network_module, validation
from trainables.networks.audio import feature_extraction
from trainables.networks.dual_encoder import restore_audio_encoder

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
DAC = {"encoder_hidden_size": 4, "downsampling_ratios": [2, 4, 8], "decoder_hidden_size": 32, "n_codebooks": 2,
       "codebook_size": 16, "codebook_dim": 8, "sampling_rate": 16_000, "hop_length": 64, "hidden_size": 32}  # fmt: skip
ENCODEC = {"num_filters": 4, "upsampling_ratios": [8, 4], "num_lstm_layers": 1, "hidden_size": 32, "codebook_dim": 32,
           "codebook_size": 16, "target_bandwidths": [1.5], "sampling_rate": 24_000}  # fmt: skip
PE_AUDIO = {**SIZES, "head_dim": 16, "dac_config": DAC | {"sampling_rate": 48_000}}


def clap(**more):
    return library.ClapModel(library.ClapConfig(text_config=TEXT, audio_config=CLAP_AUDIO | more, projection_dim=16))


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
        lambda: library.PeAudioModel(
            library.PeAudioConfig(text_config=TEXT | {"model_type": "modernbert", "pad_token_id": 0}, audio_config=PE_AUDIO)
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
        waveform(True), unused=("masked_spec_embed",)),
    "wav2vec2-bert": Family(
        lambda: library.Wav2Vec2BertModel(library.Wav2Vec2BertConfig(**SIZES, feature_projection_input_dim=32)),
        lambda: library.SeamlessM4TFeatureExtractor(feature_size=16, num_mel_bins=16, padding_value=1.0),
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
    "dac": Family(lambda: library.DacModel(library.DacConfig(**DAC)),
                  lambda: library.DacFeatureExtractor(hop_length=64), lambda model: model.encoder),
    "encodec": Family(lambda: library.EncodecModel(library.EncodecConfig(**ENCODEC)),
                      lambda: library.EncodecFeatureExtractor(), lambda model: model.encoder),
}  # fmt: skip


SEGMENT_S = 2.0
"""Length of a segment of a family that takes any."""

LENGTHS = (1.0, 0.57)
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
        own = len(reference.outputs(inputs)[1]) if name != "whisper" else math.ceil(count / 2 / 320)
        for key, value in inputs.items():
            missing = [end - now for now, end in zip(value.shape[::-1], whole[key].shape[::-1], strict=True)]
            padding = 0 if "mask" in key else reference.extractor.padding_value
            inputs[key] = functional.pad(value, [size for end in missing for size in (0, end)], value=padding)
        pooled, states = reference.outputs(inputs)
        expected = pooled[0] if FAMILIES[name].pools else states[:own].mean(dim=0)
        assert vector.shape == expected.shape == (encoder.width,)
        torch.testing.assert_close(vector, expected, rtol=1e-5, atol=1e-5)

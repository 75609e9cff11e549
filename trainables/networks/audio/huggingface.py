"""Network of audio encoders from Hugging Face's transformers.

Shapes: S segments, N samples, F outputs of a model, W width.
"""

import contextlib
import inspect
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchaudio.functional import resample
from transformers import PreTrainedModel

from data.errors import UserError
from data.schema import SAMPLE_RATE_HZ
from trainables.encoders import hub_models, pretrained_files, published
from trainables.encoders.audio import huggingface
from trainables.encoders.audio.huggingface import Config
from trainables.networks import pretrained
from trainables.networks.audio.feature_extraction import MIN_AUDIO_S, make_front_end
from trainables.networks.audio.front_ends import Inputs, mask_positions, precise

SHAPE_FILE, EXTRACTOR_FILE = "audio_config.json", "audio_extractor.json"
"""Files beside a trained model with its transformers config and the settings of its feature extractor."""

TOWERS = ("audio_model", "audio_tower", "audio_encoder", "speech_encoder")
"""Names that a model of several kinds of input gives its audio encoder."""

SHARED_SETTINGS = (
    ("sampling_rate", "sampling_rate"),
    ("hop_length", "hop_length"),
    ("max_length", "max_length"),
    ("audio_channels", "feature_size"),
)
"""Settings of a model that its feature extractor has, too: their names in the one and in the other."""

AST_TOKENS = 2
"""Number of AST's outputs that aren't for patches of the spectrogram, at the beginning."""

PROBE_S = 1.0
"""Length in seconds of the noise that shows a model's width and unused weights."""


def build(config: Config, weights: Path | None = None) -> "HuggingFaceAudioEncoder":
    """Return the network with the published model and its feature extractor, read from the directory `weights` if it is
    given, otherwise from the location that the config names.

    Raises UserError if the model is missing or truncated, if it has no audio encoder, if its feature extractor is
    missing or another model's, if its input is shorter than the config's segments, or if its weights don't match its
    config.json or aren't finite.
    """
    location = huggingface.locate_model(config, weights)
    revision = hub_models.choose_revision("audio", location, config.revision)
    with pretrained.loading_errors_as_user_errors("audio", config.model):
        huggingface.read_extractor_settings(location, revision)  # refuses a model without an extractor for audio
        extractor = pretrained_files.load_extractor(location, revision=revision)
        shape = pretrained_files.load_shape(location, revision=revision)
        for part in {id(part): part for part in (shape, getattr(shape, "audio_config", None)) if part}.values():
            prepare_shape(part, config.dropout)
        model, differences = pretrained.load_model(location, shape, revision=revision)
        body = get_audio_body(model)
        require_matching_extractor(model, body, extractor)
        require_segment_fits(config, extractor)
    pretrained.require_body_weights(location, model, body, differences)
    published.require_finite_weights(body, location)
    freeze_constants(body, shape, location)
    with pretrained.loading_errors_as_user_errors("audio", config.model):
        return HuggingFaceAudioEncoder(config, shape, body, extractor)


def restore(config: Config, folder: Path) -> "HuggingFaceAudioEncoder":
    """Return the network of a config without its trained weights, which the caller loads. The model's shape and the
    feature extractor's settings are read from `folder`, where `save_extractor` wrote them.
    """
    shape = pretrained_files.load_shape(folder / SHAPE_FILE)
    extractor = pretrained_files.load_extractor(folder / EXTRACTOR_FILE)
    return HuggingFaceAudioEncoder(config, shape, pretrained.create_body(shape, folder, get_audio_body), extractor)


def prepare_shape(shape: Any, dropout: float | None) -> None:
    """Set the dropout rates in a transformers config `shape`, unless `dropout` is None, and disable what training can't
    have: LayerDrop, and masks of the models' own, which NumPy's global generator would draw.
    """
    pretrained.disable_training_switches(shape)
    if dropout is not None:
        pretrained.set_dropout(shape, dropout)
    if hasattr(shape, "mask_time_prob"):
        shape.apply_spec_augment = False


def get_audio_body(model: Any) -> Any:
    """Return the part of a transformers model that embeds audio: the audio tower of a model of audio and text, and the
    encoder of a codec, of an encoder-decoder model or of a model with a head; otherwise the model.
    """
    for name in TOWERS:
        if isinstance(tower := getattr(model, name, None), PreTrainedModel):
            return get_audio_body(tower)
    encoder = getattr(model, "encoder", None)
    has_decoder = getattr(model, "decoder", None) is not None
    return encoder if isinstance(encoder, PreTrainedModel) or (encoder is not None and has_decoder) else model


def get_shape(model: Any, body: Any) -> Any:
    """Return the transformers config from which a model with the audio encoder `body`, a part of `model`, is built."""
    return body.config if isinstance(body, PreTrainedModel) else model.config


def freeze_constants(body: Any, shape: Any, location: str) -> None:
    """Disable the gradients of those weights of an audio encoder, `body`, that its class creates as constants, such as
    Whisper's sinusoidal positions: loading by transformers (5.23) enables them. The config `shape` was read at
    `location`.
    """
    created = dict(pretrained.sketch_body(shape, location, get_audio_body).named_parameters())
    for name, parameter in body.named_parameters():
        parameter.requires_grad_(created[name].requires_grad)


def require_matching_extractor(model: Any, body: Any, extractor: Any) -> None:
    """Raise UserError unless a feature extractor makes the input of the audio encoder `body`, a part of `model`: mono
    audio under the name that the encoder reads, at its sample rate, with its numbers of mel bands and of frames.
    """
    shape, kind = get_shape(model, body), type(extractor).__name__
    if not isinstance(getattr(extractor, "sampling_rate", None), int):
        raise UserError(f"its {kind} has no sampling_rate, so that it isn't one for audio: give an audio model")
    name = getattr(body, "main_input_name", model.main_input_name)
    if name not in extractor.model_input_names:
        raise UserError(
            f"a {shape.model_type} model reads {name}, but its {kind} makes {extractor.model_input_names[0]}: "
            "give an audio model, with the feature extractor that belongs to it"
        )
    mels = "num_mel_bins" if hasattr(extractor, "num_mel_bins") else "feature_size"
    for part in (shape, getattr(shape, "dac_config", None)):
        for name_here, other in (*SHARED_SETTINGS, ("num_mel_bins", mels)):
            expected, actual = getattr(part, name_here, None), getattr(extractor, other, None)
            if isinstance(expected, int) and isinstance(actual, int) and expected != actual:
                raise UserError(
                    f"the model's {name_here} is {expected}, but its {kind}'s {other} is {actual}: replace its "
                    "preprocessor_config.json by that of this model"
                )
    if extractor.feature_size == 2 and kind in ("EncodecFeatureExtractor", "DacFeatureExtractor"):
        raise UserError("it reads stereo, but clips are mono: use a model for mono audio")


def require_segment_fits(config: Config, extractor: Any) -> None:
    """Raise UserError if the config's segments are longer than the input that the feature extractor makes."""
    limit = huggingface.get_own_segment_s(extractor.to_dict())
    if limit is not None and config.segment_s > limit:
        raise UserError(f"segment_s is {config.segment_s:g}, but the model reads {limit:g} s: make it at most that")


class HuggingFaceAudioEncoder(nn.Module):
    """Network that embeds a segment by a model of transformers. Batch normalisation always uses the model's own
    statistics, since those of a batch would depend on its other segments.
    """

    reads_num_samples = True

    def __init__(self, config: Config, shape: Any, model: Any, extractor: Any) -> None:
        super().__init__()
        self.config, self.shape, self.extractor = config, shape, extractor
        self.model = model
        self.front_end = make_front_end(extractor, config.segment_s)
        self.accepted = tuple(inspect.signature(model.forward).parameters)
        self.width = self.probe()

    def probe(self) -> int:
        """Return the size of the vectors, and freeze weights that take no part in them."""
        size = round(min(PROBE_S, self.config.segment_s) * SAMPLE_RATE_HZ)
        segments_SN = 0.1 * torch.randn(2, size, generator=torch.Generator().manual_seed(0))
        inputs = (segments_SN, torch.empty(0), torch.Generator(), torch.full((2,), size))
        vectors: list[Tensor] = []

        def embed() -> Tensor:
            vectors.append(self(*inputs))
            return vectors[-1]

        if torch.is_inference_mode_enabled():
            return int(embed().shape[1])
        pretrained.freeze_unused_weights(self, embed)
        return int(vectors[0].shape[1])

    @property
    def blocks(self) -> list[nn.Module]:
        """Layers that account for nearly all compute time: the ModuleList with the most weights. Activation
        checkpointing and torch.compile apply to each of them.
        """
        lists = [part for part in self.model.modules() if isinstance(part, nn.ModuleList)]
        sizes = [sum(parameter.numel() for parameter in part.parameters()) for part in lists]
        return max(zip(sizes, map(list, lists), strict=True), key=lambda pair: pair[0], default=(0, [self.model]))[1]

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode, and return the network. Batch normalisation stays in evaluation mode."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self

    def forward(
        self, segments_SN: Tensor, mask_draws: Tensor, generator: torch.Generator, num_samples_S: Tensor
    ) -> Tensor:
        """Return the embeddings [S, width] of S segments of N samples, of which the first `num_samples_S` are the
        recording's; `mask_draws` and `generator` are not used.
        """
        inputs = self.extract(segments_SN, num_samples_S)
        states_SFW, pooled_SW = self.call_model(inputs.arguments)
        if pooled_SW is not None and self.config.pooling == "own":
            return pooled_SW
        counts_S = self.count_outputs(inputs, states_SFW.shape[1])
        weights_SF = mask_positions(states_SFW.shape[1], counts_S).to(states_SFW.dtype) / counts_S[:, None].to(
            states_SFW.dtype
        )
        return (states_SFW * weights_SF.unsqueeze(2)).sum(dim=1)

    @torch.no_grad()
    def extract(self, segments_SN: Tensor, num_samples_S: Tensor) -> Inputs:
        """Return the model's input for segments [S, N], of which the first `num_samples_S` samples are the
        recording's.
        """
        rate_hz = self.extractor.sampling_rate
        with torch.autocast(segments_SN.device.type, enabled=False):
            samples_SN = resample(precise(segments_SN), SAMPLE_RATE_HZ, rate_hz).float()
            counts_S = (num_samples_S * rate_hz + SAMPLE_RATE_HZ - 1) // SAMPLE_RATE_HZ
            # Resampling spreads the recording's last samples over the zeros after it.
            samples_SN = samples_SN * mask_positions(samples_SN.shape[1], counts_S)
            inputs: Inputs = self.front_end(samples_SN, counts_S.clamp(min=round(MIN_AUDIO_S * rate_hz)))
        return inputs

    def call_model(self, arguments: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Return the model's outputs [S, F, W] for its arguments by name, and what it pools from them [S, W], if it
        does.
        """
        if not isinstance(self.model, PreTrainedModel):  # a codec's encoder
            latents_SWF: Tensor = self.model(arguments["input_values"])
            return latents_SWF.transpose(1, 2), None
        outputs = self.model(**{name: value for name, value in arguments.items() if name in self.accepted})
        if (latents := getattr(outputs, "latents", None)) is not None:
            return latents.transpose(1, 2), None
        if (states := getattr(outputs, "last_hidden_state", None)) is None:
            raise UserError(f"a {self.shape.model_type} model returns no last_hidden_state: use another model")
        if states.dim() > 3:  # CLAP's map of features over frequency and time
            states = states.flatten(2).transpose(1, 2)
        elif self.shape.model_type == "audio-spectrogram-transformer":
            rows = (self.shape.num_mel_bins - self.shape.patch_size) // self.shape.frequency_stride + 1
            states = states[:, AST_TOKENS:].unflatten(1, (rows, -1)).mean(dim=1)
        return states, getattr(outputs, "pooler_output", None)

    def count_outputs(self, inputs: Inputs, length: int) -> Tensor:
        """Return the number of a segment's outputs [S] that aren't for padding, out of `length` outputs."""
        counts_S = None
        if count := getattr(self.model, "_get_feat_extract_output_lengths", None):
            with contextlib.suppress(ValueError, RuntimeError):  # a few models count for one recording only
                counts_S = count(inputs.valid_S)
        if not isinstance(counts_S, Tensor):
            counts_S = (inputs.valid_S * length + inputs.length - 1) // inputs.length
        return counts_S.clamp(1, length)

    def save_extractor(self, folder: Path) -> None:
        """Write the model's config and the feature extractor's settings to a folder, from which `restore` reads
        them.
        """
        self.shape.to_json_file(folder / SHAPE_FILE)
        self.extractor.to_json_file(folder / EXTRACTOR_FILE)

"""Audio encoders from the Hugging Face hub or a local directory: AST, CLAP's audio encoder, Whisper's encoder, wav2vec
2.0, HuBERT, DAC and others.

A segment's vector is what the model itself pools from its outputs, such as AST's pooler_output, or, for a model that
pools nothing, the mean over its outputs that aren't for padding. The model's own feature extractor determines the
sample rate, the input and how padding is treated.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from data.errors import UserError
from trainables.encoders import hub_models, model_files, operations, pretrained_files

Pooling = Literal["own", "mean"]

NAME = re.compile(r"(?P<location>.*?)(:(?P<pooling>own|mean))?(:(?P<seconds>\d+(\.\d+)?)s)?")
"""Name of an encoder on a command line, after the family: a model, and optionally its pooling and the length of its
segments.
"""

DEFAULT_SEGMENT_S = 10.0
"""Length of a segment for a model that takes audio of any length."""

OWN_SEGMENTS = {
    "ASTFeatureExtractor": ("max_length", 1024, 0.01),
    "ClapFeatureExtractor": ("max_length_s", 10, 1.0),
    "WhisperFeatureExtractor": ("chunk_length", 30, 1.0),
}
"""Feature extractors whose input has a fixed length: the setting with the length, its default in transformers, and its
unit in seconds.
"""

MIN_SEGMENT_S = 0.1


@dataclass(frozen=True)
class Config:
    """Configuration of an audio encoder. `model` is the id of a model on the Hugging Face hub, or a local directory.

    If `segment_s` is 0, it is replaced by the length of the model's own input, which is read from the files of its
    feature extractor, or by DEFAULT_SEGMENT_S if that takes audio of any length. Raises UserError if there is none.
    """

    model: str
    revision: str | None = None  # a commit of the hub; None: the newest commit when the trial's signature is computed
    segment_s: float = 0.0
    dropout: float | None = None  # all rates of dropout; None: the model's own
    pooling: Pooling = "own"

    def __post_init__(self) -> None:
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise UserError(f"dropout is {self.dropout}: it must be at least 0 and below 1")
        if self.pooling not in get_args(Pooling):
            raise UserError(f"pooling is {self.pooling!r}: it must be {' or '.join(get_args(Pooling))}")
        if self.segment_s == 0:
            settings = read_extractor_settings(self.model, self.revision)
            object.__setattr__(self, "segment_s", get_own_segment_s(settings) or DEFAULT_SEGMENT_S)
        if not MIN_SEGMENT_S <= self.segment_s < math.inf:
            raise UserError(f"segment_s is {self.segment_s}: it must be at least {MIN_SEGMENT_S} s, or 0")

    @property
    def augmentations(self) -> tuple[str, ...]:
        """Names of the augmentations used in training: none."""
        return ()

    @property
    def patch_overlap(self) -> None:
        """Overlap of neighbouring spectrogram patches: None, since it isn't known of any model."""
        return None

    @property
    def is_published(self) -> bool:
        """Whether training starts from published weights: True, it starts from those of `model`."""
        return True


VARIANTS = {
    "ast": Config("MIT/ast-finetuned-audioset-10-10-0.4593", segment_s=10.24),
    "clap": Config("laion/clap-htsat-unfused", segment_s=10.0),
    "clap-fused": Config("laion/clap-htsat-fused", segment_s=10.0),
    "whisper-tiny": Config("openai/whisper-tiny", segment_s=30.0),
    "whisper-base": Config("openai/whisper-base", segment_s=30.0),
    "wav2vec2-base": Config("facebook/wav2vec2-base", segment_s=10.0),
    "hubert-base": Config("facebook/hubert-base-ls960", segment_s=10.0),
    "wavlm-base": Config("microsoft/wavlm-base", segment_s=10.0),
}

SIZES = {
    "MIT/ast-finetuned-audioset-10-10-0.4593": (12, 768, 1214 / 10.24),
    "openai/whisper-tiny": (4, 384, 50.0),
    "openai/whisper-base": (6, 512, 50.0),
    "facebook/wav2vec2-base": (12, 768, 50.0),
    "facebook/hubert-base-ls960": (12, 768, 50.0),
    "microsoft/wavlm-base": (12, 768, 50.0),
}
"""Numbers of layers, widths and outputs per second of the hub's models, for estimates (Gong et al. 2021, Radford et al.
2022, Baevski et al. 2020, Hsu et al. 2021, Chen et al. 2022).
"""

LOADING_VERSION = "1:"
"""Version of the code that loads and feeds models, part of their fingerprint. Change it with a change that gives a
model another vector.
"""


def parse_name(name: str) -> Config:
    """Return the Config of a model that isn't one of VARIANTS: 'FOLDER' or 'ORGANISATION/MODEL', the latter optionally
    with '@REVISION', and either with ':mean' and with the length of a segment in seconds, such as ':5s'.

    The path of a folder is made absolute. Raises UserError, which says what is possible, for any other name, and for a
    model without a feature extractor.
    """
    match = NAME.fullmatch(name)
    assert match  # the location may be anything
    model, revision = hub_models.parse_location("audio", match["location"], name, VARIANTS)
    pooling: Pooling = "mean" if match["pooling"] == "mean" else "own"
    return Config(model, revision, float(match["seconds"] or 0), pooling=pooling)


def format_name(config: Config) -> str:
    """Return the name to show for a Config that isn't one of VARIANTS: the folder's name or the model's id on the hub,
    with the revision, the pooling and the length of a segment unless they are the defaults.

    A folder that is called like a variant is shown with the folder that it is in.
    """
    pooling = "" if config.pooling == "own" else f":{config.pooling}"
    segment = "" if config.segment_s == DEFAULT_SEGMENT_S else f":{config.segment_s:g}s"
    return f"{hub_models.format_location(config.model, config.revision, VARIANTS)}{pooling}{segment}"


def read_extractor_settings(model: str, revision: str | None) -> dict[str, Any]:
    """Return the settings of the feature extractor of a model in a folder or on the hub, as transformers finds them.

    Raises UserError if the model has none, if it is one for images, or if the hub can't be reached.
    """
    files = find_model_files(model, revision, model_files.EXTRACTOR_FILES)
    contents = {name: model_files.read_json(path) for name, path in files.items()}
    if not all(isinstance(content, dict) for content in contents.values()):
        raise UserError(f"audio encoder {model!r}: {' or '.join(contents)} isn't an object with settings by name")
    plain, processor = (contents.get(name, {}) for name in model_files.EXTRACTOR_FILES)
    settings = processor.get("feature_extractor", processor.get("audio_processor", plain))
    if not settings:
        raise UserError(
            f"audio encoder {model!r} has no feature extractor ({' or '.join(model_files.EXTRACTOR_FILES)}): write it "
            "there with save_pretrained of the model's AutoFeatureExtractor"
        )
    if not isinstance(settings, dict) or not {"sampling_rate", "feature_extractor_type"} & settings.keys():
        raise UserError(
            f"audio encoder {model!r}: its {' or '.join(contents)} isn't that of an audio feature extractor, since it "
            "has no sampling_rate: a model of images or text can't be an audio encoder"
        )
    return settings


def find_model_files(model: str, revision: str | None, names: tuple[str, ...]) -> dict[str, Path]:
    """Return, by name, the local paths of those files `names` that a model in a folder or on the hub has; those of the
    hub are downloaded if necessary. Raises UserError if the folder doesn't exist or the hub can't be reached.
    """
    folder = Path(model)
    if folder.is_dir():
        return {name: folder / name for name in names if (folder / name).is_file()}
    if folder.is_absolute():
        raise UserError(f"audio encoder {model!r}: the folder doesn't exist: give the folder of a model")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    paths, problems = {}, []
    for name in names:
        try:
            paths[name] = Path(hf_hub_download(model, name, revision=revision))
        except RemoteEntryNotFoundError:
            continue
        except Exception as error:  # the types of errors depend on the HTTP client of the installed huggingface_hub
            problems.append(error)
    if problems and not paths:  # without a connection, the local cache may hold one of the files
        raise UserError(
            f"audio encoder {model!r}: {' and '.join(names)} can't be read from the hub "
            f"({type(problems[0]).__name__}): check its name, give the folder of a downloaded model "
            f"(huggingface:FOLDER), or the length of its segments, as in huggingface:{model}:10s"
        ) from problems[0]
    return paths


def get_own_segment_s(settings: dict[str, Any]) -> float | None:
    """Return the length in seconds of the input that a feature extractor makes, given its `settings`; None if it takes
    audio of any length. Raises UserError if the length isn't a positive number.
    """
    named = settings.get("feature_extractor_type")
    kinds = [kind for kind, (key, _, _) in OWN_SEGMENTS.items() if kind == named or (not named and key in settings)]
    if not kinds:
        return None
    key, default, unit_s = OWN_SEGMENTS[kinds[0]]
    length = settings.get(key, default)
    if not isinstance(length, int | float) or length <= 0:
        raise UserError(f"the feature extractor's {key} is {length!r}: it must be a positive number")
    return float(round(length * unit_s, 6))


def flops(config: Config) -> float | None:
    """Return the number of floating-point operations of a segment's forward pass, those of the transformer's layers;
    None for a model whose size isn't known.

    Raises UserError for a directory whose config.json can't be read.
    """
    layers, width, outputs_per_s = SIZES.get(config.model, (0, 0, 0.0))
    if Path(config.model).is_dir():
        try:
            shape = pretrained_files.load_shape(config.model)
        except UserError as error:
            raise UserError(f"audio encoder {config.model!r}: {error}") from error
        except Exception as error:  # truncated files raise any error of the JSON parser
            raise UserError(f"audio encoder {config.model!r} can't be loaded: {error}") from error
        layers, width = (get_number(shape, names) for names in (LAYER_NAMES, WIDTH_NAMES))
        outputs_per_s = count_outputs(shape, config)
    if not layers or not width or not outputs_per_s:
        return None
    return operations.count_transformer(config.segment_s * outputs_per_s, layers, width)


LAYER_NAMES, WIDTH_NAMES = ("num_hidden_layers", "encoder_layers"), ("hidden_size", "d_model")
"""Names that the number of layers and the width have in the configs of transformers."""


def get_number(shape: Any, names: tuple[str, ...]) -> int:
    """Return the first of the attributes `names` of a transformers config that is a whole number; 0 if none is."""
    return next((value for name in names if isinstance(value := getattr(shape, name, None), int)), 0)


def count_outputs(shape: Any, config: Config) -> float:
    """Return the number of outputs per second of a model with a transformers config, `shape`, whose kind is known: AST,
    Whisper, and models with convolutions over 16 kHz audio; 0 for any other.
    """
    if strides := getattr(shape, "conv_stride", None):
        rate_hz: int = read_extractor_settings(config.model, config.revision).get("sampling_rate", 16_000)
        return rate_hz / float(math.prod(strides))
    if positions := getattr(shape, "max_source_positions", None):
        return float(positions) / config.segment_s
    if shape.model_type == "audio-spectrogram-transformer":
        rows = (shape.num_mel_bins - shape.patch_size) // shape.frequency_stride + 1
        columns = (shape.max_length - shape.patch_size) // shape.time_stride + 1
        return float(rows * columns + 2) / config.segment_s
    return 0.0


def weights_fingerprint(config: Config, weights: Path | None = None) -> str:
    """Return a string that identifies the initial weights. For a model in a local directory, also one in `weights`, it
    contains the SHA-256 of the model's weights, feature extractor and configuration; for a model on the hub,
    'model@commit'. Raises UserError if the model can't be found.
    """
    folder = Path(locate_model(config, weights))
    if folder.is_dir():
        digest = model_files.hash_model(folder, with_layers=False, input_files=model_files.EXTRACTOR_FILES)
        return f"{LOADING_VERSION}sha256:{digest}"
    return f"{LOADING_VERSION}{config.model}@{config.revision or hub_models.look_up_commit('audio', config.model)}"


def locate_model(config: Config, weights: Path | None) -> str:
    """Return where transformers finds the model that a config names: the path of a local directory, or the model's id
    on the hub. A model of the hub must be in the directory `weights` if that is given. Raises UserError if it isn't.
    """
    return hub_models.locate_model(config.model, weights, "preprocessor_config.json")

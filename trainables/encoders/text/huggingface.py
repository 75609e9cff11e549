"""Text encoders from the Hugging Face hub or a local directory: encoders such as BERT, decoder-only models such as
GPT-2, the encoders of encoder-decoder models such as T5, and models of sentence-transformers.

A sentence's vector is the last layer's output for the first token, as in the paper (section 2.2), the mean over its
tokens, or the output for the last token, which is the only one that depends on the whole sentence in a decoder-only
model. A model of sentence-transformers, which has a modules.json, defines its own pooling and further layers. With the
pooling 'own', it is what the model itself pools from its outputs, such as the text encoder of CLAP.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from data.errors import UserError
from trainables.encoders import hub_models, model_files, operations, pretrained_files

Pooling = Literal["first", "mean", "last", "own"]


@dataclass(frozen=True)
class Config:
    """Configuration of a text encoder. `model` is the id of a model on the Hugging Face hub, or a local directory.

    If the model has a modules.json, that file defines the pooling and further layers. A `pooling` other than the
    default must then be the one in that file.
    """

    model: str
    revision: str | None = None  # a commit of the hub; None: the newest commit when the trial's signature is computed
    dropout: float = 0.2  # hidden and attention dropout; from the authors' published settings, not in the paper
    max_tokens: int = 32
    pooling: Pooling = "first"

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout is {self.dropout}: it must be at least 0 and below 1")
        if self.max_tokens < 3:
            raise UserError(
                f"max_tokens is {self.max_tokens}: at least 3 are needed, since two mark the ends of a sentence"
            )
        if self.pooling not in get_args(Pooling):
            raise UserError(f"pooling is {self.pooling!r}: it must be {', '.join(get_args(Pooling))}")

    @property
    def is_published(self) -> bool:
        """Whether training starts from published weights: True, it starts from those of `model`."""
        return True


VARIANTS = {
    "bert-base": Config("bert-base-uncased"),
    "bert-large": Config("bert-large-uncased"),
    "roberta-base": Config("roberta-base"),
    "roberta-large": Config("roberta-large"),
    "all-mpnet-base-v2": Config("sentence-transformers/all-mpnet-base-v2", pooling="mean"),
}

PLAIN_MODELS = {config.model for config in VARIANTS.values() if config.pooling == "first"}
"""Models of the hub that have no modules.json, so that none is looked up."""

BASE, LARGE = (12, 768), (24, 1024)
SIZES = {
    "bert-base-uncased": BASE,
    "bert-large-uncased": LARGE,
    "roberta-base": BASE,
    "roberta-large": LARGE,
    "sentence-transformers/all-mpnet-base-v2": BASE,
}
"""Numbers of layers and widths of the hub's models, for estimates (Devlin et al. 2019, Liu et al. 2019, Song et al.
2020).
"""


LOADING_VERSION = "2:"
"""Version of the code that loads models outside of `SIZES`, part of their fingerprint. Change it with a change that
gives such a model another vector.
"""


def parse_name(name: str) -> Config:
    """Return the Config of a model that isn't one of VARIANTS: 'FOLDER' or 'ORGANISATION/MODEL', the latter optionally
    with '@REVISION', and either with ':POOLING'.

    The path of a folder is made absolute. Raises UserError, which says what is possible, for any other name.
    """
    location, _, pooling = name.rpartition(":")
    if pooling not in get_args(Pooling):
        location, pooling = name, "first"
    model, revision = hub_models.parse_location("text", location, name, VARIANTS)
    return Config(model, revision, pooling=pooling)  # type: ignore[arg-type]  # checked above


def format_name(config: Config) -> str:
    """Return the name to show for a Config that isn't one of VARIANTS: the folder's name or the model's id on the hub,
    with the revision and the pooling unless they are the defaults.

    A folder that is called like a variant is shown with the folder that it is in.
    """
    pooling = "" if config.pooling == "first" or config.model in SIZES else f":{config.pooling}"
    return f"{hub_models.format_location(config.model, config.revision, VARIANTS)}{pooling}"


def may_define_layers(config: Config) -> bool:
    """Return whether the layers that a model's modules.json lists are used, if the model has one. They are not for
    VARIANTS: the layers of all-mpnet-base-v2 are its mean and a normalisation, which the baseline doesn't have.
    """
    return config.model not in SIZES or (config.pooling == "first" and config.model not in PLAIN_MODELS)


def flops(config: Config, num_tokens: float) -> float | None:
    """Return the number of floating-point operations of the forward pass of a caption of `num_tokens` tokens; None for
    a model on the hub whose size isn't in `SIZES`, and for a directory whose config.json doesn't give its size.

    Raises UserError for a directory whose config.json can't be read.
    """
    size = SIZES.get(config.model)
    if Path(config.model).is_dir():
        try:
            shape = pretrained_files.load_shape(model_files.find_body(Path(config.model)))
        except UserError as error:
            raise UserError(f"text encoder {config.model!r}: {error}") from error
        except Exception as error:  # truncated files raise any error of the JSON parser
            raise UserError(f"text encoder {config.model!r} can't be loaded: {error}") from error
        numbers = (getattr(shape, name, None) for name in ("num_hidden_layers", "hidden_size"))
        layers, width = (number if isinstance(number, int) else 0 for number in numbers)
        size = (layers, width) if layers and width else None
    return operations.count_transformer(min(num_tokens, config.max_tokens), *size) if size else None


def weights_fingerprint(config: Config, weights: Path | None = None) -> str:
    """Return a string that identifies the initial weights. For a model in a local directory, also one in `weights`, it
    contains the SHA-256 of the model's weights, tokenizer and configuration; for a model on the hub, 'model@commit'.
    Raises UserError if the model can't be found.
    """
    folder = Path(locate_model(config, weights))
    version = "" if config.model in SIZES else LOADING_VERSION
    if folder.is_dir():
        return f"{version}sha256:{model_files.hash_model(folder, may_define_layers(config))}"
    return f"{version}{config.model}@{config.revision or hub_models.look_up_commit('text', config.model)}"


def locate_model(config: Config, weights: Path | None) -> str:
    """Return where transformers finds the model that a config names: the path of a local directory, or the model's id
    on the hub. A model of the hub must be in the directory `weights` if that is given. Raises UserError if it isn't.
    """
    return hub_models.locate_model(config.model, weights, "the tokenizer's files")

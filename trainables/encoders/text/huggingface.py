"""Text encoders from the Hugging Face hub or a local directory: BERT, RoBERTa and similar models.

A sentence's vector is the last layer's output for the first token, as in the paper (section 2.2), or the mean over its
tokens, as sentence-transformers' models were trained.
"""

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from data.errors import UserError
from trainables.encoders import operations, published

Pooling = Literal["first", "mean"]


@dataclass(frozen=True)
class Config:
    """Configuration of a text encoder. `model` is the id of a model on the Hugging Face hub, or a local directory."""

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
            raise UserError(f"pooling is {self.pooling!r}: it must be {' or '.join(get_args(Pooling))}")

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


def flops(config: Config, num_tokens: float) -> float | None:
    """Return the number of floating-point operations of the forward pass of a caption of `num_tokens` tokens; None for
    a model on the hub whose size isn't in `SIZES`.

    Raises UserError for a directory whose config.json can't be read.
    """
    size = SIZES.get(config.model)
    if Path(config.model).is_dir():
        from transformers import AutoConfig

        try:
            shape = AutoConfig.from_pretrained(config.model)
        except Exception as error:  # truncated files raise any error of the JSON parser
            raise UserError(f"text encoder {config.model!r} can't be loaded: {error}") from error
        size = shape.num_hidden_layers, shape.hidden_size
    return operations.count_transformer(min(num_tokens, config.max_tokens), *size) if size else None


def weights_fingerprint(config: Config, weights: Path | None = None) -> str:
    """Return a string that identifies the initial weights: the SHA-256 of a local directory's files, or 'model@commit'
    for a model on the hub. Raises UserError if the model can't be found.
    """
    folder = Path(locate_model(config, weights))
    if folder.is_dir():
        digest = hashlib.sha256()
        for path in sorted(path for path in folder.iterdir() if path.is_file()):
            digest.update(f"{path.name}\t{published.hash_file(path)}\n".encode())
        return f"sha256:{digest.hexdigest()}"
    return f"{config.model}@{config.revision or look_up_commit(config.model)}"


@functools.cache
def look_up_commit(model: str) -> str:
    """Return the id of the newest commit of a model on the Hugging Face hub; it is looked up once per process.

    Raises UserError if the hub can't be reached or has no such model.
    """
    from huggingface_hub import HfApi

    try:
        return str(HfApi().model_info(model).sha)
    except Exception as error:  # the types of errors depend on the HTTP client of the installed huggingface_hub
        raise UserError(
            f"text encoder {model!r} is neither a directory nor found on the hub ({type(error).__name__}): "
            f"check its name, or set `revision` to a commit that is in the local cache"
        ) from error


def locate_model(config: Config, weights: Path | None) -> str:
    """Return where transformers finds the model: a local directory, or the model's id on the hub. Raises UserError if a
    directory `weights` is given and does not contain the hub's model.
    """
    if weights is None or Path(config.model).is_dir():
        return config.model
    folders = [weights / config.model, weights / Path(config.model).name]
    existing = next((folder for folder in folders if folder.is_dir()), None)
    if existing is None:
        raise UserError(
            f"{weights} holds no directory {config.model!r}: put the model's files there, named as on the hub "
            f"(config.json, model.safetensors and the tokenizer's files)"
        )
    return str(existing)

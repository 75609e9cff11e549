"""BERT- and RoBERTa-like text encoders from the Hugging Face hub or a local directory.

A sentence's vector is the last layer's output for the first token, as in the paper (section 2.2).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer

from data.errors import UserError
from trainables.encoders.text import Tokens


@dataclass(frozen=True)
class Config:
    """A model by hub id or local directory."""

    model: str
    revision: str | None = None  # a commit of the hub; None: today's, looked up when a trial is signed
    dropout: float = 0.2  # hidden and attention; from the authors' published settings, not in the paper
    max_tokens: int = 32

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout is {self.dropout}: it must be from 0 up to, but not including, 1")
        if self.max_tokens < 3:
            raise UserError(
                f"max_tokens is {self.max_tokens}: at least 3 are needed, two of them mark a sentence's ends"
            )


VARIANTS = {
    "bert-base": Config("bert-base-uncased"),
    "bert-large": Config("bert-large-uncased"),
    "roberta-base": Config("roberta-base"),
    "roberta-large": Config("roberta-large"),
}


def weights_fingerprint(config: Config) -> str:
    """The SHA-256 of a local directory's files, or a hub model's commit. Raises UserError where neither can be had."""
    folder = Path(config.model)
    if folder.is_dir():
        digest = hashlib.sha256()
        for path in sorted(path for path in folder.iterdir() if path.is_file()):
            digest.update(f"{path.name}\t{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
        return f"sha256:{digest.hexdigest()}"
    if config.revision is not None:
        return f"{config.model}@{config.revision}"
    try:
        return f"{config.model}@{HfApi().model_info(config.model).sha}"
    except Exception as error:  # which ones depends on the HTTP client of the installed huggingface_hub
        raise UserError(
            f"text encoder {config.model!r} is neither a directory nor found on the hub ({type(error).__name__}): "
            f"check its name, or set `revision` to a commit that is in the local cache"
        ) from error


def build(config: Config, captions: Sequence[str]) -> "HuggingFaceEncoder":
    """The published model and its tokenizer; `captions` aren't needed."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(config.model, revision=config.revision)
        model = AutoModel.from_pretrained(config.model, revision=config.revision, **model_settings(config))
    except (OSError, ValueError) as error:
        raise UserError(f"text encoder {config.model!r} can't be loaded: {error}") from error
    return HuggingFaceEncoder(config, model, tokenizer)


def restore(config: Config, folder: Path) -> "HuggingFaceEncoder":
    """A model of the same shape without its weights, and the tokenizer, from a folder that `save_tokenizer` wrote."""
    shape = AutoConfig.from_pretrained(folder)
    return HuggingFaceEncoder(config, AutoModel.from_config(shape), AutoTokenizer.from_pretrained(folder))


def model_settings(config: Config) -> dict[str, Any]:
    """What differs from the published settings. The pooler isn't used and would have no gradient."""
    return {
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.dropout,
        "add_pooling_layer": False,
    }


class HuggingFaceEncoder(nn.Module):
    """Captions -> the output for the first token."""

    def __init__(self, config: Config, model: Any, tokenizer: Any) -> None:
        super().__init__()
        self.config = config
        if getattr(model, "pooler", None) is not None:
            model.pooler = None
        self.model = model
        self.tokenizer = tokenizer
        self.width: int = model.config.hidden_size

    def tokenize(self, captions: Sequence[str]) -> Tokens:
        """Captions as token ids, cut to `max_tokens` and padded to the longest."""
        encoded = self.tokenizer(
            list(captions), padding=True, truncation=True, max_length=self.config.max_tokens, return_tensors="pt"
        )
        return Tokens(encoded["input_ids"], encoded["attention_mask"])

    def forward(self, tokens: Tokens) -> Tensor:
        """[B, width]."""
        states_BLW: Tensor = self.model(input_ids=tokens.ids, attention_mask=tokens.mask).last_hidden_state
        return states_BLW[:, 0]

    def save_tokenizer(self, folder: Path) -> None:
        """Write what `restore` needs."""
        self.tokenizer.save_pretrained(folder)
        self.model.config.save_pretrained(folder)

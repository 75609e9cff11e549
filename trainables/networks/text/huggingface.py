"""Network of text encoders from Hugging Face's transformers.

Shapes: B captions, L tokens, W width.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer

from data.errors import UserError
from trainables.encoders import published
from trainables.encoders.text import Tokens, huggingface
from trainables.encoders.text.huggingface import Config


def build(config: Config, captions: Sequence[str], weights: Path | None = None) -> "HuggingFaceEncoder":
    """Return the network with the published model and its tokenizer, read from the directory `weights` if it is given,
    otherwise from the location that the config names; `captions` are not used.

    Raises UserError if the model is missing or truncated, or if its weights don't match its config.json.
    """
    location = huggingface.locate_model(config, weights)
    revision = None if Path(location).is_dir() else config.revision or huggingface.look_up_commit(config.model)
    try:
        shape = AutoConfig.from_pretrained(location, revision=revision)
        set_dropout(shape, config.dropout)
        tokenizer = AutoTokenizer.from_pretrained(location, revision=revision)
        model, differences = AutoModel.from_pretrained(
            location,
            config=shape,
            revision=revision,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, together with other differences
        )
    except Exception as error:  # truncated files raise any error of the parsers of JSON, safetensors and tokenizers
        raise UserError(f"text encoder {config.model!r} can't be loaded: {error}") from error
    published.require_matching_weights(
        location,
        missing=filter_body_weights(model, differences["missing_keys"]),
        unexpected=filter_body_weights(model, differences["unexpected_keys"]),
        misshapen=[
            f"{name} {list(actual)} instead of {list(expected)}"
            for name, actual, expected in differences["mismatched_keys"]
        ],
    )
    return HuggingFaceEncoder(config, model, tokenizer)


def restore(config: Config, folder: Path) -> "HuggingFaceEncoder":
    """Return the network without its trained weights, which the caller loads. The model's shape and the tokenizer are
    read from `folder`, where `save_tokenizer` wrote them.
    """
    shape = AutoConfig.from_pretrained(folder)
    return HuggingFaceEncoder(
        config, AutoModel.from_config(shape, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)
    )


def set_dropout(shape: Any, dropout: float) -> None:
    """Set every dropout rate in a transformers config `shape`: each number whose name contains 'dropout'."""
    for name, value in shape.to_dict().items():
        if "dropout" in name and isinstance(value, int | float):
            setattr(shape, name, dropout)


def filter_body_weights(model: Any, names: Collection[str]) -> list[str]:
    """Return, sorted, those names that are weights of the model's embeddings and layers. Weights of heads and of the
    pooler, which are not used, are left out.
    """
    parts = {name for name, _ in model.named_children()} - {"pooler"}
    stems = {name: name.removeprefix(f"{model.base_model_prefix}.").partition(".")[0] for name in names}
    return sorted(name for name, stem in stems.items() if stem in parts)


class HuggingFaceEncoder(nn.Module):
    """Network that embeds a caption as the last layer's output for its first token, or as the mean over its tokens."""

    def __init__(self, config: Config, model: Any, tokenizer: Any) -> None:
        super().__init__()
        self.config = config
        if getattr(model, "pooler", None) is not None:
            model.pooler = None  # it isn't used, and DDP needs a gradient for each parameter
        self.model = model
        self.tokenizer = tokenizer
        self.width: int = model.config.hidden_size

    @property
    def blocks(self) -> list[nn.Module]:
        """Layers that account for nearly all compute time: the longest ModuleList of the model. Activation
        checkpointing and torch.compile apply to each of them.
        """
        layers = max((part for part in self.model.modules() if isinstance(part, nn.ModuleList)), key=len)
        return list(layers)

    def tokenize(self, captions: Sequence[str]) -> Tokens:
        """Return B captions as token ids, truncated to the config's `max_tokens` and padded to the longest caption."""
        encoded = self.tokenizer(
            list(captions), padding=True, truncation=True, max_length=self.config.max_tokens, return_tensors="pt"
        )
        return Tokens(encoded["input_ids"], encoded["attention_mask"])

    def forward(self, tokens: Tokens) -> Tensor:
        """Return the embeddings [B, width] of tokenized captions."""
        states_BLW: Tensor = self.model(input_ids=tokens.ids, attention_mask=tokens.mask).last_hidden_state
        if self.config.pooling == "first":
            return states_BLW[:, 0]
        mask_BL1 = tokens.mask.unsqueeze(2).to(states_BLW.dtype)
        return (states_BLW * mask_BL1).sum(dim=1) / mask_BL1.sum(dim=1)

    def save_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer and the model's config.json to a folder, from which `restore` reads them."""
        self.tokenizer.save_pretrained(folder)
        self.model.config.save_pretrained(folder)

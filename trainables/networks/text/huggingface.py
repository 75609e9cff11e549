"""Network of text encoders from Hugging Face's transformers.

Shapes: B captions, L tokens, W width.
"""

import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from data.errors import UserError
from trainables.encoders import hub_models, model_files, pretrained_files, published
from trainables.encoders.text import Tokens, huggingface
from trainables.encoders.text.huggingface import Config
from trainables.networks import pretrained
from trainables.networks.sentence_layers import (
    POOLING_MODE,
    SentenceLayers,
    load_layers,
    plain_layers,
    restore_layers,
    save_settings,
)

TEXT_TOWER = "text_model"
"""Name that models of audio and text give their text encoder."""

POSITION_TABLE = re.compile(r"^(position_embeddings?|embed_positions|wpe)$")
"""Names of the tables of absolute positions in transformers' models."""


def build(config: Config, captions: Sequence[str], weights: Path | None = None) -> "HuggingFaceEncoder":
    """Return the network with the published model and its tokenizer, read from the directory `weights` if it is given,
    otherwise from the location that the config names; `captions` are not used.

    Raises UserError if the model is missing or truncated, if it has no tokenizer or another model's, or if its weights
    don't match its config.json or aren't finite.
    """
    location = huggingface.locate_model(config, weights)
    revision = hub_models.choose_revision("text", location, config.revision)
    find_file = functools.partial(pretrained.find_model_file, location, revision)
    with pretrained.loading_errors_as_user_errors("text", config.model):
        modules = find_modules(config, find_file)
        files = {"revision": revision, "subfolder": modules[0].folder if modules else ""}
        shape = pretrained_files.load_shape(location, **files)
        for part in {id(part): part for part in (shape, getattr(shape, "text_config", None)) if part}.values():
            pretrained.disable_training_switches(part)
            pretrained.set_dropout(part, config.dropout)
        tokenizer = pretrained_files.load_tokenizer(location, **files)
        model, differences = pretrained.load_model(location, shape, **files)
        body = get_text_body(model)
        width = get_width(body.config)
        require_text_input(body)
        require_pooler(config, body)
        layers = load_layers(modules, find_file, width) if modules else plain_layers(config.pooling, width)
        require_pooling(config, layers)
        require_tokenizer(tokenizer, body, location)
    pretrained.require_body_weights(location, model, body, differences)
    encoder = HuggingFaceEncoder(config, shape, body, tokenizer, layers)
    published.require_finite_weights(encoder, location)
    freeze_unused_weights(encoder)
    return encoder


def restore(config: Config, folder: Path) -> "HuggingFaceEncoder":
    """Return the network of a config without its trained weights, which the caller loads. The model's shape, its
    layers' settings and the tokenizer are read from `folder`, where `save_tokenizer` wrote them.
    """
    shape = pretrained_files.load_shape(folder)
    shape.use_cache = False
    if getattr(shape, "audio_config", None):
        body = pretrained.create_body(shape, folder, get_text_body)  # without the tower for audio
    else:
        body = get_text_body(pretrained_files.build_body(shape, folder, dtype=torch.float32))
    layers = restore_layers(folder, config.pooling, get_width(body.config))
    encoder = HuggingFaceEncoder(config, shape, body, pretrained_files.load_tokenizer(folder), layers)
    freeze_unused_weights(encoder)
    return encoder


def freeze_unused_weights(encoder: "HuggingFaceEncoder") -> None:
    """Disable the gradients of weights that take no part in embedding a caption. The models of VARIANTS have no such
    weights.
    """
    if encoder.config.model not in huggingface.SIZES:
        pretrained.freeze_unused_weights(encoder, lambda: encoder(encoder.tokenize(["a dog barks while rain falls"])))


def find_modules(config: Config, find_file: Callable[[str], Path | None]) -> list[model_files.Module]:
    """Return the modules that sentence-transformers' modules.json lists for the model of a config. Return an empty list
    if the model has no such file, or its layers are not used. `find_file` returns the local path of a file of the
    model. Raises UserError if the modules can't be used.
    """
    path = find_file(model_files.MODULES_FILE) if huggingface.may_define_layers(config) else None
    return model_files.parse_modules(model_files.read_json(path), str(path)) if path else []


def require_pooling(config: Config, layers: SentenceLayers) -> None:
    """Raise UserError if a config names another pooling than `layers`, which were read from the model's
    modules.json.
    """
    mode = POOLING_MODE[config.pooling]
    if config.pooling != "first" and layers.pooling.modes != (mode,):
        raise UserError(
            f"pooling is {config.pooling!r}, but its {model_files.MODULES_FILE} defines "
            f"{' and '.join(layers.pooling.modes)}: leave the pooling out, or remove that file"
        )


def get_width(shape: Any) -> int:
    """Return the size of the vectors of a model with the config `shape`. Raises UserError for a model without one, such
    as a model of text and images.
    """
    width = getattr(shape, "hidden_size", None)
    if not isinstance(width, int):
        raise UserError(f"a {shape.model_type} model has no single hidden size: only text models are supported")
    return width


def get_text_body(model: Any) -> Any:
    """Return the part of a model that embeds text: the text tower of a model of audio and text, the encoder of an
    encoder-decoder model, otherwise the model.
    """
    if isinstance(tower := getattr(model, TEXT_TOWER, None), PreTrainedModel):
        return get_text_body(tower)
    if getattr(model, "encoder", None) is None or getattr(model, "decoder", None) is None:
        return model
    encoder = model.get_encoder()
    return encoder if hasattr(encoder, "get_input_embeddings") else model  # as in Funnel, whose decoder is needed


def require_text_input(body: Any) -> None:
    """Raise UserError if the model `body` reads something else than the tokens of a text."""
    if (name := getattr(body, "main_input_name", "input_ids")) != "input_ids":
        raise UserError(
            f"a {body.config.model_type} model reads {name}, not text: give the folder or id of a text model"
        )


def require_pooler(config: Config, body: Any) -> None:
    """Raise UserError if a config's pooling is the model's own, but the model `body` pools nothing."""
    if config.pooling == "own" and getattr(body, "pooler", None) is None:
        raise UserError(f"a {body.config.model_type} model pools nothing itself: use the pooling first, mean or last")


def require_tokenizer(tokenizer: Any, body: Any, location: str) -> None:
    """Raise UserError, which names the model's location, if a tokenizer has no words, as transformers returns for a
    folder without a tokenizer's files, or if it has words for which the model `body` has no vectors.
    """
    words = tokenizer.get_vocab().keys() - tokenizer.get_added_vocab().keys() - set(tokenizer.all_special_tokens)
    if not words:
        raise UserError(
            f"{location} holds no tokenizer, so that every word would be unknown: put the tokenizer's files there "
            "(tokenizer.json, or vocab.txt), as save_pretrained of the model's tokenizer writes them"
        )
    num_vectors = getattr(body.get_input_embeddings(), "num_embeddings", None)
    if num_vectors and (num_tokens := max(tokenizer.convert_tokens_to_ids(list(words))) + 1) > num_vectors:
        raise UserError(
            f"{location}: the tokenizer has {num_tokens} tokens, but the model has vectors for {num_vectors}: replace "
            "the tokenizer's files by those of this model"
        )


def count_positions(shape: Any, body: Any) -> int | None:
    """Return the maximum number of tokens for which a transformers model `body` with the config `shape` has positions;
    None if there is no limit.

    A table of positions may start with rows that no token uses: up to that of the padding token, as in RoBERTa, or a
    constant number, as in BART.
    """
    tables = [
        module
        for name, module in body.named_modules()
        if isinstance(module, nn.Embedding) and POSITION_TABLE.search(name.rpartition(".")[2])
    ]
    limits = [
        table.num_embeddings - int(getattr(table, "offset", 0 if table.padding_idx is None else table.padding_idx + 1))
        for table in tables
    ]
    limits += [limit for limit in [getattr(shape, "max_position_embeddings", None)] if isinstance(limit, int)]
    return min((limit for limit in limits if limit > 0), default=None)


class HuggingFaceEncoder(nn.Module):
    """Network that embeds a caption by a transformer, pooling over its tokens, and the layers that a
    sentence-transformers model has besides.
    """

    def __init__(self, config: Config, shape: Any, model: Any, tokenizer: Any, layers: SentenceLayers) -> None:
        super().__init__()
        self.config, self.shape = config, shape
        if config.pooling != "own" and getattr(model, "pooler", None) is not None:
            model.pooler = None  # it isn't used, and DDP needs a gradient for each parameter
        self.model = model
        self.layers = layers
        self.tokenizer = tokenizer
        self.tokenizer.truncation_side = "right"
        self.tokenizer.chat_template = None  # captions are no chat, and it would be saved with each checkpoint
        self.width: int = layers.width
        limits = [
            config.max_tokens,
            count_positions(model.config, model),
            layers.max_tokens,
            tokenizer.model_max_length,
        ]
        self.max_tokens = min(limit for limit in limits if limit)

    @property
    def blocks(self) -> list[nn.Module]:
        """Layers that account for nearly all compute time: the longest ModuleList of the model. Activation
        checkpointing and torch.compile apply to each of them.
        """
        lists = [part for part in self.model.modules() if isinstance(part, nn.ModuleList)]
        return max((list(part) for part in lists), key=len, default=[self.model])

    def tokenize(self, captions: Sequence[str]) -> Tokens:
        """Return B captions as token ids, truncated to the config's `max_tokens`, or to the model's limit if that is
        lower, and padded at the end to the longest caption.

        The padding is masked, so that a tokenizer without a padding token is padded with token 0. A caption for which
        the tokenizer returns no token gets one padding token, which isn't masked.
        """
        prompted = [self.layers.prompt + caption for caption in captions]
        encoded = self.tokenizer(prompted, truncation=True, max_length=self.max_tokens)["input_ids"]
        padding = self.tokenizer.pad_token_id or 0
        rows = [torch.tensor(ids or [padding], dtype=torch.int64) for ids in encoded]
        masks = [torch.ones_like(row) for row in rows]
        return Tokens(pad_sequence(rows, True, padding), pad_sequence(masks, True, 0))

    def forward(self, tokens: Tokens) -> Tensor:
        """Return the embeddings [B, width] of tokenized captions."""
        outputs = self.model(input_ids=tokens.ids, attention_mask=tokens.mask)
        if self.config.pooling == "own":
            states_BLW, mask_BL = outputs.pooler_output.unsqueeze(1), tokens.mask[:, :1]
        else:
            states_BLW, mask_BL = outputs.last_hidden_state, tokens.mask
        vectors_BW: Tensor = self.layers(states_BLW, mask_BL)
        return vectors_BW

    def save_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer, the model's config.json and the settings of further layers to a folder, from which
        `restore` reads them.
        """
        self.tokenizer.save_pretrained(folder)
        self.shape.save_pretrained(folder)
        save_settings(self.layers, folder)

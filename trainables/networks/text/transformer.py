"""Network of the small transformer `trainables.encoders.text.transformer`, and the training of its vocabulary.

Shapes: B captions, L tokens, W width.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn

from trainables.encoders.text import Tokens
from trainables.encoders.text.transformer import Config
from trainables.networks.sentence_layers import PoolingLayer

TOKENIZER_FILE = "tokenizer.json"
PADDING, UNKNOWN, FIRST, LAST = "[PAD]", "[UNK]", "[CLS]", "[SEP]"

POOLING_MODES = {"first": ("cls",), "tokens": ("mean", "max")}
"""Modes of a `PoolingLayer` by a Config's `pooling`; their results are added."""


def build(config: Config, captions: Sequence[str], weights: Path | None = None) -> "TransformerEncoder":
    """Return the network that a config describes, with random initial weights, and a vocabulary learned from normalised
    `captions`; `weights` is not used.
    """
    tokenizer = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    # The trainer numbers the letters inside words in the order of a hash map, which differs between processes, and
    # breaks ties between pieces by these numbers. Special tokens keep the given order, so the letters are passed as
    # special tokens.
    inner = sorted({f"##{letter}" for caption in captions for word in caption.split() for letter in word[1:]})
    trainer = trainers.WordPieceTrainer(
        vocab_size=config.vocabulary, special_tokens=[PADDING, UNKNOWN, FIRST, LAST, *inner], show_progress=False
    )
    tokenizer.train_from_iterator(captions, trainer)
    ends = [(FIRST, tokenizer.token_to_id(FIRST)), (LAST, tokenizer.token_to_id(LAST))]
    tokenizer.post_processor = processors.TemplateProcessing(f"{FIRST} $A {LAST}", special_tokens=ends)
    tokenizer.enable_truncation(config.max_tokens)
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id(PADDING), pad_token=PADDING)
    return TransformerEncoder(config, tokenizer)


def restore(config: Config, folder: Path) -> "TransformerEncoder":
    """Return the network of a config without its trained weights, which the caller loads. The vocabulary is read from
    `folder`, where `save_tokenizer` wrote it.
    """
    return TransformerEncoder(config, Tokenizer.from_file(str(folder / TOKENIZER_FILE)))


class TransformerEncoder(nn.Module):
    """Network that embeds a caption as the last layer's output for its first token, or as the mean plus the maximum
    over its tokens.
    """

    def __init__(self, config: Config, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.width = config.width
        self.words = nn.Embedding(tokenizer.get_vocab_size(), config.width)
        self.positions = nn.Parameter(torch.empty(config.max_tokens, config.width))
        for table in (self.words.weight, self.positions):
            nn.init.normal_(table, std=0.02)  # as BERT does
        layer = nn.TransformerEncoderLayer(
            config.width, config.heads, 4 * config.width, config.dropout, "gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(
            layer, config.layers, nn.LayerNorm(config.width), enable_nested_tensor=False
        )
        self.dropout = nn.Dropout(config.dropout)
        self.pooling = PoolingLayer(POOLING_MODES[config.pooling])

    @property
    def blocks(self) -> list[nn.Module]:
        """Layers that account for nearly all compute time; activation checkpointing and torch.compile apply to each of
        them.
        """
        return list(self.layers.layers)

    def tokenize(self, captions: Sequence[str]) -> Tokens:
        """Return B captions as token ids, truncated to the config's `max_tokens` and padded to the longest caption."""
        encodings = self.tokenizer.encode_batch(list(captions))
        masks = [encoding.attention_mask for encoding in encodings]
        return Tokens(torch.tensor([encoding.ids for encoding in encodings]), torch.tensor(masks))

    def forward(self, tokens: Tokens) -> Tensor:
        """Return the embeddings [B, width] of tokenized captions."""
        states_BLW: Tensor = self.dropout(self.words(tokens.ids) + self.positions[: tokens.ids.shape[1]])
        states_BLW = self.layers(states_BLW, src_key_padding_mask=tokens.mask == 0)
        pooled_BV: Tensor = self.pooling(states_BLW, tokens.mask)  # V: W for each mode
        embeddings_BW: Tensor = pooled_BV.unflatten(1, (-1, self.width)).sum(dim=1)
        return embeddings_BW

    def save_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer to a file in a folder, from which `restore` reads it."""
        self.tokenizer.save(str(folder / TOKENIZER_FILE))

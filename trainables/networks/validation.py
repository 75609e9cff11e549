"""Validation of the encoders of trials: each is built and embeds something, so that an encoder that can't work is
refused before audio is read and a GPU is reserved.

Shapes: B captions, S segments, N samples, W an encoder's width.
"""

import contextlib
import itertools
import logging
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.errors import UserError
from data.loading.batch import Batch
from data.schema import SAMPLE_RATE_HZ
from trainables import encoders
from trainables.encoders import published
from trainables.encoders.audio import AudioConfig
from trainables.encoders.text import TextConfig
from trainables.networks import load_network_module
from trainables.networks.dual_encoder import embed_segments
from trainables.trial import Trial

logger = logging.getLogger("chorale.encoders")

SENTENCES = (
    "a dog barks",
    "a dog growls at a car that passes by",
    "a bell rings twice",
    "rain falls on a tin roof while people talk",
)
"""Sentences that must have different vectors; several begin with the same word, which is all that the first token of a
decoder-only model depends on.
"""

LONG_SENTENCE = " ".join(["a dog barks at a car and rain falls"] * 30)
"""Sentence that fills all positions of most models."""

MIN_DIFFERENCE = 1e-5
"""Minimum distance of the vectors of different inputs, as a share of their length; rounding errors are smaller."""

MAX_BATCH_EFFECT = 1e-3
"""Maximum distance between an input's vectors in a batch and alone, as a share of their length. Rounding errors are far
smaller (measured: at most 1.2e-6 in each number, in tiny models of 22 kinds).
"""

TEXT_REMEDY = (
    "in a decoder-only model, only the last token depends on the whole sentence: use the pooling 'last' or 'mean', as "
    "in huggingface:MODEL:last; otherwise check that the tokenizer and the weights are this model's"
)
AUDIO_REMEDY = "check that the weights are this model's, and what the encoder computes (docs/encoders.md)"


def require_working_encoders(trials: Collection[Trial], weights: Path | None) -> None:
    """Build each encoder of the trials once and embed a few sentences or segments of noise with it. `weights` is the
    folder of published checkpoints; None downloads them.

    Raises UserError if an encoder can't be built or used, if it has weights that aren't finite, or if its vectors have
    another shape than [inputs, width], aren't finite, are the same for different inputs, or depend on the rest of the
    batch.
    """
    for audio in dict.fromkeys(trial.audio for trial in trials):
        with encoder_errors_as_user_errors(audio):
            require_working_audio_encoder(audio, load_network_module(audio).build(audio, weights))
    for text in dict.fromkeys(trial.text for trial in trials):
        with encoder_errors_as_user_errors(text):
            # A tokenizer may learn its vocabulary from the sentences.
            require_working_text_encoder(text, load_network_module(text).build(text, SENTENCES, weights))


@torch.no_grad()
def require_working_text_encoder(config: TextConfig, encoder: Any) -> None:
    """Raise UserError if a text encoder's vectors have a wrong shape, aren't finite, are equal for different sentences,
    or depend on the other sentences in the batch; or if its tokenizer knows no word. Log a warning if it reads fewer
    tokens than `config.max_tokens`.
    """
    name = encoders.format_label(config)
    published.require_finite_weights(encoder, name)
    encoder.eval()
    tokens = encoder.tokenize(SENTENCES)
    rows = [ids[mask > 0].tolist() for ids, mask in zip(tokens.ids, tokens.mask, strict=True)]
    pairs = [pair for pair in itertools.combinations(range(len(rows)), 2) if rows[pair[0]] != rows[pair[1]]]
    if set.union(*map(set, rows)) == set.intersection(*map(set, rows)):
        raise UserError(
            f"{name}: the tokenizer makes the same tokens of {SENTENCES[0]!r} and of other sentences, so it knows none "
            "of their words: put the tokenizer's files of this model into its folder (tokenizer.json, or vocab.txt)"
        )
    vectors_BW = encoder(tokens)
    require_vectors(name, vectors_BW, (len(SENTENCES), encoder.width))
    require_distinct(name, vectors_BW, pairs, [repr(sentence) for sentence in SENTENCES], TEXT_REMEDY)
    alone_1W = encoder(encoder.tokenize(SENTENCES[:1]))
    require_independent(name, vectors_BW[0], alone_1W[0], repr(SENTENCES[0]))
    require_vectors(name, encoder(encoder.tokenize([LONG_SENTENCE])), (1, encoder.width))
    if (limit := getattr(encoder, "max_tokens", config.max_tokens)) < config.max_tokens:
        logger.warning(
            "%s reads at most %d tokens of a caption, since the model has no more positions: words after that are cut "
            "off (max_tokens is %d).", name, limit, config.max_tokens,
        )  # fmt: skip


@torch.no_grad()
def require_working_audio_encoder(config: AudioConfig, encoder: Any) -> None:
    """Raise UserError if an audio encoder returns vectors of a wrong shape, vectors that aren't finite, equal vectors
    for different segments, or a vector that depends on the other segments in the batch. `config` is the encoder's
    config.
    """
    name = encoders.format_label(config)
    published.require_finite_weights(encoder, name)
    encoder.eval()
    size = round(config.segment_s * SAMPLE_RATE_HZ)
    segments_SN = 0.1 * torch.randn(2, size, generator=torch.Generator().manual_seed(0))
    segments_SN[1] *= 0.1
    segments_SN[1, size // 2 :] = 0
    batch = Batch.without_captions(segments_SN, [1, 1], [0, 1], torch.tensor([size, size // 2]))
    vectors_SW = embed_segments(encoder, batch, torch.Generator())
    require_vectors(name, vectors_SW, (2, encoder.width))
    require_distinct(name, vectors_SW, [(0, 1)], ["noise", "other noise"], AUDIO_REMEDY)
    alone_1W = embed_segments(encoder, batch.split(1)[1], torch.Generator())
    require_independent(name, vectors_SW[1], alone_1W[0], "noise")


def require_vectors(name: str, vectors: Any, shape: tuple[int, int]) -> None:
    """Raise UserError if `vectors`, the output of the encoder `name`, isn't a tensor of this shape, or has entries that
    aren't finite.
    """
    if not isinstance(vectors, Tensor) or tuple(vectors.shape) != shape:
        actual = list(vectors.shape) if isinstance(vectors, Tensor) else type(vectors).__name__
        raise UserError(
            f"{name} returned {actual} for {shape[0]} inputs: it must return a tensor [{shape[0]}, {shape[1]}], one "
            "vector of its `width` for each (docs/encoders.md)"
        )
    if not bool(vectors.isfinite().all()):
        raise UserError(
            f"{name} returned a vector with NaN or infinity: its weights are damaged or its training has diverged; "
            "use another checkpoint"
        )


def require_distinct(
    name: str, vectors_BW: Tensor, pairs: list[tuple[int, int]], labels: list[str], remedy: str
) -> None:
    """Raise UserError if the vectors of two different inputs are the same. `pairs` are the pairs of rows of
    `vectors_BW` to compare, and `labels` the inputs as text; the message begins with the encoder's name and ends with
    `remedy`.
    """
    min_distance = MIN_DIFFERENCE * float(vectors_BW.norm(dim=1).mean())
    for first, second in pairs:
        if float((vectors_BW[first] - vectors_BW[second]).norm()) <= min_distance:
            raise UserError(f"{name} returned the same vector for {labels[first]} and {labels[second]}: {remedy}")


def require_independent(name: str, batched_W: Tensor, alone_W: Tensor, label: str) -> None:
    """Raise UserError if the encoder `name` returns different vectors for the same input in a batch, `batched_W`, and
    alone, `alone_W`. The message calls the input `label`.
    """
    if float((batched_W - alone_W).norm()) > MAX_BATCH_EFFECT * float(alone_W.norm()):
        raise UserError(
            f"{name} returned another vector for {label} in a batch than alone, so that it depends on padding or on "
            "the other inputs: it can't be used; choose another model, or mask the padding in an encoder of your own"
        )


@contextlib.contextmanager
def encoder_errors_as_user_errors(config: AudioConfig | TextConfig) -> Iterator[None]:
    """Raise any error in the `with` block, in which an encoder is built or used, as a UserError that names the
    encoder.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a user's encoder may raise any exception
        raise UserError(
            f"the encoder {encoders.format_label(config)} can't be built or can't embed: "
            f"{type(error).__name__}: {error} ({config})"
        ) from error

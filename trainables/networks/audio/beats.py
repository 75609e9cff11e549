"""Network of BEATs: the encoder of the package openbeats, with padding masked and without layer drop.

Shapes: S segments, N samples, T frames, M mel bands, P patches, W width.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchaudio.compliance.kaldi import fbank
from torchaudio.functional import resample

from data.errors import UserError
from data.schema import SAMPLE_RATE_HZ
from trainables.encoders import published
from trainables.encoders.audio import beats
from trainables.encoders.audio.beats import BEATS_RATE_HZ, HOP_SAMPLES, NAMES, NUM_MELS, PATCH, WINDOW_SAMPLES, Config
from trainables.networks.audio.front_ends import mask_positions

INT16_SCALE = 2.0**15
"""Factor of the samples before the log-mel spectrogram, as in BEATs' code."""

MIN_SAMPLES = WINDOW_SAMPLES + (PATCH - 1) * HOP_SAMPLES
"""Number of samples at 16 kHz that the first patches need; a shorter recording is read with silence up to there."""

UNUSED_LAYERS = ("patch_embedding_pad", "raw2fbank_pad")
"""Layers of the package's network with constant weights, which count padding."""


def build(config: Config, weights: Path | None = None) -> "BeatsNetwork":
    """Return the network that a config describes, with its initial weights. The file of a checkpoint may be in the
    directory `weights`.

    Raises UserError if the file is missing, truncated, or of another network.
    """
    network = restore(config)
    if config.model:
        path = beats.locate_checkpoint(config, weights)
        stored = published.read_state_dict(path)
        unused = ("predictor.", *UNUSED_LAYERS)
        used = {name: tensor for name, tensor in stored.items() if not name.startswith(unused)}
        published.load_weights(network.beats, used, path)
    return network


def restore(config: Config) -> "BeatsNetwork":
    """Return the network with random weights, which the caller replaces with trained ones. Raises UserError if the
    package openbeats isn't installed.
    """
    try:
        from openbeats.beats_encoder import BeatsEncoder
    except ImportError as error:
        raise UserError('BEATs needs the package openbeats: pip install "chorale[beats]"') from error
    shape = {theirs: getattr(config, ours) for theirs, ours in NAMES.items()}
    dropouts = {"dropout": config.dropout, "attention_dropout": config.dropout, "encoder_layerdrop": 0.0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the package uses a deprecated weight_norm
        return BeatsNetwork(config, BeatsEncoder(0, beats_config={**shape, **dropouts}))


class BeatsNetwork(nn.Module):
    """Network that embeds a segment as the mean of the encoder's outputs for its patches."""

    reads_num_samples = True

    def __init__(self, config: Config, network: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.width = config.width
        for name in UNUSED_LAYERS:
            delattr(network, name)
        self.beats = network

    @property
    def blocks(self) -> list[nn.Module]:
        """Layers that account for nearly all compute time; activation checkpointing and torch.compile apply to each of
        them.
        """
        return list(self.get_submodule("beats.encoder.layers").children())

    def forward(
        self, segments_SN: Tensor, mask_draws: Tensor, generator: torch.Generator, *, num_samples_S: Tensor
    ) -> Tensor:
        """Return the embeddings [S, W] of S segments of N samples. `num_samples_S` are the numbers of samples before
        the padding; `mask_draws` and `generator` are not used.
        """
        network: Any = self.beats
        with torch.autocast(segments_SN.device.type, enabled=False):
            log_mel_STM = (self.compute_log_mel(segments_SN) - self.config.fbank_mean) / (2 * self.config.fbank_std)
        patches_SPW = network.layer_norm(network.patch_embedding(log_mel_STM.unsqueeze(1)).flatten(2).mT)
        if network.post_extract_proj is not None:
            patches_SPW = network.post_extract_proj(patches_SPW)
        num_samples_S = num_samples_S * BEATS_RATE_HZ // SAMPLE_RATE_HZ
        patches_S = beats.count_patches(num_samples_S.clamp(min=MIN_SAMPLES))
        is_padding_SP = ~mask_positions(patches_SPW.shape[1], patches_S)
        states_SPW, _ = network.encoder(patches_SPW, padding_mask=is_padding_SP)
        means_SW: Tensor = states_SPW.masked_fill(is_padding_SP.unsqueeze(2), 0.0).sum(dim=1) / patches_S[:, None]
        return means_SW

    def compute_log_mel(self, segments_SN: Tensor) -> Tensor:
        """Return Kaldi's log-mel spectrograms [S, T, M] of segments, which the encoder normalises."""
        samples_SN = resample(segments_SN, SAMPLE_RATE_HZ, BEATS_RATE_HZ) * INT16_SCALE
        return torch.stack(
            [
                fbank(
                    samples_N[None],
                    num_mel_bins=NUM_MELS,
                    sample_frequency=BEATS_RATE_HZ,
                    frame_length=1000 * WINDOW_SAMPLES / BEATS_RATE_HZ,
                    frame_shift=1000 * HOP_SAMPLES / BEATS_RATE_HZ,
                )
                for samples_N in samples_SN
            ]
        )

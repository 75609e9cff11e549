"""Network of CNN14 (Kong et al. 2020), with the weight names of the released checkpoint.

Shapes: S segments, N samples, M mel bands, T frames, C channels, W width.
"""

from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchaudio.functional import melscale_fbanks

from data.schema import SAMPLE_RATE_HZ
from trainables.encoders import published
from trainables.encoders.audio.cnn14 import (
    CHANNELS,
    FMAX_HZ,
    FMIN_HZ,
    HOP_SAMPLES,
    MIN_POWER,
    NUM_MELS,
    RELEASE,
    UNUSED_WEIGHTS,
    WINDOW_SAMPLES,
    Config,
)
from trainables.networks.audio import log_mel


def build(config: Config, weights: Path | None = None) -> "Cnn14Encoder":
    """Return the network that a config describes, with its initial weights. Published ones are read from the directory
    `weights` if it is given, and otherwise downloaded.

    Raises UserError if the file is missing, truncated, or of another network.
    """
    encoder = restore(config)
    if config.pretrained:
        published.load_checkpoint(encoder, published.locate_checkpoint(RELEASE, weights), UNUSED_WEIGHTS)
    return encoder


def restore(config: Config) -> "Cnn14Encoder":
    """Return the network with random weights, which the caller replaces with trained ones."""
    return Cnn14Encoder(config)


class Cnn14Encoder(nn.Module):
    """Network that embeds a segment as the maximum plus the mean over time of the last block's features, followed by a
    linear layer and ReLU.
    """

    window: Tensor
    bank: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.width = config.channels[-1]
        self.register_buffer("window", torch.hann_window(WINDOW_SAMPLES), persistent=False)
        num_bins = WINDOW_SAMPLES // 2 + 1
        bank = melscale_fbanks(num_bins, FMIN_HZ, FMAX_HZ, NUM_MELS, SAMPLE_RATE_HZ, norm="slaney", mel_scale="slaney")
        self.register_buffer("bank", bank.T.contiguous(), persistent=False)
        self.bn0 = nn.BatchNorm2d(NUM_MELS)
        for number, (before, after) in enumerate(zip((1, *config.channels), config.channels, strict=False), start=1):
            self.add_module(f"conv_block{number}", ConvBlock(before, after))
        self.fc1 = nn.Linear(self.width, self.width)
        nn.init.xavier_uniform_(self.fc1.weight)
        nn.init.zeros_(self.fc1.bias)

    @property
    def blocks(self) -> list[nn.Module]:
        """Layers that account for nearly all compute time; activation checkpointing and torch.compile apply to each of
        them.
        """
        return [self.get_submodule(f"conv_block{number}") for number in range(1, len(self.config.channels) + 1)]

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode, and return the network. If `frozen_statistics` is set in its config, batch
        normalisation stays in evaluation mode.
        """
        super().train(mode)
        if self.config.frozen_statistics:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def forward(self, segments_SN: Tensor, mask_draws: Tensor, generator: torch.Generator) -> Tensor:
        """Return the embeddings [S, W], of W numbers each, of S segments of N samples [S, N]. `mask_draws` are random
        numbers for SpecAugment in training; `generator` is not used.
        """
        config = self.config
        log_mel_SMT = self.bn0(log_mel.transform_in_blocks(segments_SN, self.compute_log_mel).unsqueeze(2)).squeeze(2)
        if self.training:
            log_mel_SMT = log_mel.mask_stripes(log_mel_SMT, 1, config.mask_mels, mask_draws[:, :2])
            log_mel_SMT = log_mel.mask_stripes(log_mel_SMT, 2, config.mask_frames, mask_draws[:, 2:])
        features_SCTM = log_mel_SMT.mT.unsqueeze(1).contiguous(memory_format=torch.channels_last)
        for number, block in enumerate(self.blocks):
            features_SCTM = block(features_SCTM)
            if number < len(CHANNELS) - 1:
                features_SCTM = functional.avg_pool2d(features_SCTM, 2)
            features_SCTM = functional.dropout(features_SCTM, config.block_dropout, self.training)
        features_SCT = features_SCTM.mean(dim=3)
        features_SC = features_SCT.amax(dim=2) + features_SCT.mean(dim=2)
        features_SW: Tensor = self.fc1(functional.dropout(features_SC, config.dropout, self.training))
        return features_SW.relu()

    def compute_log_mel(self, segments_SN: Tensor) -> Tensor:
        """Return the mel spectrograms [S, M, T] of segments [S, N], in decibels: M mel bands in T frames for each of S
        segments.
        """
        spectrum = torch.stft(
            segments_SN, WINDOW_SAMPLES, hop_length=HOP_SAMPLES, window=self.window, return_complex=True
        )
        power = spectrum.real.square() + spectrum.imag.square()
        return 10 * (self.bank @ power).clamp(min=MIN_POWER).log10()


class ConvBlock(nn.Module):
    """Two 3 x 3 convolutions, each with batch normalisation and ReLU."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        for layer in (self.conv1, self.conv2):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, features_SCTM: Tensor) -> Tensor:
        """Return the block's output [S, channels_out, T, M] for its input [S, channels_in, T, M]: features of S
        segments at T frames and M mel bands.
        """
        features_SCTM = functional.relu_(self.bn1(self.conv1(features_SCTM)))
        return functional.relu_(self.bn2(self.conv2(features_SCTM)))

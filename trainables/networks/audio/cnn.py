"""Network of the small convolutional encoder `trainables.encoders.audio.cnn`.

Shapes: S segments, N samples, M mel bands, T frames, C channels, W width.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from trainables.encoders.audio.cnn import Config
from trainables.networks.audio.log_mel import LogMel


def build(config: Config, weights: Path | None = None) -> "CnnEncoder":
    """Return the network that a config describes, with random initial weights; `weights` is not used."""
    return CnnEncoder(config)


def restore(config: Config) -> "CnnEncoder":
    """Return the network with random weights, which the caller replaces with trained ones."""
    return CnnEncoder(config)


class CnnEncoder(nn.Module):
    """Network that embeds a segment as the maximum plus the mean over time of the last stage's features."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.width = config.channels[-1] * config.final_bands
        self.front_end = LogMel(config.front_end)
        padding = (config.stem_kernel - config.stem_stride + 1) // 2
        stem = nn.Conv2d(1, config.stem_channels, config.stem_kernel, config.stem_stride, padding, bias=False)
        layers: list[nn.Module] = [stem, nn.GroupNorm(1, config.stem_channels), nn.ReLU()]
        widths = [config.stem_channels, *config.channels]
        for stage, (before, width, count) in enumerate(zip(widths, config.channels, config.convolutions, strict=False)):
            layers += [nn.AvgPool2d(2)] if stage else []
            layers += [make_convolution(before if index == 0 else width, width) for index in range(count)]
        self.layers = nn.Sequential(*layers)
        self.norm: nn.Module = nn.LayerNorm(self.width) if config.final_norm else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)

    @property
    def blocks(self) -> list[nn.Module]:
        """Layers that account for nearly all compute time; activation checkpointing and torch.compile apply to each of
        them.
        """
        return [layer for layer in self.layers if isinstance(layer, nn.Sequential)]

    def forward(self, segments_SN: Tensor, mask_draws: Tensor, generator: torch.Generator) -> Tensor:
        """Return the embeddings [S, width] of S segments of N samples; `mask_draws` and `generator` are random numbers
        and a generator for augmentation, which are used in training only.
        """
        log_mel_SMT = self.front_end(segments_SN, mask_draws, generator)
        features_SCMT: Tensor = self.layers(log_mel_SMT.unsqueeze(1).contiguous(memory_format=torch.channels_last))
        features_STW = self.norm(features_SCMT.flatten(1, 2).mT)
        features_SW: Tensor = self.dropout(features_STW.amax(dim=1) + features_STW.mean(dim=1))
        return features_SW


def make_convolution(channels_in: int, channels_out: int) -> nn.Module:
    """Return a 3 x 3 convolution from `channels_in` to `channels_out` channels, followed by group normalisation (one
    group) and ReLU.
    """
    layer = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return nn.Sequential(layer, nn.GroupNorm(1, channels_out), nn.ReLU())

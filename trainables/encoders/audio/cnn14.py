"""CNN14 of PANNs (Kong et al. 2020, "PANNs: large-scale pretrained audio neural networks"), trained on AudioSet.

The network and its front end are those of the released checkpoint, `Cnn14_mAP=0.431.pth` (Zenodo 3987831, Creative
Commons Attribution 4.0), and so are the names of its weights; constants are from PANNs' code. A segment's vector is the
input of the released classifier.

Shapes: S segments, N samples, M mel bands, T frames, C channels, W width.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchaudio.functional import melscale_fbanks

from data.errors import UserError
from data.schema import SAMPLE_RATE_HZ
from trainables import frontend
from trainables.encoders import operations, published

RELEASE = "https://zenodo.org/record/3987831/files/Cnn14_mAP%3D0.431.pth"
UNUSED = (
    "spectrogram_extractor.stft.conv_real.weight",
    "spectrogram_extractor.stft.conv_imag.weight",
    "logmel_extractor.melW",
    "fc_audioset.weight",
    "fc_audioset.bias",
)
"""Names of the released checkpoint for its front end, which is computed here, and for its classifier."""

CHANNELS = (64, 128, 256, 512, 1024, 2048)
WINDOW_SAMPLES = 1024
HOP_SAMPLES = 320
NUM_MELS = 64
FMIN_HZ, FMAX_HZ = 50.0, 14_000.0
SMALLEST_POWER = 1e-10


@dataclass(frozen=True)
class Config:
    """CNN14; the defaults are the released network's, and its dropout and masks in training."""

    segment_s: float = 30.0
    pretrained: bool = True
    frozen_statistics: bool = True  # BatchNorm keeps its running statistics and normalises with them in training, too
    channels: tuple[int, ...] = CHANNELS  # of the blocks
    block_dropout: float = 0.2  # after each block
    dropout: float = 0.5  # before the last layer
    mask_mels: int = 8  # SpecAugment: one stripe of up to so many bands a segment (PANNs: two)
    mask_frames: int = 64  # and one of up to so many frames (PANNs: two)

    def __post_init__(self) -> None:
        if self.pretrained and self.channels != CHANNELS:
            raise UserError(f"the published CNN14 has the channels {CHANNELS}: with others, set pretrained=False")
        if not 1 <= len(self.channels) <= len(CHANNELS):
            raise UserError(f"CNN14 has {len(self.channels)} blocks: it must be from 1 to {len(CHANNELS)}")
        for name in ("block_dropout", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must be from 0 up to, but not including, 1")
        if not 0 <= self.mask_mels <= NUM_MELS:
            raise UserError(f"mask_mels is {self.mask_mels}: it must be from 0 to {NUM_MELS}")
        if self.mask_frames < 0:
            raise UserError(f"mask_frames is {self.mask_frames}: it must be 0 or more")


VARIANTS = {
    "audioset": Config(),
    # As DCASE 2023's baseline trains it: with each batch's statistics, and without masks.
    "dcase2023": Config(frozen_statistics=False, mask_mels=0, mask_frames=0),
}


def weights_fingerprint(config: Config, weights: Path | None = None) -> str:
    """Which weights training starts from: of a release its name, of a file in the directory `weights` its hash."""
    if not config.pretrained:
        return "random"
    if weights is None:
        return RELEASE
    return f"sha256:{published.sha256(published.locate(RELEASE, weights))}"


def build(config: Config, weights: Path | None = None) -> "Cnn14Encoder":
    """The encoder with its initial weights; published ones come from the directory `weights`, or are downloaded.

    Raises UserError where they are absent, torn or another network's.
    """
    encoder = Cnn14Encoder(config)
    if config.pretrained:
        published.load(encoder, published.locate(RELEASE, weights), UNUSED)
    return encoder


def restore(config: Config) -> "Cnn14Encoder":
    """An encoder of the same shape, without looking for published weights."""
    return Cnn14Encoder(config)


def flops(config: Config) -> float:
    """Of a segment's forward pass: two convolutions a block, the frames and bands halved after each but the last."""
    frames, bands = round(config.segment_s * SAMPLE_RATE_HZ) // HOP_SAMPLES + 1, NUM_MELS
    total = 2.0 * config.channels[-1] ** 2
    for number, (before, after) in enumerate(zip((1, *config.channels), config.channels, strict=False)):
        positions = (frames >> number) * (bands >> number)
        total += sum(operations.convolution(channels, after, (3, 3), positions) for channels in (before, after))
    return total


class Cnn14Encoder(nn.Module):
    """Segments -> the maximum plus the mean over time of the last block's features, through a linear layer and ReLU."""

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
        """The layers in which nearly all of the time goes."""
        return [self.get_submodule(f"conv_block{number}") for number in range(1, len(self.config.channels) + 1)]

    def train(self, mode: bool = True) -> Self:
        """Training or evaluation; frozen statistics stay as in evaluation."""
        super().train(mode)
        if self.config.frozen_statistics:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def forward(self, segments_SN: Tensor, mask_draws: Tensor, generator: torch.Generator) -> Tensor:
        """[S, N] samples -> [S, W]; nothing is drawn from `generator`."""
        config = self.config
        log_mel_SMT = self.bn0(frontend.in_blocks(segments_SN, self.log_mel).unsqueeze(2)).squeeze(2)
        if self.training:
            log_mel_SMT = frontend.mask_stripes(log_mel_SMT, 1, config.mask_mels, mask_draws[:, :2])
            log_mel_SMT = frontend.mask_stripes(log_mel_SMT, 2, config.mask_frames, mask_draws[:, 2:])
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

    def log_mel(self, segments_SN: Tensor) -> Tensor:
        """The mel spectrogram [S, M, T] in decibels."""
        spectrum = torch.stft(
            segments_SN, WINDOW_SAMPLES, hop_length=HOP_SAMPLES, window=self.window, return_complex=True
        )
        power = spectrum.real.square() + spectrum.imag.square()
        return 10 * (self.bank @ power).clamp(min=SMALLEST_POWER).log10()


class ConvBlock(nn.Module):
    """Two 3 x 3 convolutions, each with BatchNorm and ReLU."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        for layer in (self.conv1, self.conv2):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, features_SCTM: Tensor) -> Tensor:
        """[S, channels_in, T, M] -> [S, channels_out, T, M]."""
        features_SCTM = functional.relu_(self.bn1(self.conv1(features_SCTM)))
        return functional.relu_(self.bn2(self.conv2(features_SCTM)))

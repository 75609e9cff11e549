"""Small convolutional encoders in the style of PANNs' CNN14 (Kong et al. 2020), trained from random weights.

As in CNN14, stages of 3 x 3 convolutions are joined by 2 x 2 average pooling, and maximum and mean over time are added.
`small` is cheap enough for a CPU: it has half of PaSST's frames and mel bands, starts with strides of four, and keeps
the remaining frequency bands as features. It is normalised within each segment (GroupNorm with one group), so that an
output doesn't depend on the other segments of a batch, nor on the number of ranks or the micro-batch. Each frame's
features are normalised before they are pooled, without which the network learns much slower (docs/training.md).
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

from data.errors import UserError
from data.schema import SAMPLE_RATE_HZ
from trainables.encoders import ADDED, frontend, operations


@dataclass(frozen=True)
class Config:
    """Shape of the small convolutional network: a strided convolution (the stem), then stages of 3 x 3 convolutions,
    each stage with a number of channels of its own.
    """

    channels: tuple[int, ...]
    convolutions: tuple[int, ...]  # number of convolutions in each stage
    stem_channels: int
    stem_kernel: int
    stem_stride: int
    dropout: float
    segment_s: float
    front_end: frontend.Config
    # Whether each frame's features are normalised before they are pooled.
    final_norm: bool = field(default=False, metadata=ADDED)

    def __post_init__(self) -> None:
        if len(self.channels) != len(self.convolutions) or not self.channels:
            raise UserError(
                f"{len(self.channels)} stages of channels and {len(self.convolutions)} of convolutions: "
                "give the same number of both"
            )
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout is {self.dropout}: it must be at least 0 and below 1")

    @property
    def final_bands(self) -> int:
        """Number of frequency bands that the network has left after its last stage."""
        bands: int = self.front_end.num_mels // self.stem_stride // 2 ** (len(self.channels) - 1)
        return bands

    @property
    def augmentations(self) -> tuple[str, ...]:
        """Names of the augmentations in training: those of the log-mel front end."""
        return self.front_end.augmentations

    @property
    def patch_overlap(self) -> None:
        """Overlap of neighbouring spectrogram patches: None, since the network has no patches."""
        return None

    @property
    def is_published(self) -> bool:
        """Whether training starts from published weights: False, since the initial weights are random."""
        return False


VARIANTS = {
    "small": Config(
        channels=(32, 64, 128, 192),
        convolutions=(1, 1, 1, 1),
        stem_channels=32,
        stem_kernel=8,
        stem_stride=4,
        dropout=0.1,
        segment_s=10.0,
        front_end=replace(frontend.Config(), num_mels=64, hop_samples=640, mask_mels=0, mask_frames=0),
        final_norm=True,
    )
}
VARIANTS["small5"] = replace(VARIANTS["small"], segment_s=5.0)


def weights_fingerprint(config: Config, weights: Path | None = None) -> str:
    """Return 'random', which stands for initial weights drawn from the trial's seed. The arguments are not used."""
    return "random"


def flops(config: Config) -> float:
    """Return the number of floating-point operations of the forward pass of one segment: those of the stem and of each
    stage's convolutions.
    """
    frames = round(config.segment_s * SAMPLE_RATE_HZ) // config.front_end.hop_samples // config.stem_stride
    bands = config.front_end.num_mels // config.stem_stride
    total = operations.count_convolution(
        1, config.stem_channels, (config.stem_kernel, config.stem_kernel), frames * bands
    )
    before = config.stem_channels
    for stage, (width, number) in enumerate(zip(config.channels, config.convolutions, strict=True)):
        positions = (frames >> stage) * (bands >> stage)
        for channels in (before, *[width] * (number - 1)):
            total += operations.count_convolution(channels, width, (3, 3), positions)
        before = width
    return total

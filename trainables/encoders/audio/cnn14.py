"""CNN14 of PANNs (Kong et al. 2020, "PANNs: large-scale pretrained audio neural networks"), trained on AudioSet.

The network and its front end are those of the released checkpoint, `Cnn14_mAP=0.431.pth` (Zenodo 3987831, Creative
Commons Attribution 4.0), and so are the names of its weights; the constants below are from PANNs' code. A segment's
vector is the input of the released classifier.
"""

from dataclasses import dataclass
from pathlib import Path

from data.errors import UserError
from data.schema import SAMPLE_RATE_HZ
from trainables.encoders import operations, published

RELEASE = "https://zenodo.org/record/3987831/files/Cnn14_mAP%3D0.431.pth"
UNUSED_WEIGHTS = (
    "spectrogram_extractor.stft.conv_real.weight",
    "spectrogram_extractor.stft.conv_imag.weight",
    "logmel_extractor.melW",
    "fc_audioset.weight",
    "fc_audioset.bias",
)
"""Names of the released checkpoint's weights that are not loaded: its front end, which is computed instead, and its
classifier.
"""

CHANNELS = (64, 128, 256, 512, 1024, 2048)
WINDOW_SAMPLES = 1024
HOP_SAMPLES = 320
NUM_MELS = 64
FMIN_HZ, FMAX_HZ = 50.0, 14_000.0
MIN_POWER = 1e-10


@dataclass(frozen=True)
class Config:
    """Configuration of CNN14. The defaults are those of the released network and its training."""

    segment_s: float = 30.0
    pretrained: bool = True
    frozen_statistics: bool = True  # BatchNorm uses its running statistics in training, too, and keeps them
    channels: tuple[int, ...] = CHANNELS  # number of channels of each block
    block_dropout: float = 0.2  # dropout after each block
    dropout: float = 0.5  # dropout before the last layer
    mask_mels: int = 8  # SpecAugment: maximum width of a segment's stripe in mel bands (PANNs: two stripes)
    mask_frames: int = 64  # SpecAugment: maximum width in frames (PANNs: two stripes)

    def __post_init__(self) -> None:
        if self.pretrained and self.channels != CHANNELS:
            raise UserError(f"the published CNN14 has the channels {CHANNELS}: with others, set pretrained=False")
        if not 1 <= len(self.channels) <= len(CHANNELS):
            raise UserError(f"CNN14 has {len(self.channels)} blocks: it must be from 1 to {len(CHANNELS)}")
        for name in ("block_dropout", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must be at least 0 and below 1")
        if not 0 <= self.mask_mels <= NUM_MELS:
            raise UserError(f"mask_mels is {self.mask_mels}: it must be from 0 to {NUM_MELS}")
        if self.mask_frames < 0:
            raise UserError(f"mask_frames is {self.mask_frames}: it must be 0 or more")

    @property
    def augmentations(self) -> tuple[str, ...]:
        """Names of the augmentations in training: ('SpecAugment',), or () if both maximum widths of its masks are 0."""
        return ("SpecAugment",) * bool(self.mask_mels or self.mask_frames)

    @property
    def patch_overlap(self) -> None:
        """Overlap of neighbouring spectrogram patches: None, since the network has no patches."""
        return None

    @property
    def is_published(self) -> bool:
        """Whether training starts from the released weights."""
        return self.pretrained


VARIANTS = {
    "audioset": Config(),
    # As in DCASE 2023's baseline: normalised with each batch's statistics, and without masks.
    "dcase2023": Config(frozen_statistics=False, mask_mels=0, mask_frames=0),
}


def weights_fingerprint(config: Config, weights: Path | None = None) -> str:
    """Return a string that identifies the initial weights: 'random' if the config has no published weights. Published
    ones are identified by the address of the released file or, if a directory `weights` is given, by the SHA-256 of the
    released file in it.
    """
    if not config.pretrained:
        return "random"
    if weights is None:
        return RELEASE
    return f"sha256:{published.hash_file(published.locate_checkpoint(RELEASE, weights))}"


def flops(config: Config) -> float:
    """Return the number of floating-point operations of the forward pass of one segment: two convolutions per block,
    with frames and mel bands halved after each block but the last, and the linear layer.
    """
    frames, bands = round(config.segment_s * SAMPLE_RATE_HZ) // HOP_SAMPLES + 1, NUM_MELS
    total = 2.0 * config.channels[-1] ** 2
    for number, (before, after) in enumerate(zip((1, *config.channels), config.channels, strict=False)):
        positions = (frames >> number) * (bands >> number)
        total += sum(operations.count_convolution(channels, after, (3, 3), positions) for channels in (before, after))
    return total

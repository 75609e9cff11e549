"""PaSST, the Patchout faSt Spectrogram Transformer (Koutini et al. 2022), through hear21passt.

The variants N, S and S15 have the architectures, strides and structured patchout of the paper (section 2.1). Their
checkpoints are the PaSST project's releases (Apache-2.0), with the names and shapes of hear21passt's class. `tiny` is
the same class with two layers and random weights, cheap enough for a CPU. It pools the outputs for all patches, from
which random weights learn much faster than from the class token (docs/training.md).
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

from data.errors import UserError
from data.schema import SAMPLE_RATE_HZ
from trainables.encoders import ADDED, frontend, operations, published

RELEASES = {
    arch: f"https://github.com/kkoutini/PaSST/releases/download/{file}"
    for arch, file in (
        ("passt_s_p16_s16_128_ap468", "v0.0.2-audioset/passt-s-f128-p16-s16-ap.468.pt"),
        ("passt_s_kd_p16_128_ap486", "v.0.0.9/passt-s-kd-ap.486.pt"),
        ("passt_20sec", "v0.0.5/passt-s-f128-20sec-p16-s10-ap.474-swa.pt"),
    )
}
"""Addresses of published weights by hear21passt's name of the architecture, from its own table."""

Pooling = Literal["class", "patches"]


@dataclass(frozen=True)
class Config:
    """Configuration of a PaSST. `arch` is the name of one of hear21passt's architectures; if it is None, the network
    has the given `width`, `depth` and `heads`, and random weights.

    A segment's vector is pooled from the last layer's outputs. With the `pooling` 'class', it is the mean over the
    class token and the distillation token, as in the paper; with 'patches', the mean plus the maximum over the patches.
    """

    arch: str | None
    stride: tuple[int, int]  # stride of patches: mel bands, frames
    num_frames: int  # number of frames with position embeddings
    patchout_frequency: int  # number of rows of patches dropped in training
    patchout_time: int  # number of columns of patches dropped in training
    segment_s: float
    pretrained: bool = True
    patch: tuple[int, int] = (16, 16)  # size of patches: mel bands, frames; every arch was trained with 16 x 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    front_end: frontend.Config = frontend.Config()
    pooling: Pooling = field(default="class", metadata=ADDED)

    def __post_init__(self) -> None:
        if self.arch is None and self.pretrained:
            raise UserError("a PaSST without an arch has no published weights: set pretrained=False")
        if self.pretrained and self.arch not in RELEASES:
            raise UserError(f"arch is {self.arch!r}: published weights exist for {', '.join(RELEASES)}")
        if self.pooling not in get_args(Pooling):
            raise UserError(f"pooling is {self.pooling!r}: it must be {' or '.join(get_args(Pooling))}")
        rows, columns = self.grid
        if not (0 <= self.patchout_frequency < rows and 0 <= self.patchout_time < columns):
            raise UserError(
                f"patchout of {self.patchout_frequency} rows and {self.patchout_time} columns leaves nothing of "
                f"{rows} x {columns} patches: lower patchout_frequency or patchout_time"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Numbers of rows (frequency) and columns (time) of spectrogram patches in a whole segment, before any are
        dropped in training.
        """
        rows = (self.front_end.num_mels - self.patch[0]) // self.stride[0] + 1
        columns = (self.segment_frames - self.patch[1]) // self.stride[1] + 1
        return rows, min(columns, self.num_frames // self.stride[1])

    @property
    def segment_frames(self) -> int:
        """Number of spectrogram frames in a segment."""
        return round(self.segment_s * SAMPLE_RATE_HZ) // self.front_end.hop_samples

    @property
    def augmentations(self) -> tuple[str, ...]:
        """Names of the augmentations used in training: those of the log-mel front end, and 'patchout', which drops
        spectrogram patches.
        """
        return self.front_end.augmentations + ("patchout",) * bool(self.patchout_frequency or self.patchout_time)

    @property
    def patch_overlap(self) -> tuple[int, int]:
        """Overlap of neighbouring spectrogram patches as (mel bands, frames)."""
        mels, frames = (max(0, size - step) for size, step in zip(self.patch, self.stride, strict=True))
        return mels, frames

    @property
    def is_published(self) -> bool:
        """Whether training starts from the released weights."""
        return self.pretrained


VARIANTS = {
    "N": Config("passt_s_p16_s16_128_ap468", (16, 16), 1000, patchout_frequency=2, patchout_time=15, segment_s=10.0),
    "S": Config("passt_s_kd_p16_128_ap486", (10, 10), 998, patchout_frequency=4, patchout_time=50, segment_s=10.0),
    "S15": Config("passt_20sec", (10, 10), 2000, patchout_frequency=4, patchout_time=80, segment_s=15.0),
    # Half of the other variants' frames and mel bands; patches as high as the spectrogram: 62 tokens per segment.
    "tiny": Config(
        None,
        (64, 8),
        500,
        patchout_frequency=0,
        patchout_time=0,
        segment_s=10.0,
        pretrained=False,
        patch=(64, 8),
        width=192,
        depth=2,
        heads=3,
        front_end=replace(frontend.Config(), num_mels=64, hop_samples=640, mask_mels=0, mask_frames=0),
        pooling="patches",
    ),
}
VARIANTS["tiny5"] = replace(VARIANTS["tiny"], segment_s=5.0)


def weights_fingerprint(config: Config, weights: Path | None = None) -> str:
    """Return a string that identifies the initial weights: 'random' if the config has no published weights. Published
    ones are identified by the name of hear21passt's release or, if a directory `weights` is given, by the SHA-256 of
    the released file in it.

    A release's name identifies its weights, since releases don't change.
    """
    if not config.pretrained:
        return "random"
    if weights is None:
        return f"hear21passt:{config.arch}"
    return f"sha256:{published.hash_file(published.locate_checkpoint(release_url(config), weights))}"


def release_url(config: Config) -> str:
    """Return the URL from which the published weights of the config's architecture are downloaded."""
    assert config.arch is not None
    return RELEASES[config.arch]


def flops(config: Config) -> float:
    """Return the number of floating-point operations of the forward pass of one segment in training: those of embedding
    all spectrogram patches, and of the transformer on the patches that aren't dropped (patchout).
    """
    rows, columns = config.grid
    patches = operations.count_convolution(1, config.width, config.patch, rows * columns)
    kept_patches = (rows - config.patchout_frequency) * (columns - config.patchout_time)
    return patches + operations.count_transformer(kept_patches + 2, config.depth, config.width)

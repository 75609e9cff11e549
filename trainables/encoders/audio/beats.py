"""BEATs (Chen et al. 2023) and OpenBEATs (Bharadwaj et al. 2025), through the package openbeats (MIT), which
`pip install "chorale[beats]"` installs.

A checkpoint is a file of one of the two projects: a dict with the architecture as 'cfg' and the weights as 'model'. The
classifier of a fine-tuned one is not used. A segment's vector is the mean of its patches that aren't padding, to which
the released classifiers are applied.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from data.errors import UserError, unknown_name_error
from trainables.encoders import operations, published

if TYPE_CHECKING:
    from torch import Tensor

Count = TypeVar("Count", int, "Tensor")

BEATS_RATE_HZ = 16_000
WINDOW_SAMPLES, HOP_SAMPLES, NUM_MELS = 400, 160, 128
"""Window and hop of the log-mel spectrogram at 16 kHz, and its number of mel bands; they are fixed in the package."""

PATCH = 16
"""Height and width of a patch in mel bands and frames."""

NAMES = {
    "encoder_layers": "layers",
    "encoder_embed_dim": "width",
    "encoder_ffn_embed_dim": "feed_forward",
    "encoder_attention_heads": "heads",
    "embed_dim": "patch_width",
    "conv_bias": "patch_bias",
    "conv_pos": "position_kernel",
    "conv_pos_groups": "position_groups",
    "relative_position_embedding": "relative_positions",
    "num_buckets": "buckets",
    "max_distance": "max_distance",
    "gru_rel_pos": "gated_positions",
    "deep_norm": "deep_norm",
    "layer_norm_first": "norm_first",
    "activation_fn": "activation",
    "fbank_mean": "fbank_mean",
    "fbank_std": "fbank_std",
}
"""Settings of a Config by their names in a checkpoint's 'cfg'."""


def count_patches(num_samples: Count) -> Count:
    """Return the number of patches that lie within `num_samples` samples at 16 kHz, which are a number or a tensor of
    numbers; below that of one window, it is no positive number.
    """
    frames = (num_samples - WINDOW_SAMPLES) // HOP_SAMPLES + 1
    return frames // PATCH * (NUM_MELS // PATCH)


@dataclass(frozen=True)
class Config:
    """Configuration of BEATs. `model` is the path of a checkpoint, or the name of a released file in the folder of
    published checkpoints; None stands for random weights. The defaults are those of the released base models.
    """

    model: str | None = None
    layers: int = 12
    width: int = 768
    feed_forward: int = 3072
    heads: int = 12
    patch_width: int = 512
    patch_bias: bool = False
    position_kernel: int = 128  # width of the convolution over patches
    position_groups: int = 16
    relative_positions: bool = True
    buckets: int = 320  # of relative positions
    max_distance: int = 800  # relative position from which all are in one bucket
    gated_positions: bool = True
    deep_norm: bool = True
    norm_first: bool = False
    activation: str = "gelu"
    fbank_mean: float = 15.41663  # subtracted from the log-mel spectrogram
    fbank_std: float = 6.55582  # half of the divisor
    dropout: float = 0.1
    segment_s: float = 10.0

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout is {self.dropout}: it must be at least 0 and below 1")
        if self.count_patches() < NUM_MELS // PATCH:
            raise UserError(f"segment_s is {self.segment_s}: BEATs needs at least 0.175 s for its first patches")
        if self.width % self.heads:
            raise UserError(f"width is {self.width}: it must be a multiple of heads ({self.heads})")

    def count_patches(self) -> int:
        """Return the number of patches of a segment."""
        return max(0, count_patches(round(self.segment_s * BEATS_RATE_HZ)))

    @property
    def augmentations(self) -> tuple[str, ...]:
        """Names of the augmentations in training: none."""
        return ()

    @property
    def patch_overlap(self) -> tuple[int, int]:
        """Overlap of neighbouring spectrogram patches as (mel bands, frames): none."""
        return 0, 0

    @property
    def is_published(self) -> bool:
        """Whether training starts from a checkpoint."""
        return self.model is not None


VARIANTS = {
    "iter3+": Config("BEATs_iter3_plus_AS2M.pt"),
    "iter3+finetuned": Config("BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt"),
    "tiny": Config(
        layers=2,
        width=32,
        feed_forward=64,
        heads=2,
        patch_width=16,
        position_kernel=8,
        position_groups=4,
        segment_s=5.0,
    ),
}


def parse_name(name: str) -> Config:
    """Return the Config of the checkpoint at the path `name`, whose architecture is read from the file.

    Raises UserError if there is no such file, or if it isn't a checkpoint of BEATs.
    """
    path = Path(name).expanduser()
    if not path.is_file():
        known = [f"beats:{variant}" for variant in VARIANTS]
        raise unknown_name_error("audio encoder", f"beats:{name}", [*known, "beats:FILE"])
    return Config(str(path.resolve()), **read_architecture(path))


def format_name(config: Config) -> str:
    """Return the name to show for a Config that isn't one of VARIANTS: that of its file."""
    return Path(config.model).name if config.model else "custom"


def read_architecture(path: Path) -> dict[str, Any]:
    """Return the settings of a Config that a checkpoint's 'cfg' gives, by name. Raises UserError if it has none."""
    shape = published.read_checkpoint(path).get("cfg")
    if not isinstance(shape, dict) or "encoder_layers" not in shape:
        raise UserError(
            f"{path} isn't a checkpoint of BEATs: it must have the architecture as 'cfg' and the weights as 'model'"
        )
    return {ours: shape[theirs] for theirs, ours in NAMES.items() if theirs in shape}


def locate_checkpoint(config: Config, weights: Path | None) -> Path:
    """Return the path of the checkpoint of a config that has one: its own path, or a file in the directory `weights`.
    Raises UserError if there is no such file.
    """
    assert config.model is not None
    candidates = [Path(config.model), *([weights / Path(config.model).name] if weights else [])]
    existing = next((path for path in candidates if path.is_file()), None)
    if existing is None:
        raise UserError(
            f"the checkpoint {config.model} of BEATs is missing: download it (docs/encoders.md) into a folder, and "
            "give the folder with --weights, or the file as beats:FILE"
        )
    return existing


def weights_fingerprint(config: Config, weights: Path | None = None) -> str:
    """Return a string that identifies the initial weights: the SHA-256 of the checkpoint, which may be in the directory
    `weights`, or 'random' for a config without one. Raises UserError if the file is missing.
    """
    return f"sha256:{published.hash_file(locate_checkpoint(config, weights))}" if config.model else "random"


def flops(config: Config) -> float:
    """Return the number of floating-point operations of the forward pass of one segment: those of embedding its patches
    and of the transformer.
    """
    patches = config.count_patches()
    embedding = operations.count_convolution(1, config.patch_width, (PATCH, PATCH), patches)
    return embedding + operations.count_transformer(patches, config.layers, config.width)

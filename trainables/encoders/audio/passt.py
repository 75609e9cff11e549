"""PaSST, the Patchout faSt Spectrogram Transformer (Koutini et al. 2022), through hear21passt.

The variants N, S and S15 are those of the paper (section 2.1): architecture, stride and structured patchout as there.
Their checkpoints are the PaSST project's releases (Apache-2.0), with the names and shapes of hear21passt's class.
`tiny` is the same class with a few layers, trained from scratch on a CPU.

hear21passt's own forward pass prints, warns about shorter input and draws the dropped patches from the global
generator; `PasstEncoder.forward` computes the same from the same parameters.
"""

import contextlib
import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data.errors import UserError
from data.schema import SAMPLE_RATE_HZ
from trainables import frontend
from trainables.encoders import operations, published

RELEASES = {
    arch: f"https://github.com/kkoutini/PaSST/releases/download/{file}"
    for arch, file in (
        ("passt_s_p16_s16_128_ap468", "v0.0.2-audioset/passt-s-f128-p16-s16-ap.468.pt"),
        ("passt_s_kd_p16_128_ap486", "v.0.0.9/passt-s-kd-ap.486.pt"),
        ("passt_20sec", "v0.0.5/passt-s-f128-20sec-p16-s10-ap.474-swa.pt"),
    )
}
"""Published weights by hear21passt's name of the architecture; the addresses are those of its own table."""

FUSED_ON = ("cuda",)
"""Devices whose attention is torch's scaled_dot_product_attention.

On a CPU it is as fast as the plain form: 0.96 of its time (measured: PaSST-N's layer, 8 segments of 284 tokens, forward
and backward, float32, one thread).
"""


@dataclass(frozen=True)
class Config:
    """A PaSST: hear21passt's `arch`, or with `arch` None one of `width`, `depth` and `heads` with random weights."""

    arch: str | None
    stride: tuple[int, int]  # of patches: mel bands, frames
    num_frames: int  # that there are positions for
    patchout_frequency: int  # rows and columns of patches dropped in training
    patchout_time: int
    segment_s: float
    pretrained: bool = True
    patch: tuple[int, int] = (16, 16)  # mel bands, frames; every arch was trained with 16 x 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    front_end: frontend.Config = frontend.Config()

    def __post_init__(self) -> None:
        if self.arch is None and self.pretrained:
            raise UserError("a PaSST without an arch has no published weights: set pretrained=False")
        if self.pretrained and self.arch not in RELEASES:
            raise UserError(f"arch is {self.arch!r}: published weights are known of {', '.join(RELEASES)}")
        rows, columns = self.grid
        if not (0 <= self.patchout_frequency < rows and 0 <= self.patchout_time < columns):
            raise UserError(
                f"patchout of {self.patchout_frequency} rows and {self.patchout_time} columns leaves nothing of "
                f"{rows} x {columns} patches: drop fewer"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches in a whole segment."""
        rows = (self.front_end.num_mels - self.patch[0]) // self.stride[0] + 1
        columns = (self.segment_frames - self.patch[1]) // self.stride[1] + 1
        return rows, min(columns, self.num_frames // self.stride[1])

    @property
    def segment_frames(self) -> int:
        """Frames of a segment."""
        return round(self.segment_s * SAMPLE_RATE_HZ) // self.front_end.hop_samples


VARIANTS = {
    "N": Config("passt_s_p16_s16_128_ap468", (16, 16), 1000, patchout_frequency=2, patchout_time=15, segment_s=10.0),
    "S": Config("passt_s_kd_p16_128_ap486", (10, 10), 998, patchout_frequency=4, patchout_time=50, segment_s=10.0),
    "S15": Config("passt_20sec", (10, 10), 2000, patchout_frequency=4, patchout_time=80, segment_s=15.0),
    # Half the frames and mel bands, and patches as high as the spectrogram: a segment is 62 tokens.
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
    ),
}
VARIANTS["tiny5"] = replace(VARIANTS["tiny"], segment_s=5.0)


def weights_fingerprint(config: Config, weights: Path | None = None) -> str:
    """Which weights training starts from: of a file in the directory `weights` its hash, of a download its name.

    The name is as good as the hash, as releases don't change.
    """
    if not config.pretrained:
        return "random"
    if weights is None:
        return f"hear21passt:{config.arch}"
    return f"sha256:{published.sha256(published.locate(release(config), weights))}"


def release(config: Config) -> str:
    """Where the published weights are."""
    assert config.arch is not None
    return RELEASES[config.arch]


def build(config: Config, weights: Path | None = None) -> "PasstEncoder":
    """The encoder with its initial weights; published ones come from the directory `weights`, or are downloaded.

    Raises UserError where they are absent, torn or another network's.
    """
    net = network(config)
    if config.pretrained:
        published.load(net, published.locate(release(config), weights))
    return PasstEncoder(config, net)


def flops(config: Config) -> float:
    """Of a segment's forward pass in training: patches of the whole spectrogram, then the tokens that are kept."""
    rows, columns = config.grid
    patches = operations.convolution(1, config.width, config.patch, rows * columns)
    kept = (rows - config.patchout_frequency) * (columns - config.patchout_time)
    return patches + operations.transformer(kept + 2, config.depth, config.width)


def network(config: Config) -> Any:
    """hear21passt's model with random weights."""
    # hear21passt brings timm and torchvision: seconds that whoever only reads a Config needn't wait.
    from hear21passt.models.passt import PaSST, get_model

    size = {"u_patchout": 0, "s_patchout_t": config.patchout_time, "s_patchout_f": config.patchout_frequency}
    with contextlib.redirect_stdout(io.StringIO()):  # hear21passt prints whole models
        if config.arch is None:
            return PaSST(
                img_size=(config.front_end.num_mels, config.num_frames),
                patch_size=config.patch,
                stride=config.stride,
                embed_dim=config.width,
                depth=config.depth,
                num_heads=config.heads,
                distilled=True,
                **size,
            )
        return get_model(
            config.arch,
            pretrained=False,
            fstride=config.stride[0],
            tstride=config.stride[1],
            input_fdim=config.front_end.num_mels,
            input_tdim=config.num_frames,
            **size,
        )


def restore(config: Config) -> "PasstEncoder":
    """An encoder of the same shape, without looking for published weights."""
    return PasstEncoder(config, network(config))


class PasstEncoder(nn.Module):
    """Segments -> the mean of PaSST's class and distillation tokens."""

    def __init__(self, config: Config, net: Any) -> None:
        super().__init__()
        self.config = config
        self.width: int = net.embed_dim
        self.front_end = frontend.LogMel(config.front_end)
        net.head = net.head_dist = nn.Identity()  # the classifiers: no parameter without a gradient
        for block in net.blocks:
            block.attn = Attention(block.attn)
        self.net = net

    @property
    def blocks(self) -> list[nn.Module]:
        """The layers in which nearly all of the time goes."""
        return list(self.net.blocks)

    def forward(self, segments_SN: Tensor, mask_draws: Tensor, generator: torch.Generator) -> Tensor:
        """[S, N] samples -> [S, width]; in training, `generator` draws the patches that are dropped."""
        net: Any = self.net
        log_mel_SMT = self.front_end(segments_SN, mask_draws, generator)
        patches_SDFT = net.patch_embed.proj(log_mel_SMT.unsqueeze(1))
        patches_SDFT = patches_SDFT + net.time_new_pos_embed[..., : patches_SDFT.shape[-1]] + net.freq_new_pos_embed
        if self.training:
            patches_SDFT = drop(patches_SDFT, 3, self.config.patchout_time, generator)
            patches_SDFT = drop(patches_SDFT, 2, self.config.patchout_frequency, generator)
        patches_SPD = patches_SDFT.flatten(2).transpose(1, 2)
        added = zip((net.cls_token, net.dist_token), net.new_pos_embed.split(1, dim=1), strict=True)
        tokens_S1D = [(token + position).expand(len(segments_SN), -1, -1) for token, position in added]
        tokens_SLD = torch.cat([*tokens_S1D, patches_SPD], dim=1)
        sequence: Tensor = net.norm(net.blocks(net.pos_drop(tokens_SLD)))
        return sequence[:, :2].mean(dim=1)


class Attention(nn.Module):
    """Self-attention with the parameters of hear21passt's, whose names it keeps; neither drops any of it."""

    def __init__(self, theirs: Any) -> None:
        super().__init__()
        self.heads: int = theirs.num_heads
        self.qkv, self.proj = theirs.qkv, theirs.proj

    def forward(self, tokens_SLD: Tensor) -> Tensor:
        """[S, L, D] -> [S, L, D]."""
        query_SHLE, key_SHLE, value_SHLE = self.qkv(tokens_SLD).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attend = nn.functional.scaled_dot_product_attention if tokens_SLD.device.type in FUSED_ON else plain_attention
        mixed_SHLE: Tensor = attend(query_SHLE, key_SHLE, value_SHLE)
        mixed_SLD: Tensor = self.proj(mixed_SHLE.transpose(1, 2).flatten(2))
        return mixed_SLD


def plain_attention(query_SHLE: Tensor, key_SHLE: Tensor, value_SHLE: Tensor) -> Tensor:
    """Attention in the plain form, for H heads of E entries: [S, H, L, E]."""
    scores_SHLL = query_SHLE @ key_SHLE.mT * query_SHLE.shape[-1] ** -0.5
    mixed_SHLE: Tensor = scores_SHLL.softmax(dim=-1) @ value_SHLE
    return mixed_SHLE


def drop(patches_SDFT: Tensor, dim: int, count: int, generator: torch.Generator) -> Tensor:
    """Structured patchout: the patches without `count` rows or columns, the same ones in the whole batch."""
    if count == 0:
        return patches_SDFT
    size = patches_SDFT.shape[dim]
    kept = torch.randperm(size, generator=generator)[: size - count].sort().values
    return patches_SDFT.index_select(dim, kept.to(patches_SDFT.device))

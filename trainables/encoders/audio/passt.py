"""PaSST, the Patchout faSt Spectrogram Transformer (Koutini et al. 2022), through hear21passt.

The variants N, S and S15 are those of the paper (section 2.1): architecture, stride and structured patchout as there.
Their checkpoints are downloaded by hear21passt from the PaSST project's releases (Apache-2.0). `tiny` is the same class
with a few layers, trained from scratch on a CPU.

hear21passt's own forward pass prints, warns about shorter input and draws the dropped patches from the global
generator; `PasstEncoder.forward` computes the same from the same parameters.
"""

import contextlib
import io
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from data.errors import UserError
from data.schema import SAMPLE_RATE_HZ
from trainables import frontend


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


def weights_fingerprint(config: Config) -> str:
    """Which weights training starts from: a release's name is as good as its hash, as releases don't change."""
    return f"hear21passt:{config.arch}" if config.pretrained else "random"


def build(config: Config) -> "PasstEncoder":
    """The encoder with its initial weights; pretrained ones are downloaded if they aren't in torch hub's cache."""
    # hear21passt brings timm and torchvision: seconds that whoever only reads a Config needn't wait.
    from hear21passt.models.passt import PaSST, get_model

    size = {"u_patchout": 0, "s_patchout_t": config.patchout_time, "s_patchout_f": config.patchout_frequency}
    with contextlib.redirect_stdout(io.StringIO()):  # hear21passt prints whole models
        if config.arch is None:
            net = PaSST(
                img_size=(config.front_end.num_mels, config.num_frames),
                patch_size=config.patch,
                stride=config.stride,
                embed_dim=config.width,
                depth=config.depth,
                num_heads=config.heads,
                distilled=True,
                **size,
            )
        else:
            net = get_model(
                config.arch,
                pretrained=config.pretrained,
                fstride=config.stride[0],
                tstride=config.stride[1],
                input_fdim=config.front_end.num_mels,
                input_tdim=config.num_frames,
                **size,
            )
    return PasstEncoder(config, net)


def restore(config: Config) -> "PasstEncoder":
    """An encoder of the same shape, without looking for published weights."""
    return build(replace(config, pretrained=False))


class PasstEncoder(nn.Module):
    """Segments -> the mean of PaSST's class and distillation tokens."""

    def __init__(self, config: Config, net: Any) -> None:
        super().__init__()
        self.config = config
        self.width: int = net.embed_dim
        self.front_end = frontend.LogMel(config.front_end)
        net.head = net.head_dist = nn.Identity()  # the classifiers: no parameter without a gradient
        self.net = net

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
        tokens_12D = torch.cat([net.cls_token, net.dist_token], dim=1) + net.new_pos_embed
        tokens_SLD = torch.cat([tokens_12D.expand(len(segments_SN), -1, -1), patches_SPD], dim=1)
        sequence: Tensor = net.norm(net.blocks(net.pos_drop(tokens_SLD)))
        return sequence[:, :2].mean(dim=1)


def drop(patches_SDFT: Tensor, dim: int, count: int, generator: torch.Generator) -> Tensor:
    """Structured patchout: the patches without `count` rows or columns, the same ones in the whole batch."""
    if count == 0:
        return patches_SDFT
    size = patches_SDFT.shape[dim]
    kept = torch.randperm(size, generator=generator)[: size - count].sort().values
    return patches_SDFT.index_select(dim, kept.to(patches_SDFT.device))

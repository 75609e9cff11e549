"""Network of PaSST: hear21passt's parameters with another forward pass.

hear21passt's own forward pass prints, warns about shorter input and draws the dropped patches from the global
generator. `PasstEncoder.forward` computes the same function of the same parameters without these side effects.

Shapes: S segments, N samples, M mel bands, T frames, P patches, L tokens, D width, H heads, E entries of a head.
"""

import contextlib
import io
from pathlib import Path
from typing import Any

import torch
from hear21passt.models.passt import PaSST, get_model
from torch import Tensor, nn

from trainables.encoders import published
from trainables.encoders.audio.passt import Config, release_url
from trainables.networks.audio.log_mel import LogMel

FUSED_DEVICES = ("cuda",)
"""Device types that use torch's scaled_dot_product_attention; others use `attend`, the plain form.

On a CPU it is as fast as the plain form: 0.96 of its time (measured: PaSST-N's layer, 8 segments of 284 tokens, forward
and backward, float32, one thread).
"""


def build(config: Config, weights: Path | None = None) -> "PasstEncoder":
    """Return the network that a config describes, with its initial weights. Published ones are read from the directory
    `weights` if it is given, and otherwise downloaded.

    Raises UserError if the file is missing, truncated, or of another network.
    """
    net = make_passt(config)
    if config.pretrained:
        published.load_checkpoint(net, published.locate_checkpoint(release_url(config), weights))
    return PasstEncoder(config, net)


def restore(config: Config) -> "PasstEncoder":
    """Return the network with random weights, which the caller replaces with trained ones."""
    return PasstEncoder(config, make_passt(config))


def make_passt(config: Config) -> Any:
    """Return hear21passt's model for a config, with random weights."""
    size = {"u_patchout": 0, "s_patchout_t": config.patchout_time, "s_patchout_f": config.patchout_frequency}
    with contextlib.redirect_stdout(io.StringIO()):  # hear21passt prints its models
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


class PasstEncoder(nn.Module):
    """Network that embeds a segment as the mean of the outputs for PaSST's class token and distillation token, or as
    their mean plus maximum over the spectrogram patches.
    """

    def __init__(self, config: Config, net: Any) -> None:
        super().__init__()
        self.config = config
        self.width: int = net.embed_dim
        self.front_end = LogMel(config.front_end)
        net.head = net.head_dist = nn.Identity()  # unused classifiers: DDP needs a gradient for each parameter
        for block in net.blocks:
            block.attn = Attention(block.attn)
        self.net = net

    @property
    def blocks(self) -> list[nn.Module]:
        """Layers that account for nearly all compute time; activation checkpointing and torch.compile apply to each of
        them.
        """
        return list(self.net.blocks)

    def forward(self, segments_SN: Tensor, mask_draws: Tensor, generator: torch.Generator) -> Tensor:
        """Return the embeddings [S, width] of S segments of N samples. In training, `mask_draws` are random numbers for
        SpecAugment, and `generator` draws the patches to drop.
        """
        net: Any = self.net
        log_mel_SMT = self.front_end(segments_SN, mask_draws, generator)
        patches_SDFT = net.patch_embed.proj(log_mel_SMT.unsqueeze(1))
        patches_SDFT = patches_SDFT + net.time_new_pos_embed[..., : patches_SDFT.shape[-1]] + net.freq_new_pos_embed
        if self.training:
            patches_SDFT = drop_patches(patches_SDFT, 3, self.config.patchout_time, generator)
            patches_SDFT = drop_patches(patches_SDFT, 2, self.config.patchout_frequency, generator)
        patches_SPD = patches_SDFT.flatten(2).transpose(1, 2)
        special_tokens = zip((net.cls_token, net.dist_token), net.new_pos_embed.split(1, dim=1), strict=True)
        tokens_S1D = [(token + position).expand(len(segments_SN), -1, -1) for token, position in special_tokens]
        tokens_SLD = torch.cat([*tokens_S1D, patches_SPD], dim=1)
        sequence: Tensor = net.norm(net.blocks(net.pos_drop(tokens_SLD)))
        num_special = len(tokens_S1D)
        if self.config.pooling == "class":
            return sequence[:, :num_special].mean(dim=1)
        outputs_SPD = sequence[:, num_special:]
        return outputs_SPD.mean(dim=1) + outputs_SPD.amax(dim=1)


class Attention(nn.Module):
    """Self-attention that takes the parameters of hear21passt's layer and keeps their names. Like that layer, it has no
    attention dropout.
    """

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.heads: int = original.num_heads
        self.qkv, self.proj = original.qkv, original.proj

    def forward(self, tokens_SLD: Tensor) -> Tensor:
        """Return the output of self-attention [S, L, D] for tokens [S, L, D]: L vectors of D numbers for each of S
        segments.
        """
        query_SHLE, key_SHLE, value_SHLE = self.qkv(tokens_SLD).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        is_fused = tokens_SLD.device.type in FUSED_DEVICES
        function = nn.functional.scaled_dot_product_attention if is_fused else attend
        mixed_SHLE: Tensor = function(query_SHLE, key_SHLE, value_SHLE)
        mixed_SLD: Tensor = self.proj(mixed_SHLE.transpose(1, 2).flatten(2))
        return mixed_SLD


def attend(query_SHLE: Tensor, key_SHLE: Tensor, value_SHLE: Tensor) -> Tensor:
    """Return scaled dot-product attention of queries, keys and values, all [S, H, L, E]: H heads of E entries, L
    positions. It is computed as plain matrix products.
    """
    scores_SHLL = query_SHLE @ key_SHLE.mT * query_SHLE.shape[-1] ** -0.5
    mixed_SHLE: Tensor = scores_SHLL.softmax(dim=-1) @ value_SHLE
    return mixed_SHLE


def drop_patches(patches_SDFT: Tensor, dim: int, count: int, generator: torch.Generator) -> Tensor:
    """Return the embedded spectrogram patches [S, D, F, T] of S segments, D numbers for each patch, without `count` of
    the F rows (`dim` 2) or of the T columns (`dim` 3), which `generator` draws (structured patchout). The same ones are
    dropped from all segments of the batch.
    """
    if count == 0:
        return patches_SDFT
    size = patches_SDFT.shape[dim]
    kept_indices = torch.randperm(size, generator=generator)[: size - count].sort().values
    return patches_SDFT.index_select(dim, kept_indices.to(patches_SDFT.device))

"""The dual encoder: clips and captions -> embeddings in one space, on the unit sphere.

Shapes: B pairs, S segments, N samples, W an encoder's width, D the size of the embeddings.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from data.batches import Batch
from trainables import encoders
from trainables.encoders.audio import AudioEncoder
from trainables.encoders.text import TextEncoder, Tokens
from trainables.trial import Trial


class DualEncoder(nn.Module):
    """Two encoders, a linear projection for each, and the temperature of the loss."""

    audio: AudioEncoder
    text: TextEncoder

    def __init__(self, audio: AudioEncoder, text: TextEncoder, embedding_size: int, temperature: float) -> None:
        super().__init__()
        self.audio, self.text = audio, text
        self.audio_projection = nn.Linear(audio.width, embedding_size)
        self.text_projection = nn.Linear(text.width, embedding_size)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))

    @property
    def temperature(self) -> Tensor:
        """What cosines are divided by; learned as its logarithm, so that it stays above zero."""
        return self.log_temperature.exp()

    def embed_audio(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Clips [B, D]: the mean over each clip's own segments, projected and normalised."""
        features_SW = self.audio(batch.segments, batch.mask_draws, generator)
        counts_B = batch.segments_per_clip
        clip_S = torch.repeat_interleave(torch.arange(len(counts_B), device=counts_B.device), counts_B)
        member_BS = (clip_S == torch.arange(len(counts_B), device=counts_B.device)[:, None]).to(features_SW.dtype)
        means_BW = member_BS @ features_SW / counts_B[:, None].to(features_SW.dtype)
        return nn.functional.normalize(self.audio_projection(means_BW).float(), dim=-1)

    def embed_text(self, tokens: Tokens) -> Tensor:
        """Captions [B, D]."""
        return nn.functional.normalize(self.text_projection(self.text(tokens)).float(), dim=-1)

    def forward(self, batch: Batch, tokens: Tokens, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Clips [B, D], captions [B, D], and the temperature: all that the loss needs, in one pass for DDP."""
        return self.embed_audio(batch, generator), self.embed_text(tokens), self.temperature


def build(trial: Trial, captions: Sequence[str]) -> DualEncoder:
    """A trial's model with its initial weights; `captions` are the normalised ones that it will be trained on."""
    torch.manual_seed(trial.seed)
    audio = encoders.module_of(trial.audio).build(trial.audio)
    text = encoders.module_of(trial.text).build(trial.text, captions)
    return DualEncoder(audio, text, trial.embedding_size, trial.temperature)


def restore(trial: Trial, folder: Path) -> DualEncoder:
    """A trial's model without its weights: the tokenizer comes from `folder`, and nothing is downloaded."""
    audio = encoders.module_of(trial.audio).restore(trial.audio)
    text = encoders.module_of(trial.text).restore(trial.text, folder)
    return DualEncoder(audio, text, trial.embedding_size, trial.temperature)

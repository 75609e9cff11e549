"""The dual encoder: embeds clips and captions in one space, on the unit sphere.

Shapes: B pairs, S segments, N samples, W an encoder's width, D the size of the embeddings.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from data.loading.batch import Batch
from data.store.stored_split import StoredSplit
from trainables.encoders.audio import AudioConfig, AudioEncoder
from trainables.encoders.text import TextEncoder, Tokens
from trainables.networks import load_network_module
from trainables.trial import Trial

TEMPERATURE_PARAMETERS: Mapping[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "signed_temperature": (torch.positive, torch.abs),
    "log_temperature": (torch.log, torch.exp),
}
"""Parameters from which the temperature is computed, by name: the function from a temperature to the parameter, and the
one back. A dual encoder has one of them.
"""


class FeatureSource(Protocol):
    """Source of features, the outputs of frozen encoders, that are computed once (`trainables.training.features`)."""

    def load_clips(self, split: StoredSplit, batch_size: int) -> Iterator[Batch] | None:
        """Return batches of up to `batch_size` clips of a split in order, with features in place of samples; None if
        the audio encoder isn't frozen.
        """

    def load_queries(self, split: StoredSplit) -> None:
        """Make the features of a split's captions and queries available, if the text encoder is frozen."""

    def find_texts(self, captions: Sequence[str]) -> Tensor | None:
        """Return the features [B, W] of normalised captions; None if one of them isn't available."""


class DualEncoder(nn.Module):
    """Dual encoder: an audio and a text encoder, a projection for each, and the temperature of the loss. Projections
    are linear, unless those of a published model are given.

    A frozen encoder is not trained and stays in evaluation mode, without dropout and masks. On a CPU it computes clips
    and captions one at a time, so that its outputs are the same, bit for bit, in any batch. The learned parameter is
    the temperature itself, whose absolute value is used, as in the code of the paper's authors; with `log_temperature`
    it is the temperature's logarithm. Adam moves a parameter by about the learning rate in each step, so that near 0.01
    it moves the temperature itself about a hundred times faster than its logarithm.
    """

    audio: AudioEncoder
    text: TextEncoder
    features: FeatureSource | None = None  # features of frozen encoders, which embedding uses

    def __init__(
        self,
        audio: AudioEncoder,
        text: TextEncoder,
        embedding_size: int,
        temperature: float,
        frozen_audio: bool = False,
        frozen_text: bool = False,
        log_temperature: bool = False,
        projections: tuple[nn.Module, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.audio, self.text = audio, text
        self.frozen_audio, self.frozen_text = frozen_audio, frozen_text
        for encoder in self.frozen:
            encoder.requires_grad_(False)
        self.audio_projection, self.text_projection = projections or (
            nn.Linear(audio.width, embedding_size),
            nn.Linear(text.width, embedding_size),
        )
        self.temperature_name = "log_temperature" if log_temperature else "signed_temperature"
        self.register_parameter(self.temperature_name, nn.Parameter(torch.tensor(0.0)))
        self.set_temperature(temperature)

    @property
    def frozen(self) -> list[nn.Module]:
        """Encoders that are not trained: audio, text, both or none."""
        frozen = {"audio": self.frozen_audio, "text": self.frozen_text}
        return [self.get_submodule(name) for name, is_frozen in frozen.items() if is_frozen]

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode, and return the model. Frozen encoders stay in evaluation mode."""
        super().train(mode)
        for encoder in self.frozen:
            encoder.eval()
        return self

    @property
    def temperature_parameter(self) -> nn.Parameter:
        """Parameter from which the temperature is computed: its logarithm, or the temperature itself with any sign."""
        return self.get_parameter(self.temperature_name)

    @property
    def temperature(self) -> Tensor:
        """Temperature, by which the loss divides the cosines. It is positive."""
        _, to_temperature = TEMPERATURE_PARAMETERS[self.temperature_name]
        return to_temperature(self.temperature_parameter)

    @torch.no_grad()
    def set_temperature(self, temperature: float) -> None:
        """Set the temperature, which must be positive."""
        to_parameter, _ = TEMPERATURE_PARAMETERS[self.temperature_name]
        self.temperature_parameter.copy_(to_parameter(torch.tensor(temperature)))

    def convert_temperature(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights of a dual encoder, by name, with its temperature as the parameter that this one has. The
        other one may learn the temperature's logarithm, as all models of version 3 of the training did.
        """
        converted = dict(weights)
        to_parameter, _ = TEMPERATURE_PARAMETERS[self.temperature_name]
        for name, (_, to_temperature) in TEMPERATURE_PARAMETERS.items():
            if name != self.temperature_name and name in converted:
                converted[self.temperature_name] = to_parameter(to_temperature(converted.pop(name)))
        return converted

    def embed_audio(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return the embeddings [B, D] of the clips in a batch: the encoder's mean over each clip's segments, projected
        and normalised. `generator` draws random numbers for augmentation in training.
        """
        features_SW = self.encode_audio(batch, generator) if batch.audio_features is None else batch.audio_features
        return self.project_audio(average_segments(features_SW, batch.segments_per_clip))

    def project_audio(self, features_BW: Tensor) -> Tensor:
        """Return the embeddings [B, D] of clips, or of segments, from the audio encoder's outputs for them."""
        return nn.functional.normalize(self.audio_projection(features_BW).float(), dim=-1)

    def encode_audio(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return the audio encoder's outputs [S, W] for the segments of a batch."""
        if not self.frozen_audio:
            return embed_segments(self.audio, batch, generator)
        parts = batch.split(1) if batch.segments.device.type == "cpu" else [batch]
        with torch.no_grad():
            return torch.cat([embed_segments(self.audio, part, generator) for part in parts])

    def embed_text(self, tokens: Tokens) -> Tensor:
        """Return the embeddings [B, D] of captions: the encoder's output, projected and normalised."""
        return self.project_text(self.encode_text(tokens))

    def encode_text(self, tokens: Tokens) -> Tensor:
        """Return the text encoder's outputs [B, W] for captions."""
        if not self.frozen_text:
            return self.text(tokens)
        parts = tokens.split() if tokens.ids.device.type == "cpu" else [tokens]
        with torch.no_grad():
            return torch.cat([self.text(part) for part in parts])

    def project_text(self, features_BW: Tensor) -> Tensor:
        """Return the embeddings [B, D] of captions from the text encoder's outputs for them."""
        return nn.functional.normalize(self.text_projection(features_BW).float(), dim=-1)

    def save_inputs(self, folder: Path) -> None:
        """Write to a folder what the encoders need besides weights to be restored: the tokenizer, and the feature
        extractor of an audio encoder that has one.
        """
        self.text.save_tokenizer(folder)
        if save_extractor := getattr(self.audio, "save_extractor", None):
            save_extractor(folder)

    def forward(self, batch: Batch, tokens: Tokens | None, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return three tensors: the embeddings of the clips of a batch [B, D], those of the captions with these tokens
        [B, D], and the temperature. One call returns all, since DDP needs all parameters to be used in one forward
        pass. `generator` is for augmentation. Tokens are None for a batch with features of its captions.
        """
        audio_BD = self.embed_audio(batch, generator)  # first: both encoders draw dropout from one generator
        features_BW = batch.text_features if tokens is None else self.encode_text(tokens)
        assert features_BW is not None
        return audio_BD, self.project_text(features_BW), self.temperature


def average_segments(features_SW: Tensor, counts_B: Tensor) -> Tensor:
    """Return the mean of the outputs of an audio encoder [S, W] over each clip's segments [B, W]. `counts_B` has the
    number of segments of each clip.
    """
    clip_S = torch.repeat_interleave(torch.arange(len(counts_B), device=counts_B.device), counts_B)
    member_BS = (clip_S == torch.arange(len(counts_B), device=counts_B.device)[:, None]).to(features_SW.dtype)
    return member_BS @ features_SW / counts_B[:, None].to(features_SW.dtype)


def embed_segments(audio: AudioEncoder, batch: Batch, generator: torch.Generator) -> Tensor:
    """Return an audio encoder's outputs [S, W], W numbers for each of the S segments of a batch. `generator` is for
    augmentation. An encoder with the attribute `reads_num_samples = True` gets the number of samples of each segment,
    too.
    """
    if getattr(audio, "reads_num_samples", False):
        return audio(batch.segments, batch.mask_draws, generator, num_samples_S=batch.count_samples())
    return audio(batch.segments, batch.mask_draws, generator)


def checkpoint_activations(model: DualEncoder) -> None:
    """Enable activation checkpointing in each block of both encoders, which saves memory: the backward pass recomputes
    the block's activations, bit for bit.
    """
    for block in [*model.audio.blocks, *model.text.blocks]:
        block.forward = with_checkpointing(block.forward)


def with_checkpointing(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that computes a block's forward pass with activation checkpointing. It is not a
    functools.partial, since torch.compile skips those.
    """

    def forward_again(*arguments: Any, **settings: Any) -> Any:
        return checkpoint(forward, *arguments, use_reentrant=False, **settings)

    return forward_again


def compile_blocks(model: DualEncoder) -> None:
    """Compile each block of both encoders in place with torch.compile, for any number of segments, captions and
    tokens.
    """
    blocks = [*model.audio.blocks, *model.text.blocks]
    # Blocks of one class share their code, which is compiled again for each block's shapes, in training and evaluation.
    torch._dynamo.config.recompile_limit = max(2 * len(blocks), torch._dynamo.config.recompile_limit)
    for block in blocks:
        block.compile(dynamic=True)


def build(trial: Trial, captions: Sequence[str], weights: Path | None = None) -> DualEncoder:
    """Return a trial's model with its initial weights. `captions` are the normalised training captions, from which a
    text encoder may learn its vocabulary.

    Published weights are read from the directory `weights` if it is given, and otherwise downloaded.
    """
    torch.manual_seed(trial.seed)
    audio = load_network_module(trial.audio).build(trial.audio, weights)
    text = load_network_module(trial.text).build(trial.text, captions, weights)
    network = combine_encoders(trial, audio, text)
    if trial.initial:
        from trainables.networks import dual_models

        temperature = dual_models.load_projections(trial, (network.audio_projection, network.text_projection), weights)
        if not trial.reset_temperature:
            network.set_temperature(float(temperature))
    return network


def restore(trial: Trial, folder: Path) -> DualEncoder:
    """Return a trial's model without its trained weights, which the caller loads. The tokenizer, and what the audio
    encoder has saved, are read from `folder`, and nothing is downloaded.
    """
    audio = restore_audio_encoder(trial.audio, folder)
    text = load_network_module(trial.text).restore(trial.text, folder)
    return combine_encoders(trial, audio, text)


def restore_audio_encoder(config: AudioConfig, folder: Path) -> AudioEncoder:
    """Return the audio encoder of a config without its trained weights. If its family's function `restore` has a second
    parameter, it gets the folder with the files that `save_extractor` wrote.
    """
    restore_encoder = load_network_module(config).restore
    has_files = len(inspect.signature(restore_encoder).parameters) > 1
    encoder: AudioEncoder = restore_encoder(config, folder) if has_files else restore_encoder(config)
    return encoder


def combine_encoders(trial: Trial, audio: AudioEncoder, text: TextEncoder) -> DualEncoder:
    """Return a trial's dual encoder, made of the encoders `audio` and `text`."""
    projections = None
    if trial.initial:
        from trainables.networks import dual_models

        projections = dual_models.make_projections(trial.initial, audio, text, trial.embedding_size)
    network = DualEncoder(
        audio,
        text,
        trial.embedding_size,
        trial.temperature,
        trial.frozen_audio,
        trial.frozen_text,
        trial.log_temperature,
        projections,
    )
    network.temperature_parameter.requires_grad_(not trial.fixed_temperature)
    return network

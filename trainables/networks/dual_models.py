"""Projections and temperatures of published dual encoders (`trainables.encoders.dual_models`).

Shapes: W an encoder's width, D the size of the embeddings.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.clap.modeling_clap import ClapProjectionLayer
from transformers.models.pe_audio.modeling_pe_audio import PeAudioContrastiveHead

from data.errors import UserError
from trainables.encoders import hub_models, pretrained_files, published
from trainables.encoders.audio import huggingface
from trainables.encoders.dual_models import DualModel
from trainables.networks import pretrained
from trainables.trial import Trial

PROJECTIONS: Mapping[DualModel, tuple[str, str]] = {
    "clap": ("audio_projection", "text_projection"),
    "pe-audio": ("audio_head", "text_audio_head"),
}
"""Names of the projections of audio and text in the model of each kind."""


def make_projections(kind: DualModel, audio: Any, text: Any, embedding_size: int) -> tuple[nn.Module, nn.Module]:
    """Return the projections of audio and text of a kind of dual encoder, from the networks of its two encoders, with
    random weights. Raises UserError if their output has another size than `embedding_size`.
    """
    shapes = [encoder.model.config for encoder in (audio, text)]
    size = shapes[0].projection_dim if kind == "clap" else shapes[1].hidden_size
    if size != embedding_size:
        raise UserError(f"embedding_size is {embedding_size}, but the embeddings of the model have {size} numbers")
    if kind == "clap":
        return ClapProjectionLayer(shapes[0]), ClapProjectionLayer(shapes[1])
    return PeAudioContrastiveHead(audio.width, size), PeAudioContrastiveHead(text.width, size)


def load_projections(trial: Trial, projections: tuple[nn.Module, nn.Module], weights: Path | None) -> Tensor:
    """Load the weights of the dual encoder that a trial starts from into the `projections` of audio and text, in place,
    and return its temperature. The model may be in the directory `weights`.

    CLAP has a temperature for each direction; that of text-to-audio retrieval is returned. Raises UserError if the
    weights don't match or the temperature isn't above 0.
    """
    assert trial.initial is not None
    config: huggingface.Config = trial.audio  # type: ignore[assignment]  # checked by the trial
    location = huggingface.locate_model(config, weights)
    revision = hub_models.choose_revision("audio", location, config.revision)
    with pretrained.loading_errors_as_user_errors("dual", config.model):
        shape = pretrained_files.load_shape(location, revision=revision)
        model, differences = pretrained.load_model(location, shape, revision=revision)
    for name, projection in zip(PROJECTIONS[trial.initial], projections, strict=True):
        part = model.get_submodule(name)
        pretrained.require_body_weights(location, model, part, differences)
        published.load_weights(projection, part.state_dict(), location)
    temperature = read_temperature(trial.initial, model)
    if not temperature > 0:
        raise UserError(f"{location}: its temperature is {float(temperature)}: the model isn't a trained one")
    return temperature


@torch.no_grad()
def read_temperature(kind: DualModel, model: Any) -> Tensor:
    """Return the temperature of a published dual encoder: the inverse of the factor of its scores. CLAP stores the
    logarithm of that factor.
    """
    scale: Tensor = model.logit_scale_t.exp() if kind == "clap" else model.text_audio_logit_scale.squeeze()
    return 1 / scale

"""Published dual encoders that a trial may start from, with both towers, their projections and the temperature: models
of transformers' classes ClapModel and PeAudioModel.
"""

from typing import Any, Literal, get_args

from data.errors import UserError, unknown_name_error
from trainables.encoders import hub_models, pretrained_files
from trainables.encoders.audio import huggingface as audio_models
from trainables.encoders.text import huggingface as text_models

DualModel = Literal["clap", "pe-audio"]

MODEL_TYPES: dict[DualModel, str] = {"clap": "clap", "pe-audio": "pe_audio"}
"""Types of models in config.json, by the name of the kind of dual encoder."""

TEXT_POOLING: dict[DualModel, text_models.Pooling] = {"clap": "own", "pe-audio": "first"}
"""What the projection of captions reads: CLAP has a pooler, and PE-Audio reads the first token."""


def parse_init(name: str) -> dict[str, Any]:
    """Return the settings of a trial that starts from the published dual encoder 'clap:MODEL' or 'pe-audio:MODEL', by
    name: `initial`, `audio`, `text` and `embedding_size`. MODEL is a folder, or an id on the hub with or without
    '@REVISION'.

    Raises UserError if there is no such kind, or if the model is of another kind.
    """
    kind_name, _, location = name.partition(":")
    kind = next((kind for kind in MODEL_TYPES if kind == kind_name), None)
    if kind is None:
        known = [f"{known_kind}:{model}" for known_kind in MODEL_TYPES for model in ("FOLDER", "HUB_ID")]
        raise unknown_name_error("dual encoder", name, known)
    model, revision = hub_models.parse_location("dual", location, location, ())
    try:
        shape = pretrained_files.load_shape(model, revision=revision)
    except UserError:
        raise
    except Exception as error:  # truncated files raise any error of the JSON parser, and the hub's client its own
        raise UserError(f"--init {name}: its config.json can't be read: {' '.join(str(error).split())}") from error
    if shape.model_type != MODEL_TYPES[kind]:
        raise UserError(
            f"--init {name}: its type is {shape.model_type}, not {MODEL_TYPES[kind]}: give a model of the class that "
            f"{kind}: stands for, or use it as an encoder with --audio or --text huggingface:{location}"
        )
    size = shape.projection_dim if kind == "clap" else shape.text_config.hidden_size
    return make_settings(kind, model, revision, size)


def make_settings(
    kind: DualModel, model: str, revision: str | None, embedding_size: int, segment_s: float = 0.0
) -> dict[str, Any]:
    """Return the settings of a trial that starts from a published dual encoder, as `parse_init` does. `embedding_size`
    is the size of the model's embeddings, and `segment_s` the length of a segment; 0 stands for the model's own, which
    is read from its files.
    """
    return {
        "initial": kind,
        "audio": audio_models.Config(model, revision, segment_s),
        "text": text_models.Config(model, revision, pooling=TEXT_POOLING[kind]),
        "embedding_size": embedding_size,
    }


def require_one_model(kind: DualModel, audio: Any, text: Any) -> None:
    """Raise UserError unless both encoders' Configs, `audio` and `text`, name one model of Hugging Face, and pool as
    the projections of this `kind` of model expect.
    """
    if kind not in get_args(DualModel):
        raise unknown_name_error("initial", kind, list(get_args(DualModel)))
    configs = {"audio": audio_models.Config, "text": text_models.Config}
    for name, config in (("audio", audio), ("text", text)):
        if not isinstance(config, configs[name]):
            raise UserError(f"initial is {kind!r}: the {name} encoder must be huggingface:MODEL, with the same model")
    if (audio.model, audio.revision) != (text.model, text.revision):
        raise UserError(
            f"initial is {kind!r}: both encoders must be of one model, not of {audio.model} and {text.model}"
        )
    if (audio.pooling, text.pooling) != ("own", TEXT_POOLING[kind]):
        raise UserError(
            f"initial is {kind!r}: its projections need the audio encoder's pooling 'own', and the text encoder's "
            f"{TEXT_POOLING[kind]!r}"
        )

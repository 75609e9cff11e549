"""Networks from transformers, for encoders of both kinds: loading with checks, and weights that take no part."""

import contextlib
import importlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file

from data.errors import UserError
from trainables.encoders import model_files, pretrained_files, published

MAX_REASON = 300
"""Maximum number of characters of an error of transformers in a message; some list all kinds of models."""


@contextlib.contextmanager
def without_load_report() -> Iterator[None]:
    """Suppress, in the `with` block, transformers' log message on missing and unexpected weights, which lists weights
    that are not used, too.
    """
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


@contextlib.contextmanager
def loading_errors_as_user_errors(kind: str, model: str) -> Iterator[None]:
    """Raise any error in the `with` block, in which the files of a model are read, as a UserError that names the
    `model` and the `kind` of encoder.
    """
    try:
        yield
    except UserError as error:
        raise UserError(f"{kind} encoder {model!r}: {error}") from error
    except Exception as error:  # truncated files raise any error of the parsers of JSON, safetensors and tokenizers
        reason = " ".join(str(error).split())[:MAX_REASON]
        raise UserError(f"{kind} encoder {model!r} can't be loaded: {reason}") from error


def find_model_file(location: str, revision: str | None, name: str) -> Path | None:
    """Return the local path of the file `name` of a model, which is downloaded from the hub if necessary; None if the
    model has no such file. `location` is a local folder, or the model's id on the hub with an optional revision. Raises
    OSError if the hub can't be reached.
    """
    path = cached_file(location, name, revision=revision, _raise_exceptions_for_missing_entries=False)
    return Path(path) if path else None


def load_model(location: str, shape: Any, **files: Any) -> tuple[Any, dict[str, Any]]:
    """Return the model at `location`, built for the transformers config `shape`, and the differences between its
    weights and the file's, for `require_body_weights`. `files` are transformers' options for locating the files. Raises
    UserError if a folder holds an adapter, or weights in another format.
    """
    if Path(location).is_dir():
        model_files.refuse_other_formats(Path(location, files.get("subfolder") or ""))
    with without_load_report():
        model, differences = pretrained_files.load_body(
            location,
            config=shape,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported by `require_body_weights`, together with other differences
            **files,
        )
    return model, differences


def create_body(shape: Any, location: Path | str, get_body: Callable[[Any], Any]) -> Any:
    """Return a part of the model with a transformers config, `shape`, that was read at `location`, with random weights:
    what `get_body` returns of the model. Other parts are not created if the part is a model of its own.
    """
    body = sketch_body(shape, location, get_body)
    if isinstance(body, PreTrainedModel):
        return type(body)(body.config)
    return get_body(pretrained_files.build_body(shape, location, dtype=torch.float32))


def sketch_body(shape: Any, location: Path | str, get_body: Callable[[Any], Any]) -> Any:
    """Return a part of a model as `create_body` does, but without memory for its weights."""
    # Its module is imported before, so that no tensor of that module is created without memory.
    importlib.import_module(type(shape).__module__.replace(".configuration_", ".modeling_"))
    with torch.device("meta"):
        return get_body(pretrained_files.build_body(shape, location, dtype=torch.float32))


def require_body_weights(location: str, model: Any, body: Any, differences: dict[str, Any]) -> None:
    """Raise UserError, which names the model's location, if the weights of `body`, a part of the model or all of it,
    differ from those in the file. `differences` are those that `load_model` returned.
    """
    published.require_matching_weights(
        location,
        missing=filter_body_weights(model, body, differences["missing_keys"]),
        unexpected=filter_body_weights(model, body, differences["unexpected_keys"]),
        misshapen=[
            f"{name} {list(actual)} instead of {list(expected)}"
            for name, actual, expected in differences["mismatched_keys"]
            if filter_body_weights(model, body, [name])
        ],
    )


def filter_body_weights(model: Any, body: Any, names: Collection[str]) -> list[str]:
    """Return, sorted, those names that are weights of the embeddings and layers of `body`, a part of the model or all
    of it. Weights of heads, of the pooler and of a decoder, which are not used, are left out.
    """
    part = "" if body is model else next(f"{name}." for name, module in model.named_modules() if module is body)
    used = {name for name, _ in body.named_children()} - {"pooler"}
    kept = {id(parameter) for parameter in body.parameters()}
    # The embeddings of an encoder-decoder model have a name outside of its encoder, too.
    shared = {name for name, parameter in model.named_parameters() if part and id(parameter) in kept}
    stems = {name: name.removeprefix(f"{model.base_model_prefix}.") for name in names}
    return sorted(
        name
        for name, stem in stems.items()
        if stem in shared or (stem.startswith(part) and stem.removeprefix(part).partition(".")[0] in used)
    )


def disable_training_switches(shape: Any) -> None:
    """Disable in a transformers config `shape` what training can't have: the cache of keys and values, which a second
    forward pass of activation checkpointing would fill twice, and LayerDrop, since DDP waits for a gradient of each
    parameter in each step.
    """
    shape.use_cache = False
    for name in shape.to_dict():
        if name.endswith("layerdrop"):
            setattr(shape, name, 0.0)


def set_dropout(shape: Any, dropout: float) -> None:
    """Set every dropout rate in a transformers config `shape`: each number whose name contains 'dropout' or 'pdrop'."""
    for name, value in shape.to_dict().items():
        if ("dropout" in name or "pdrop" in name) and isinstance(value, int | float):
            setattr(shape, name, dropout)


def freeze_unused_weights(encoder: nn.Module, embed: Callable[[], Tensor]) -> None:
    """Disable the gradients of an encoder's weights that take no part in its output, such as Longformer's for global
    attention, since DDP waits for a gradient of each parameter. `embed` returns an output of the encoder.
    """
    if torch.is_inference_mode_enabled():
        return
    was_training = encoder.training
    encoder.eval()
    with torch.enable_grad():
        embed().sum().backward()
    for parameter in encoder.parameters():
        parameter.requires_grad_(parameter.requires_grad and parameter.grad is not None)
    encoder.zero_grad()
    encoder.train(was_training)

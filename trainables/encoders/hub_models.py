"""Models in the layout of the Hugging Face hub, for encoders of both kinds: their names, and where they are.

A model is named by its folder, or by its id on the hub, `ORGANISATION/MODEL`, with or without `@REVISION`.
"""

import functools
import re
from collections.abc import Iterable
from pathlib import Path

from data.errors import UserError, unknown_name_error
from trainables.encoders import model_files

HUB_NAME = re.compile(r"(?P<model>[\w.-]+/[\w.-]+?)(@(?P<revision>[\w.-]+))?")
"""Name of a model on the hub on a command line: ORGANISATION/MODEL, or ORGANISATION/MODEL@REVISION."""


def parse_location(kind: str, location: str, name: str, variants: Iterable[str]) -> tuple[str, str | None]:
    """Return the model and the revision that a `location`, a part of the `name` on a command line, means: the absolute
    path of a folder and None, or the id of a model on the hub and its revision, if it has one.

    Raises UserError, which begins with the `kind` of encoder, if it is neither, or if the folder holds no model of
    transformers. `variants` are the other names that are possible.
    """
    folder = Path(location).expanduser()
    if folder.is_dir() and location:
        model_files.require_model_folder(folder)
        return str(folder.resolve()), None
    if location.startswith(("/", ".", "~")):
        problem = "isn't a folder" if folder.exists() else "doesn't exist"
        raise UserError(f"{kind} encoder huggingface:{location}: {folder} {problem}: give the folder of a model")
    if match := HUB_NAME.fullmatch(location):
        return match["model"], match["revision"]
    known = [f"huggingface:{variant}" for variant in variants]
    raise unknown_name_error(
        f"{kind} encoder", f"huggingface:{name}", [*known, "huggingface:FOLDER", "huggingface:ORGANISATION/MODEL"]
    )


def format_location(model: str, revision: str | None, variants: Iterable[str]) -> str:
    """Return the name to show for a model: its folder's name, or its id on the hub with the revision, if it has one. A
    folder that is called like one of the `variants` is shown with the folder that it is in.
    """
    path = Path(model)
    is_folder = path.is_absolute() or path.is_dir()
    name = path.name if is_folder else model
    if is_folder and name in variants:
        name = f"{path.resolve().parent.name}/{name}"
    return f"{name}@{revision}" if revision else name


@functools.cache
def look_up_commit(kind: str, model: str) -> str:
    """Return the id of the newest commit of a model on the Hugging Face hub; it is looked up once per process.

    Raises UserError, which begins with the `kind` of encoder, if the hub can't be reached or has no such model.
    """
    from huggingface_hub import HfApi

    try:
        return str(HfApi().model_info(model).sha)
    except Exception as error:  # the types of errors depend on the HTTP client of the installed huggingface_hub
        raise UserError(
            f"{kind} encoder {model!r} is neither a directory nor found on the hub ({type(error).__name__}): "
            f"check its name, or set `revision` to a commit that is in the local cache"
        ) from error


def locate_model(model: str, weights: Path | None, input_files: str) -> str:
    """Return where transformers finds a model: the path of a local directory, or the model's id on the hub. A model of
    the hub must be in the directory `weights` if that is given. Raises UserError if it isn't; `input_files` says which
    files it needs there besides its weights and configuration.
    """
    if weights is None or Path(model).is_dir():
        return model
    folders = [weights / model, weights / Path(model).name]
    existing = next((folder for folder in folders if folder.is_dir()), None)
    if existing is None:
        raise UserError(
            f"{weights} holds no directory {model!r}: put the model's files there, named as on the hub "
            f"(config.json, model.safetensors and {input_files})"
        )
    return str(existing)


def choose_revision(kind: str, location: str, revision: str | None) -> str | None:
    """Return the commit of the hub from which the model at `location` is loaded: None for a directory, `revision` if it
    is given, otherwise the newest. Raises UserError as `look_up_commit` does.
    """
    return None if Path(location).is_dir() else revision or look_up_commit(kind, location)

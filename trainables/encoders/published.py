"""Published checkpoints: find or download them, read them without running code, and refuse other models' weights."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import numpy as np

from data.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

MAX_NAMES_IN_ERRORS = 3
"""Maximum number of weights that an error lists of each kind of difference."""

SAFE_NUMPY_TYPES: list[Any] = [
    np.ndarray,
    np.dtype,
    *(type(np.dtype(code)) for code in "?bhilBHILefd"),  # numbers only: arrays of Python objects are refused
    *(
        (value.__reduce__()[0], f"{module}.multiarray.{name}")
        for module in ("numpy._core", "numpy.core")  # names since NumPy 2, and before
        for name, value in (("_reconstruct", np.zeros(1)), ("scalar", np.float64()))
    ),
]
"""NumPy types that torch may unpickle: some checkpoints, such as PANNs', contain NumPy scalars beside the weights."""


def locate_checkpoint(url: str, weights: Path | None) -> Path:
    """Return the local path of the published checkpoint at `url`: in the directory `weights` if that is given,
    otherwise in torch hub's cache, to which it is downloaded if missing.

    Raises UserError if the file isn't in `weights`, or can't be downloaded.
    """
    name = unquote(PurePosixPath(urlsplit(url).path).name)
    if weights is not None:
        if not (weights / name).is_file():
            raise UserError(f"{weights} holds no file {name!r}: download it from {url} into that directory")
        return weights / name
    import torch

    path = Path(torch.hub.get_dir(), "checkpoints", name)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), progress=False)
        except OSError as error:
            raise UserError(
                f"{url} can't be downloaded ({error}): download it on another machine, and give its "
                "folder with --weights"
            ) from error
    return path


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal. It is computed once per process, and again if the file's size or
    modification time has changed.
    """
    status = path.stat()
    return hash_file_version(path, status.st_size, status.st_mtime_ns)


@functools.cache
def hash_file_version(path: Path, num_bytes: int, modified_ns: int) -> str:
    """Return the SHA-256 of a file in hexadecimal, from a cache if it was computed for the same size (`num_bytes`) and
    modification time (`modified_ns`).
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the dict in a torch file, which is read without running code. Raises UserError for any other content."""
    import torch

    try:
        with torch.serialization.safe_globals(SAFE_NUMPY_TYPES):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what torch raises for a damaged file depends on where in its unpickler it ends
        raise UserError(f"{path} is truncated or not a checkpoint ({error}): download it again") from error
    return dict(content) if isinstance(content, dict) else {}


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the weights in a torch file, by name. The file must hold a state dict, or a dict that has one under the
    key 'model'. Raises UserError for any other content.
    """
    import torch

    content = read_checkpoint(path)
    state = content["model"] if isinstance(content.get("model"), dict) else content
    if not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{path} holds no weights: it must be a dict of tensors by name")
    return dict(state)


def load_checkpoint(network: nn.Module, path: Path, unused: Collection[str] = ()) -> None:
    """Load the weights in the published checkpoint at `path` into a network, in place. Weights of the file whose names
    are in `unused` are ignored.

    Raises UserError, which lists the differences, if names or shapes of the file's weights differ from the network's,
    or if a weight isn't finite.
    """
    weights = {name: tensor for name, tensor in read_state_dict(path).items() if name not in unused}
    load_weights(network, weights, path)


def load_weights(network: nn.Module, weights: Mapping[str, Tensor], source: Path | str) -> None:
    """Load weights by name into a network, in place. Raises UserError, which begins with `source`, if names or shapes
    differ from the network's, or if a weight isn't finite.
    """
    expected = network.state_dict()
    require_matching_weights(
        source,
        missing=[name for name in expected if name not in weights],
        unexpected=[name for name in weights if name not in expected],
        misshapen=[
            f"{name} {list(weights[name].shape)} instead of {list(tensor.shape)}"
            for name, tensor in expected.items()
            if name in weights and weights[name].shape != tensor.shape
        ],
    )
    network.load_state_dict(weights)
    require_finite_weights(network, source)


def require_finite_weights(network: nn.Module, source: Path | str) -> None:
    """Raise UserError, which begins with `source` and lists the first names, if weights of a network contain NaN or
    infinity.
    """
    names = [
        name
        for name, tensor in network.state_dict().items()
        if tensor.is_floating_point() and not bool(tensor.isfinite().all())
    ]
    if names:
        raise UserError(
            f"{source} has weights that aren't finite, {len(names)} tensors with NaN or infinity "
            f"({format_names(names)}): its training has diverged or the file is damaged; use another checkpoint"
        )


def require_matching_weights(
    source: Path | str, missing: Collection[str], unexpected: Collection[str], misshapen: Collection[str]
) -> None:
    """Raise UserError, which begins with `source`, if a checkpoint's weights don't match a network. `missing` has the
    names of weights that only the network has, `unexpected` of those that only the checkpoint has, and `misshapen` of
    those whose shapes differ; all three are empty if they match.
    """
    kinds = {"names are missing": missing, "names are unexpected": unexpected, "shapes differ": misshapen}
    differences = [f"{len(names)} {kind} ({format_names(names)})" for kind, names in kinds.items() if names]
    if differences:
        raise UserError(f"{source} isn't a checkpoint of this model: {'; '.join(differences)}")


def format_names(names: Iterable[str]) -> str:
    """Return the first MAX_NAMES_IN_ERRORS names, separated by commas, and '...' if there are more."""
    names = list(names)
    return ", ".join([*names[:MAX_NAMES_IN_ERRORS], *(["..."] if len(names) > MAX_NAMES_IN_ERRORS else [])])

"""Reading of models in the format of transformers, without ever running code that comes with a model.

All of the project reads such models by these functions. Left to itself, transformers asks on standard input whether to
run the Python files that an `auto_map` in a model's JSON files names.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.errors import UserError

OWN_CODE = "trust_remote_code"
"""Name of transformers' option, which its errors about a model with code of its own mention."""


@contextlib.contextmanager
def refuse_own_code(location: Path | str) -> Iterator[dict[str, bool]]:
    """Yield the keyword arguments that make transformers refuse code of a model's own, and re-raise its error as
    UserError.
    """
    try:
        yield {OWN_CODE: False}
    except (ValueError, ImportError) as error:
        if OWN_CODE not in str(error):
            raise
        raise UserError(
            f"{location} needs Python code that comes with the model (auto_map in its JSON files), and such code is "
            "never run: use a model whose architecture transformers itself has"
        ) from error


def load_shape(location: Path | str, **options: Any) -> Any:
    """Return transformers' config of the model in a folder or on the hub. Raises UserError if it needs code of its
    own.
    """
    from transformers import AutoConfig

    with refuse_own_code(location) as trust:
        return AutoConfig.from_pretrained(location, **trust, **options)


def load_tokenizer(location: Path | str, **options: Any) -> Any:
    """Return the tokenizer in a folder or on the hub. Raises UserError if it needs code of its own."""
    from transformers import AutoTokenizer

    with refuse_own_code(location) as trust:
        return AutoTokenizer.from_pretrained(location, **trust, **options)


def load_body(location: Path | str, **options: Any) -> Any:
    """Return the model in a folder or on the hub, with its weights. Raises UserError if it needs code of its own."""
    from transformers import AutoModel

    with refuse_own_code(location) as trust:
        return AutoModel.from_pretrained(location, **trust, **options)


def build_body(shape: Any, location: Path | str, **options: Any) -> Any:
    """Return the model of a config that was read at `location`, with random weights. Raises UserError if it needs code
    of its own.
    """
    from transformers import AutoModel

    with refuse_own_code(location) as trust:
        return AutoModel.from_config(shape, **trust, **options)

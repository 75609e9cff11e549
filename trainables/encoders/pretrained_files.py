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
    """Yield the keyword argument with which transformers refuses to run Python code that comes with a model. In the
    `with` block, that refusal is raised as UserError, which names `location`, the model's folder or id.
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
    """Return transformers' config of the model in a folder, in a JSON file or on the hub; `options` are passed to
    transformers. Raises UserError if the model needs Python code that comes with it.
    """
    from transformers import AutoConfig

    with refuse_own_code(location) as trust:
        return AutoConfig.from_pretrained(location, **trust, **options)


def load_tokenizer(location: Path | str, **options: Any) -> Any:
    """Return the tokenizer in a folder or on the hub; `options` are passed to transformers. Raises UserError if it
    needs Python code that comes with the model.
    """
    from transformers import AutoTokenizer

    with refuse_own_code(location) as trust:
        return AutoTokenizer.from_pretrained(location, **trust, **options)


def load_extractor(location: Path | str, **options: Any) -> Any:
    """Return the feature extractor of an audio model in a folder, in a JSON file or on the hub; `options` are passed to
    transformers. Raises UserError if it needs Python code that comes with the model.
    """
    from transformers import AutoFeatureExtractor

    with refuse_own_code(location) as trust:
        return AutoFeatureExtractor.from_pretrained(location, **trust, **options)


def load_body(location: Path | str, **options: Any) -> Any:
    """Return the model in a folder or on the hub, with its weights; `options` are passed to transformers. Raises
    UserError if the model needs Python code that comes with it.
    """
    from transformers import AutoModel

    with refuse_own_code(location) as trust, hide_progress(Path(location).is_dir()):
        return AutoModel.from_pretrained(location, **trust, **options)


@contextlib.contextmanager
def hide_progress(is_hidden: bool) -> Iterator[None]:
    """Show no progress bars of transformers in the `with` block if `is_hidden`: reading a folder takes seconds, while a
    download may take minutes.
    """
    from transformers.utils import logging

    was_enabled = logging.is_progress_bar_enabled()
    if is_hidden:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if is_hidden and was_enabled:
            logging.enable_progress_bar()


def build_body(shape: Any, location: Path | str, **options: Any) -> Any:
    """Return a model with random weights for a transformers config, `shape`, that was read at `location`; `options` are
    passed to transformers. Raises UserError if the model needs Python code that comes with it.
    """
    from transformers import AutoModel

    with refuse_own_code(location) as trust:
        return AutoModel.from_config(shape, **trust, **options)

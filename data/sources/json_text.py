"""Parse JSON from untrusted files and servers."""

import gc
import json
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text. Raises ValueError if it isn't JSON, or is nested too deeply to be parsed.

    The garbage collector is disabled meanwhile: with most of the stack in use, finalizers of other objects would fail.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("lists or objects are nested too deeply") from error
    finally:
        if was_enabled:
            gc.enable()

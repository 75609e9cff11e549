"""JSON from files and servers that nobody has checked."""

import gc
import json
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text. Raises ValueError for anything else, and for lists nested too deep to be read.

    The garbage collector is off meanwhile: with most of the stack in use, the finalizers of other objects would fail.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("lists or objects within one another, too deep to be read") from error
    finally:
        if was_enabled:
            gc.enable()

"""Reading of YAML that may be a stranger's: bounded in size, whatever its aliases stand for."""

import math
from typing import Any

import yaml

MAX_BYTES = 256 * 1024
"""Maximum size of a file. A description of a system takes some kB."""

MAX_EXPANDED = 4 * MAX_BYTES
"""Maximum number of characters and entries of a value in which each alias is written out."""

MAX_BITS = 1024
"""Maximum size of an integer; Python refuses to write much larger ones as text."""


MAX_DEPTH = 100
"""Maximum number of brackets within brackets. PyYAML takes a second for some thousands, and then refuses them."""


class BoundedLoader(yaml.SafeLoader):
    """Loader of plain values. It refuses the merging of mappings (<<), which may take exponential time."""

    def fetch_flow_collection_start(self, token: type[yaml.Token]) -> None:
        if self.flow_level == MAX_DEPTH:
            raise RecursionError
        super().fetch_flow_collection_start(token)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    None, None, "merging (<<) isn't supported: write the fields out", key.start_mark
                )
        super().flatten_mapping(node)


def parse_yaml(data: bytes) -> Any:
    """Return the value in a YAML file in UTF-8. Raises ValueError, with the reason, if it isn't one, or too large."""
    if len(data) > MAX_BYTES:
        raise ValueError(f"it has {len(data):,} bytes: at most {MAX_BYTES:,} are read")
    try:
        value = yaml.load(data.decode("utf-8"), BoundedLoader)  # a SafeLoader
    except RecursionError as error:
        raise ValueError("lists or fields are nested too deeply") from error
    except Exception as error:  # beside YAMLError, the types of PyYAML's errors for dates and numbers vary
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error
    require_bounded(value)
    return value


def require_bounded(value: Any) -> None:
    """Raise ValueError if a value would take too much space when it is written out, for example in a message. That is
    so if YAML's aliases repeat other aliases or the list that they are in, or if a number is very long.
    """
    size, todo = 0, [value]
    while todo:
        part = todo.pop()
        size += len(part) if isinstance(part, str | bytes) else 1
        if isinstance(part, int) and part.bit_length() > MAX_BITS:
            raise ValueError(f"a number has {math.ceil(part.bit_length() * math.log10(2)):,} digits")
        if isinstance(part, dict):
            todo += [*part.keys(), *part.values()]
        elif isinstance(part, list | tuple | set):
            todo += part
        if size + len(todo) > MAX_EXPANDED:
            raise ValueError("its aliases stand for too much text: write the values out")

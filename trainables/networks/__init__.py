"""Networks of the encoders, as torch modules. They are imported only where a network is built.

The network of `encoders/audio/passt.py` is in `networks/audio/passt.py`, and so on; each module has `build` and
`restore`, as `trainables.encoders.audio` and `trainables.encoders.text` describe them.
"""

import importlib
from types import ModuleType
from typing import Any


def load_network_module(config: Any) -> ModuleType:
    """Return the module that builds the network of an encoder's Config."""
    return importlib.import_module(type(config).__module__.replace("trainables.encoders.", "trainables.networks."))

"""Networks of the encoders, as torch modules. They are imported only to build a network, since torch imports slowly.

Each family has a module of the same name: the network of `encoders/audio/passt.py` is in `networks/audio/passt.py`. The
modules have functions `build` and `restore`, which `trainables.encoders.audio` and `trainables.encoders.text` describe.
"""

import importlib
from types import ModuleType
from typing import Any


def load_network_module(config: Any) -> ModuleType:
    """Return the module that builds the network of an encoder's Config."""
    return importlib.import_module(type(config).__module__.replace("trainables.encoders.", "trainables.networks."))

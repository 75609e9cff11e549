"""One module a corpus. A corpus is named by its file's stem: `clotho.py` is `clotho`.

Each module has `ROLES`, which says the names of the splits to train, validate and test on, and
`read(source: Path | None, seed: int) -> list[Split]`, which describes the corpus as published without decoding audio
and raises UserError where its tables are wrong.
"""

import importlib
import pkgutil
from pathlib import Path
from typing import Protocol, cast

from data.errors import unknown_name
from data.schema import Split


class Corpus(Protocol):
    """What a corpus module offers."""

    ROLES: dict[str, str]

    def read(self, source: Path | None, seed: int) -> list[Split]:
        """The splits found under `source`; `seed` serves whatever the corpus draws."""


def names() -> list[str]:
    """The corpora there are."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def load(name: str) -> Corpus:
    """A corpus by name; an unknown one's error lists the known ones."""
    if name not in names():
        raise unknown_name("corpus", name, names())
    return cast(Corpus, importlib.import_module(f"{__name__}.{name}"))

"""One module a corpus. A corpus is named by its file's stem: `clotho.py` is `clotho`.

Each module says what its splits are for, how many clips are published, and how its audio is best kept; its `read`
describes the corpus as published without decoding audio.
"""

import importlib
import pkgutil
from pathlib import Path
from typing import Protocol, cast

from data.errors import unknown_name
from data.schema import Split
from data.waveform import Codec


class Corpus(Protocol):
    """What a corpus module offers."""

    ROLES: dict[str, str]  # 'train', 'validation' and 'test' -> split; empty for a corpus to pretrain on only
    PRETRAINING: tuple[str, ...]  # splits that the paper pretrains on; of your own: those to train on
    HELD_OUT: tuple[str, ...]  # splits whose recordings must not be heard in other corpora's clips
    PUBLISHED: dict[str, dict[str, int]]  # version -> split -> number of clips
    CODEC: Codec  # how audio is kept unless you say otherwise

    def read(self, source: Path | None, seed: int) -> list[Split]:
        """The splits found under `source`; `seed` serves whatever the corpus draws.

        Raises UserError where the tables are wrong, or no clip is there at all. Clips without a file are set aside.
        """

    def download(self, target: Path) -> None:
        """Fetch what is public, as published, into `target`, which `read` takes as its source from then on.

        What is there already is kept, a torn download goes on, and checksums are verified. Raises UserError where
        nothing can be fetched, and says how to come by the audio.
        """


def names() -> list[str]:
    """The corpora there are."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def load(name: str) -> Corpus:
    """A corpus by name; an unknown one's error lists the known ones."""
    if name not in names():
        raise unknown_name("corpus", name, names())
    return cast(Corpus, importlib.import_module(f"{__name__}.{name}"))

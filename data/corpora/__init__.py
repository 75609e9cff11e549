"""Corpora, one module each; the name of a corpus is the file's stem: `clotho.py` is `clotho`.

Each module defines the roles of its splits, the published numbers of clips and the audio format to store; its `read`
describes the corpus as published without decoding audio.
"""

import importlib
import pkgutil
from pathlib import Path
from typing import Protocol, cast

from data.errors import unknown_name_error
from data.schema import Split
from data.waveform import Codec


class Corpus(Protocol):
    """Interface that every corpus module implements, by constants and functions at module level."""

    ROLES: dict[str, str]  # 'train', 'validation' and 'test' -> split; empty if only for pretraining
    PRETRAINING: tuple[str, ...]  # splits that the paper pretrains on; of a user's own corpus: the training split
    HELD_OUT: tuple[str, ...]  # splits whose recordings must not occur in training clips of other corpora
    PUBLISHED: dict[str, dict[str, int]]  # version -> split -> number of clips
    CODEC: Codec  # default format of the stored audio

    def read(self, source: Path | None, seed: int) -> list[Split]:
        """Read the tables of a corpus in the folder `source`, and return the splits found there, without decoding
        audio. `seed` determines whatever is random in the corpus, such as a division into splits. `source` is None for
        a corpus that is generated instead of read.

        Clips without a file are skipped. Raises UserError if the tables are invalid or no clip has a file.
        """

    def download(self, target: Path) -> None:
        """Download the public files, as published, into `target`, which `read` then takes as its source.

        Existing files are kept, interrupted downloads are resumed, and checksums are verified. Raises UserError if
        nothing can be downloaded, with instructions to obtain the audio.
        """


def list_names() -> list[str]:
    """Return the names of all corpora."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def load(name: str) -> Corpus:
    """Return the module of a corpus by name. Raises UserError, listing the known names, if there is none."""
    if name not in list_names():
        raise unknown_name_error("corpus", name, list_names())
    return cast(Corpus, importlib.import_module(f"{__name__}.{name}"))

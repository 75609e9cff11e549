"""List the audio files in a folder, and the files that can't be used."""

import logging
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from data.decoding.formats import AUDIO_SUFFIXES, CONVERTIBLE_SUFFIXES, HOW_TO_CONVERT
from data.errors import UserError
from data.sources.recordings import find_encoding_problem, iter_files

logger = logging.getLogger("chorale.files")


@dataclass(frozen=True)
class AudioListing:
    """Files in a folder and its subfolders: usable audio files, audio files that can't be used with the reasons, and
    files that aren't audio.
    """

    paths: list[Path]  # sorted
    skipped: dict[Path, str]  # the reason by path
    others: list[Path]

    def log_unusable(self, folder: Path) -> None:
        """Log a warning for each audio file that can't be used, with instructions for converting it, and the number of
        files that aren't audio. `folder` is named in the messages.
        """
        for path, reason in self.skipped.items():
            logger.warning("skipped: %s: %s", path, reason)
        suffixes = Counter(path.suffix.lower() for path in self.skipped if path.suffix.lower() in CONVERTIBLE_SUFFIXES)
        if suffixes:
            counts = ", ".join(f"{count:,} {suffix}" for suffix, count in sorted(suffixes.items()))
            logger.warning("%s: audio files in formats that aren't decoded: %s; %s", folder, counts, HOW_TO_CONVERT)
        if self.others:
            plural = "file isn't" if len(self.others) == 1 else "files aren't"
            logger.info("%s: %s other %s audio", folder, f"{len(self.others):,}", plural)


@dataclass
class FileProblems:
    """Problems found while audio files are decoded: why files were skipped, and how others were changed."""

    skipped: dict[Path, str] = field(default_factory=dict)
    warnings: dict[Path, list[str]] = field(default_factory=dict)

    def log(self, logger: logging.Logger) -> None:
        """Log each problem."""
        for path, reason in self.skipped.items():
            logger.warning("skipped: %s: %s", path, reason)
        for path, warnings in self.warnings.items():
            for warning in warnings:
                logger.warning("warning: %s: %s", path, warning)


def list_files(folder: Path) -> AudioListing:
    """List the files in a folder and its subfolders, divided into usable audio files, unusable ones and others, by
    their suffixes. Raises UserError if the folder can't be read.
    """
    paths, skipped, others = [], dict[Path, str](), []
    for path in iter_files(folder):
        suffix = path.suffix.lower()
        if suffix in CONVERTIBLE_SUFFIXES:
            skipped[path] = f"{suffix} isn't decoded here"
        elif suffix not in AUDIO_SUFFIXES:
            others.append(path)
        elif problem := find_encoding_problem(path):
            skipped[path] = problem
        else:
            paths.append(path)
    return AudioListing(sorted(paths), skipped, others)


def list_audio_files(folder: Path) -> AudioListing:
    """List the files in a folder and its subfolders, divided into usable audio files, unusable ones and others. Raises
    UserError if the folder doesn't exist or has no usable audio file.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} isn't a folder")
    listing = list_files(folder)
    if not listing.paths:
        listing.log_unusable(folder)
        raise UserError(f"{folder} holds no audio file (supported suffixes: {', '.join(sorted(AUDIO_SUFFIXES))})")
    return listing

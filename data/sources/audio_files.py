"""List the audio files in a folder."""

from pathlib import Path

import soundfile

from data.errors import UserError
from data.sources.recordings import iter_files

AUDIO_SUFFIXES = {f".{name.lower()}" for name in soundfile.available_formats()} | {".aif", ".oga", ".opus", ".wave"}
"""Suffixes of audio files; other files are ignored."""


def list_audio_files(folder: Path) -> list[Path]:
    """Return the audio files in a folder and its subfolders, sorted by path. Raises UserError if there are none."""
    if not folder.is_dir():
        raise UserError(f"{folder} isn't a folder")
    paths = sorted(path for path in iter_files(folder) if path.suffix.lower() in AUDIO_SUFFIXES)
    if not paths:
        raise UserError(f"{folder} holds no audio file (supported suffixes: {', '.join(sorted(AUDIO_SUFFIXES))})")
    return paths

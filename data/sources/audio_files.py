"""List the audio files in a folder."""

from pathlib import Path

import soundfile

from data.errors import UserError
from data.sources.recordings import files_below

AUDIO = {f".{name.lower()}" for name in soundfile.available_formats()} | {".aif", ".oga", ".opus", ".wave"}
"""Suffixes of audio files; other files are ignored."""


def audio_files(folder: Path) -> list[Path]:
    """Return the audio files in a folder and its subfolders, sorted by path. Raises UserError if there are none."""
    if not folder.is_dir():
        raise UserError(f"{folder} isn't a folder")
    found = sorted(path for path in files_below(folder) if path.suffix.lower() in AUDIO)
    if not found:
        raise UserError(f"{folder} holds no audio file (supported suffixes: {', '.join(sorted(AUDIO))})")
    return found

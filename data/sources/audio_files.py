"""Which files of a folder are audio."""

from pathlib import Path

import soundfile

from data.errors import UserError
from data.sources.recordings import files_below

AUDIO = {f".{name.lower()}" for name in soundfile.available_formats()} | {".aif", ".oga", ".opus", ".wave"}
"""What audio files' names end in; others aren't looked at."""


def audio_files(folder: Path) -> list[Path]:
    """The audio files in a folder and below it, in the order of their names. Raises UserError where there is none."""
    if not folder.is_dir():
        raise UserError(f"{folder} isn't a folder")
    found = sorted(path for path in files_below(folder) if path.suffix.lower() in AUDIO)
    if not found:
        raise UserError(f"{folder} holds no audio file (looked for: {', '.join(sorted(AUDIO))})")
    return found

"""Formats of audio files: suffixes that count as audio, and names of the formats that can't be decoded here."""

import soundfile

AUDIO_SUFFIXES = {f".{name.lower()}" for name in soundfile.available_formats()} - {".raw"} | {
    ".8svx", ".aif", ".aifc", ".bwf", ".iff", ".mp2", ".oga", ".opus", ".snd", ".sph", ".wave",
}  # fmt: skip
"""Suffixes of audio files that libsndfile reads. Headerless files (.raw) are left out: their sample rate is unknown."""

CONVERTIBLE_SUFFIXES = {
    ".3gp", ".aa3", ".aac", ".ac3", ".adts", ".amr", ".ape", ".avi", ".dff", ".dsf", ".dts", ".m4a", ".m4b", ".m4v",
    ".mka", ".mkv", ".mov", ".mp4", ".mpc", ".oma", ".ra", ".rm", ".spx", ".tta", ".webm", ".wma", ".wmv", ".wv",
}  # fmt: skip
"""Suffixes of files with audio that libsndfile doesn't read."""

HOW_TO_CONVERT = "convert it, for instance with: ffmpeg -i FILE -vn FILE.flac"

SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (4, b"ftyp", "MPEG-4 (m4a, mp4)"),
    (0, b"\x1aE\xdf\xa3", "Matroska (webm, mka)"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "Windows Media (wma)"),
    (0, b"#!AMR", "AMR"),
    (0, b"MAC ", "Monkey's Audio (ape)"),
    (0, b"wvpk", "WavPack (wv)"),
    (0, b"DSD ", "DSD (dsf)"),
    (0, b"FRM8", "DSD (dff)"),
    (0, b"MPCK", "Musepack (mpc)"),
    (0, b"MP+", "Musepack (mpc)"),
    (0, b"TTA1", "True Audio (tta)"),
    (0, b".RMF", "RealMedia (rm)"),
    (0, b"\x0b\x77", "AC-3"),
    (0, b"\xff\xf1", "AAC"),
    (0, b"\xff\xf9", "AAC"),
)
"""First bytes of formats with audio that libsndfile doesn't read: position, bytes, and name of the format."""

OTHER_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"<!doctype", "a web page: download the file again"),
    (b"<html", "a web page: download the file again"),
    (b"version https://git-lfs", "a pointer of Git LFS: fetch the file itself with `git lfs pull`"),
    (b"pk\x03\x04", "a zip archive: extract it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: extract it"),
)
"""First bytes, in lower case, of files that aren't audio, with the reason and the remedy."""


def explain_format(head: bytes) -> str:
    """Return why a file with these first bytes can't be decoded, and the remedy; '' if its format isn't recognised."""
    for position, signature, name in SIGNATURES:
        if head[position:].startswith(signature):
            return f"is {name} audio, which isn't decoded here: {HOW_TO_CONVERT}"
    for signature, reason in OTHER_SIGNATURES:
        if head.lstrip().lower().startswith(signature):
            return f"is {reason}"
    return ""

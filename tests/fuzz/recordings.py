"""Recordings in every container and coding that libsndfile reads here."""

import re
import resource
import zipfile
from functools import partial

import numpy as np
import soundfile
from kinds import Kind
from mutations import mutate, mutate_recording

from data.decoding.audio import decode_file
from data.errors import UserError
from data.schema import SAMPLE_RATE_HZ
from data.sources.archives import decode_member, list_members
from data.waveform import AudioError

FORMATS = {
    "pcm16.wav": ("WAV", "PCM_16", 1),
    "pcm24.wav": ("WAVEX", "PCM_24", 2),
    "float.wav": ("WAV", "FLOAT", 1),
    "adpcm.wav": ("WAV", "MS_ADPCM", 1),
    "mono.flac": ("FLAC", "PCM_16", 1),
    "stereo.flac": ("FLAC", "PCM_24", 2),
    "vorbis.ogg": ("OGG", "VORBIS", 2),
    "opus.ogg": ("OGG", "OPUS", 1),
    "sound.mp3": ("MP3", "MPEG_LAYER_III", 1),
    "pcm16.aiff": ("AIFF", "PCM_16", 1),
    "float.aifc": ("AIFF", "FLOAT", 2),
    "sound.au": ("AU", "PCM_16", 1),
    "sound.caf": ("CAF", "ALAC_16", 1),
    "sound.w64": ("W64", "PCM_16", 1),
    "sound.rf64": ("RF64", "PCM_16", 1),
}
HEADER_BYTES = 48


def build(root):
    """Write a tenth of a second in each format, and an archive of two recordings."""
    write_recordings(root)
    for path in root.iterdir():
        decode_all(path)
    most = 2 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        path.name: Kind(
            path, partial(read_recording, path, most), mutate_recording if path.suffix != ".zip" else mutate
        )
        for path in sorted(root.iterdir())
    }


def write_recordings(folder):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (3_200, 2))
    for name, (kind, subtype, channels) in FORMATS.items():
        rate_hz = {"OPUS": 48_000, "MPEG_LAYER_III": 44_100}.get(subtype, SAMPLE_RATE_HZ)
        soundfile.write(folder / name, noise[:, :channels], rate_hz, format=kind, subtype=subtype)
    with zipfile.ZipFile(folder / "archive.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("mono.flac", "float.wav"):
            archive.write(folder / name, name)


def read_recording(path, most, out):
    """Decode a recording in no more than `most` kB of memory. A preparation lists one that is refused as skipped, with
    the reason, which mustn't differ from process to process.
    """
    try:
        decode_all(path)
    except (AudioError, UserError) as error:
        assert not re.search("0x[0-9a-f]{6}", str(error)), error
        raise UserError(str(error)) from error
    finally:
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss <= most


def decode_all(path):
    """Decode a recording, or each of an archive's."""
    for blocks in [decode_file(path)] if path.suffix != ".zip" else map(decode_member, list_members(path)):
        for block in blocks:
            assert block.dtype == np.float32
            assert block.ndim == 1
            assert np.isfinite(block).all()

"""What a random 30-s window costs: from a store, and decoded from the published file each time.

python tests/benchmarks/reading.py [--source DIR]     # WAV files of your own, of over 30 s, in place of synthetic ones
"""

import argparse
import mmap
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import librosa
import numpy as np
import soundfile
import soxr
import torch
from measure import PUBLISHED_RATE_HZ, cpu_s, machine, say, told, write_recordings

from data.decoding.audio import decode_file
from data.loading.loader import load_epoch
from data.loading.pairs import ClipCaptionDataset
from data.loading.sampler import order_epoch
from data.schema import SAMPLE_RATE_HZ, SourceClip, Split
from data.store import shard_writer, split_writer, stored_split
from data.store.stored_split import StoredSplit
from data.waveform import CODECS, Codec

WINDOW_S = 30.0
CAPTIONS = tuple(f"A dog barks {number} times while rain falls on a roof." for number in range(50))
"""Of each clip: an epoch of 800 pairs."""
NUM_WINDOWS = 200
PASST_N_TFLOP_PER_SEGMENT = 3 * 2 * 86e6 * 282 / 1e12
"""Forward and backward over the 282 tokens kept of 10 s (the paper's patchout), 86 M weights, without attention."""
BERT_BASE_TFLOP_PER_CAPTION = 3 * 2 * 86e6 * 32 / 1e12
GPU_TFLOPS = {"A100": 312.0, "H100": 989.0}
"""Dense bfloat16, by NVIDIA's data sheets."""
UTILISATION = 0.4
"""Assumed, and generous: a slower GPU needs fewer loader cores."""
MEAN_WINDOW_S = 18.0
"""Of the paper's mix: assumed from WavCaps' table (27 % are AudioSet's 10 s; BBC's mostly exceed 30 s), AudioCaps' 10 s
and Clotho's 22 s."""


def store_of(paths: list[Path], store: Path, codec: Codec) -> StoredSplit:
    """The recordings in a store."""
    clips = tuple(
        SourceClip(f"bench/train/{path.name}", partial(decode_file, path), CAPTIONS, str(path)) for path in paths
    )
    folder = store / "bench" / "train"
    folder.mkdir(parents=True)
    path = folder / shard_writer.build_shard_name(0, clips, codec)
    split_writer.write_split(
        folder, Split("bench", "train", clips), codec, [shard_writer.write_shard(path, "bench", "train", clips, codec)]
    )
    return stored_split.open_split(store, "bench/train")


BATCH_SIZE = 16
SKIPPED_BATCHES = 10


def epoch_s(pairs: ClipCaptionDataset, workers: int) -> float:
    """CPU seconds of an epoch, of this process and the loader's, without the first batches."""
    num_batches = -(-len(pairs) // BATCH_SIZE)

    def cost(first_batch: int) -> float:
        before = os.times()
        batches = order_epoch(pairs, 0, BATCH_SIZE)[first_batch:]
        for _ in load_epoch(pairs, 0, batches, loader_workers=workers):
            pass
        return sum(os.times()[:4]) - sum(before[:4])

    cost(num_batches - SKIPPED_BATCHES)
    return cost(0) - cost(num_batches - SKIPPED_BATCHES)


def main() -> None:
    """Measure and tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    say(machine())
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        given = sorted(arguments.source.glob("*.wav")) if arguments.source else write_recordings(work / "wav", 16, 45)
        paths = [path for path in given if soundfile.info(path).duration > WINDOW_S + 1]
        splits = {codec: store_of(paths, work / codec, codec) for codec in CODECS}
        windows(paths, splits)
        long_clips(work, paths)
        loader(splits)


def windows(paths: list[Path], splits: dict[Codec, StoredSplit]) -> None:
    """Audio seconds per CPU second of each way to read a window."""
    rng = np.random.default_rng(0)
    names = [clip_id.rpartition("/")[2] for clip_id in splits["pcm16"].clip_ids]
    by_name = {path.name: path for path in paths}
    drawn = [(clip, rng.random()) for clip in rng.integers(len(names), size=NUM_WINDOWS).tolist()]
    durations_s = [soundfile.info(by_name[name]).duration for name in names]
    out = np.empty(round(WINDOW_S * SAMPLE_RATE_HZ), np.float32)

    def start_s(item: int) -> tuple[int, float]:
        clip, draw = drawn[item]
        return clip, draw * (durations_s[clip] - WINDOW_S - 0.1)

    def from_wav(item: int) -> object:
        clip, start = start_s(item)
        with soundfile.SoundFile(by_name[names[clip]]) as file:
            file.seek(round(start * file.samplerate))
            samples = file.read(round(WINDOW_S * file.samplerate), dtype="float32", always_2d=True).mean(axis=1)
            return soxr.resample(samples, file.samplerate, SAMPLE_RATE_HZ)

    def from_librosa(item: int) -> object:
        clip, start = start_s(item)
        return librosa.load(by_name[names[clip]], sr=SAMPLE_RATE_HZ, offset=start, duration=WINDOW_S)

    def from_store(split: StoredSplit, item: int) -> object:
        clip, start = start_s(item)
        return split.decode_window(clip, round(start * SAMPLE_RATE_HZ), out)

    ways = {"WAV, soundfile + soxr": from_wav, "WAV, librosa.load": from_librosa} | {
        f"store, {codec}": partial(from_store, split) for codec, split in splits.items()
    }
    rates = {way: NUM_WINDOWS * WINDOW_S / cpu_s(function, NUM_WINDOWS) for way, function in ways.items()}
    say(f"\nRandom {WINDOW_S:.0f}-s windows, audio seconds per CPU second")
    for way, rate in rates.items():
        told(f"{way} ({1000 * WINDOW_S / rate:.2f} ms a window)", rate, "s/s")
    wav = rates["WAV, soundfile + soxr"]
    sizes = {codec: sum(split.index["num_bytes"].to_pylist()) for codec, split in splits.items()}
    wav_bytes = sum(path.stat().st_size for path in paths)
    told("pcm16 / WAV + soxr", rates["store, pcm16"] / wav, "times", least=20)
    told("pcm16 / librosa.load", rates["store, pcm16"] / rates["WAV, librosa.load"], "times", least=20)
    told("flac / WAV + soxr", rates["store, flac"] / wav, "times", least=1)
    told("bytes, flac / pcm16", sizes["flac"] / sizes["pcm16"], "")
    told("bytes, flac / published WAV", sizes["flac"] / wav_bytes, "", most=2 / 3)


def long_clips(work: Path, paths: list[Path]) -> None:
    """A window of a one-hour clip against one of a clip that is no longer than the window."""
    one = [soundfile.read(path, dtype="int16")[0] for path in paths]
    hour = np.concatenate([one[item % len(one)] for item in range(3600 * PUBLISHED_RATE_HZ // len(one[0]) + 1)])
    (work / "long").mkdir()
    (work / "short").mkdir()
    soundfile.write(work / "long" / "hour.wav", hour[: 3600 * PUBLISHED_RATE_HZ], PUBLISHED_RATE_HZ)
    for item, samples in enumerate(one):
        soundfile.write(
            work / "short" / f"{item}.wav", samples[: round(WINDOW_S * PUBLISHED_RATE_HZ)], PUBLISHED_RATE_HZ
        )
    say("\nA window of a one-hour clip / of a 30-s clip, CPU time")
    out = np.empty(round(WINDOW_S * SAMPLE_RATE_HZ), np.float32)
    starts = np.random.default_rng(1).integers(3600 * SAMPLE_RATE_HZ - len(out), size=NUM_WINDOWS).tolist()
    for codec in CODECS:
        long = store_of([work / "long" / "hour.wav"], work / f"long-{codec}", codec)
        short = store_of(sorted((work / "short").glob("*.wav")), work / f"short-{codec}", codec)
        cost = cpu_s(lambda item, split=long: split.decode_window(0, starts[item], out), NUM_WINDOWS)
        least = cpu_s(lambda item, split=short: split.decode_window(item % len(one), 0, out), NUM_WINDOWS)
        told(codec, cost / least, "times", most=2)


def cpu_elsewhere_s(function: Callable[[int], object], number: int) -> float:
    """CPU seconds of another process for the same: one that has to map what it reads and writes, as a loader's has."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(cpu_s(function, number)))
    process.start()
    taken_s: float = receiver.recv()
    process.join()
    return taken_s


def loader(splits: dict[Codec, StoredSplit]) -> None:
    """What batches cost beyond decoding, and how many cores a GPU needs to be fed."""
    say("\nThe loader / bare decoding of random windows into a batch's memory, CPU time once that memory is at hand")
    shape = (BATCH_SIZE, round(WINDOW_S * SAMPLE_RATE_HZ))
    room = np.frombuffer(mmap.mmap(-1, 4 * shape[0] * shape[1]), np.float32).reshape(shape)
    room[:] = 1
    per_clip_s = {}
    for codec, split in splits.items():
        starts = np.random.default_rng(2).random(NUM_WINDOWS) * (split.num_samples.min() - room.shape[1])

        def decode(item: int, split: StoredSplit = split, starts: np.ndarray = starts) -> None:
            split.decode_window(item % len(split.index), int(starts[item]), room[item % BATCH_SIZE])

        bare_s = (cpu_s(decode, NUM_WINDOWS) / NUM_WINDOWS, cpu_elsewhere_s(decode, NUM_WINDOWS) / NUM_WINDOWS)
        pairs = ClipCaptionDataset([split], 10.0, WINDOW_S, 0.0, 0)
        for workers in (0, 1):
            per_clip_s[codec] = epoch_s(pairs, workers) / (len(pairs) - SKIPPED_BATCHES * BATCH_SIZE)
            named = f"{codec}, {workers or 'no'} process ({1000 * per_clip_s[codec]:.2f} ms a clip)"
            told(named, per_clip_s[codec] / bare_s[workers], "times", most=1.25)
    say(
        f"\nLoader cores for one GPU: PaSST-N and bert-base on the paper's mix (windows of {MEAN_WINDOW_S:.0f} s on "
        f"average), at {UTILISATION:.0%} of the GPU's peak"
    )
    tflop = PASST_N_TFLOP_PER_SEGMENT * np.ceil(MEAN_WINDOW_S / 10) + BERT_BASE_TFLOP_PER_CAPTION
    for gpu, peak in GPU_TFLOPS.items():
        clips_per_s = UTILISATION * peak / tflop
        for codec in CODECS:
            cores = clips_per_s * per_clip_s[codec] * MEAN_WINDOW_S / WINDOW_S
            told(f"{gpu}, {clips_per_s:.0f} clips/s, {codec}", cores, "cores")


if __name__ == "__main__":
    main()

"""Prepare a corpus: decode it once, and write it as Arrow shards into a store.

python data/prepare.py clotho --source DIR --store DIR
python data/prepare.py synthetic --store DIR
"""

import argparse
import logging
import os
from pathlib import Path

import ray

from data import corpora, shards
from data.errors import UserError, run_command
from data.schema import SAMPLE_RATE_HZ, Split
from data.shards import StoredSplit
from data.waveform import CODECS, Codec

logger = logging.getLogger("chorale.prepare")

CLIPS_PER_SHARD = 32
"""Small, so that even a small corpus is shared among the workers."""


def start_ray() -> None:
    """Join the cluster of this machine or of RAY_ADDRESS, or start one, without Ray's own lines on the console."""
    # Drivers of trials take next to no CPU, so there are more processes than cores; Ray warns of that on the console.
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "16")
    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level=logging.ERROR)


def prepare(corpus: str, source: Path | None, store: Path, codec: Codec, seed: int) -> list[StoredSplit]:
    """Write the splits of a corpus into the store, in parallel on Ray.

    Raises UserError for an unknown corpus and for wrong tables. Recordings that can't be decoded are set aside and
    named in the manifest; a split that has no clip at all is left out, and gone if it was there before.
    """
    splits = corpora.load(corpus).read(source.resolve() if source else None, seed)
    start_ray()
    prepared = [prepare_split(split, store.resolve(), codec) for split in splits]
    return [split for split in prepared if split]


def prepare_split(split: Split, store: Path, codec: Codec) -> StoredSplit | None:
    """Write one split; None if it has no clip. One of that name that was there before is gone at once."""
    folder = store / split.corpus / split.name
    for name in (shards.MANIFEST, shards.PARAPHRASES_FILE):
        (folder / name).unlink(missing_ok=True)
    for leftover in folder.glob("clips-*.arrow"):
        leftover.unlink()
    write_shard = ray.remote(shards.write_shard)
    summaries = ray.get(
        [
            write_shard.remote(
                folder / f"clips-{number:05d}.arrow",
                split.corpus,
                split.name,
                split.clips[start : start + CLIPS_PER_SHARD],
                codec,
            )
            for number, start in enumerate(range(0, len(split.clips), CLIPS_PER_SHARD))
        ]
    )
    set_aside = [*split.set_aside, *(clip for summary in summaries for clip in summary.set_aside)]
    for clip in set_aside:
        logger.warning("set aside: %s: %s", clip.origin, clip.reason)
    if not split.clips:
        return None
    if not any(summary.num_clips for summary in summaries):
        raise UserError(f"{split.corpus}/{split.name}: none of its {len(split.clips)} clips could be decoded")
    if split.paraphrases:
        shards.write_paraphrases(folder, split.paraphrases)
    shards.write_manifest(folder, split.corpus, split.name, codec, summaries, set_aside)
    return shards.open_split(store, f"{split.corpus}/{split.name}")


def describe(split: StoredSplit) -> str:
    """One line about a split."""
    manifest = split.manifest
    hours = manifest["num_samples"] / SAMPLE_RATE_HZ / 3600
    return (
        f"{split.name}: {manifest['num_clips']} clips, {hours:.2f} h, {manifest['num_queries']} captions, "
        f"{len(manifest['set_aside'])} set aside, fingerprint {split.fingerprint}"
    )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="prepare.py", description="Decode a corpus and write it into a store.")
    parser.add_argument("corpus", help=f"one of: {', '.join(corpora.names())}")
    parser.add_argument("--source", type=Path, help="where the corpus lies as published; synthetic needs none")
    parser.add_argument("--store", type=Path, default=Path("store"), help="where the shards go (default: %(default)s)")
    parser.add_argument(
        "--codec",
        choices=CODECS,
        default="pcm16",
        help="how audio is kept: flac is half the size, but is decoded in every epoch (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="for whatever the corpus draws: splits, soundscapes")
    arguments = parser.parse_args()
    for split in prepare(arguments.corpus, arguments.source, arguments.store, arguments.codec, arguments.seed):
        logger.info(describe(split))


if __name__ == "__main__":
    run_command(main)

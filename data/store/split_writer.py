"""Write the tables of a split, then its manifest, which names the tables and the shards.

Writing a split is atomic: readers see the complete split or the previous one.
"""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from data.captions import has_word, hash_caption
from data.schema import (
    FORMAT_VERSION,
    INDEX,
    PARAPHRASES,
    QUERIES,
    SKIPPED_ITEMS,
    SOURCES,
    Paraphrase,
    Query,
    SkippedItem,
    Split,
    SplitId,
    get_file_name,
)
from data.store.files import atomic_write, hash_arrow_table, write_arrow_table
from data.store.manifest import Manifest, write_manifest
from data.store.shard_writer import ShardSummary
from data.store.storage import IMMUTABLE_NAME
from data.store.stored_split import PARAPHRASES_FILE, open_split
from data.waveform import Codec

BATCH_ROWS = 1000


def write_paraphrases(folder: Path, paraphrases: Iterable[Paraphrase]) -> None:
    """Write the table of paraphrases into a split's folder, replacing an existing one, in batches of BATCH_ROWS
    rows. Paraphrases without a word are left out.
    """
    rows = (
        {
            "clip_id": paraphrase.clip_id,
            "caption_hash": hash_caption(paraphrase.caption),
            "variants": variants,
            "model": paraphrase.model,
            "instruction": paraphrase.instruction,
            "time": paraphrase.time,
        }
        for paraphrase in paraphrases
        if (variants := [text for text in paraphrase.variants if has_word(text)])
    )
    with (
        atomic_write(folder / PARAPHRASES_FILE) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, PARAPHRASES) as writer,
    ):
        while batch := list(itertools.islice(rows, BATCH_ROWS)):
            writer.write_table(pa.Table.from_pylist(batch, schema=PARAPHRASES))


def compute_fingerprint(digests: Mapping[str, str], queries: Sequence[Query] | None = None) -> str:
    """Return 16 hexadecimal digits that identify a split's contents, independent of order, codec and path. `digests`
    are the digests of its clips by clip id; `queries` are given only if they aren't the clips' captions.
    """
    lines = "".join(f"{clip_id}\t{digest}\n" for clip_id, digest in sorted(digests.items()))
    if queries is not None:
        lines += json.dumps(sorted((query.text, query.relevant_clip_ids) for query in queries))
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def write_split(folder: Path, split: Split, codec: Codec, shards: Sequence[ShardSummary]) -> None:
    """Write the tables of a split into its folder, then its manifest, which replaces the previous version of the split.
    `shards` are the summaries of its shards, written before in the format `codec`. Files that only the previous version
    needed are removed.

    If the queries refer to the clips of another split, that split has to exist in the store.
    """
    stored = {clip_id: (number, clip) for number, shard in enumerate(shards) for clip_id, clip in shard.clips.items()}
    clips = sorted((clip for clip in split.clips if clip.clip_id in stored), key=lambda clip: clip.clip_id)
    queries = split.queries
    if queries is None:
        queries = tuple(Query(caption, (clip.clip_id,)) for clip in clips for caption in clip.captions)
    skipped = collect_skipped(split, shards)
    digests = {clip_id: clip.digest for clip_id, (_, clip) in stored.items()}
    base = open_split(folder.parents[1], str(SplitId(split.corpus, split.clips_of))) if split.clips_of else None
    if base:
        digests = {base.manifest.split: base.fingerprint}
    if split.queries is not None:
        queries, unanswered = drop_missing_clips(split.queries, set(base.clip_ids if base else stored))
        skipped += unanswered
    index = [
        {
            "clip_id": clip.clip_id,
            "captions": clip.captions,
            "source": clip.source,
            "shard": stored[clip.clip_id][0],
            **dataclasses.asdict(stored[clip.clip_id][1]),
        }
        for clip in clips
    ]
    tables = {
        "index": pa.Table.from_pylist(index, schema=INDEX),
        "queries": pa.Table.from_pylist([dataclasses.asdict(query) for query in queries], schema=QUERIES),
        "set_aside": pa.Table.from_pylist([dataclasses.asdict(clip) for clip in skipped], schema=SKIPPED_ITEMS),
        "sources": pa.table({"source": sorted(split.sources)}, schema=SOURCES),
    }
    names = {}
    for kind, table in tables.items():
        names[kind] = f"{kind}-{hash_arrow_table(table)}.arrow"
        write_arrow_table(folder / names[kind], table)
    write_manifest(
        folder,
        Manifest(
            format_version=FORMAT_VERSION,
            corpus=split.corpus,
            split=split.name,
            codec=codec,
            clips_of=split.clips_of,
            clips_fingerprint=base.fingerprint if base else None,
            queries_are_captions=split.queries is None,
            num_listed=split.num_listed or len(split.clips) + len(split.set_aside),
            num_clips=len(clips),
            num_queries=len(queries),
            num_samples=sum(shard.num_samples for shard in shards),
            num_set_aside=len(skipped),
            fingerprint=compute_fingerprint(digests, queries if split.queries is not None else None),
            shards=tuple(shard.file for shard in shards),
            **names,
        ),
    )
    remove_stale_files(folder, {*names.values(), *(shard.file for shard in shards)})


def collect_skipped(split: Split, shards: Sequence[ShardSummary]) -> list[SkippedItem]:
    """Return the skipped items of a split: those found while reading its tables, then clips that can't be decoded
    according to the summaries of its shards.
    """
    reasons = {clip_id: reason for shard in shards for clip_id, reason in shard.set_aside.items()}
    undecodable = [
        SkippedItem(clip.origin, reasons[clip.clip_id], "undecodable", get_file_name(clip.clip_id))
        for clip in split.clips
        if clip.clip_id in reasons
    ]
    return [*split.set_aside, *undecodable]


def drop_missing_clips(
    queries: Sequence[Query], clip_ids: Collection[str]
) -> tuple[tuple[Query, ...], list[SkippedItem]]:
    """Remove clips that aren't in `clip_ids` from the queries, and queries that have no clip left. Return the
    remaining queries, and a skipped item for each clip that was removed.

    Queries without relevant clips (of a challenge) are kept.
    """
    kept, skipped = [], []
    for query in queries:
        present = tuple(clip_id for clip_id in query.relevant_clip_ids if clip_id in clip_ids)
        skipped += [
            SkippedItem(f"query {query.text!r}", f"its clip {clip_id} doesn't exist")
            for clip_id in query.relevant_clip_ids
            if clip_id not in clip_ids
        ]
        if present or not query.relevant_clip_ids:
            kept.append(Query(query.text, present))
    return tuple(kept), skipped


def remove_stale_files(folder: Path, current_names: set[str]) -> None:
    """Delete the files of earlier preparations from a split's folder: all files with a hash in their name, except
    the tables and shards in `current_names` and the summaries of these shards.
    """
    for path in folder.iterdir():
        if IMMUTABLE_NAME.search(path.name) and path.with_suffix(".arrow").name not in current_names:
            path.unlink()

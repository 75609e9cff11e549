"""Verify a prepared split: read it back and compare it with its manifest, index and checksums."""

import hashlib
import json
from typing import Any

import numpy as np

from data import waveform
from data.errors import UserError
from data.leakage.exclusions import read_excluded_ids
from data.leakage.exclusions import read_exclusions as stored_exclusions
from data.schema import CLIPS, INDEX, QUERIES, Query
from data.store.split_writer import compute_fingerprint
from data.store.storage import Store
from data.store.stored_split import StoredSplit
from data.waveform import AudioError


def check_tables(split: StoredSplit) -> list[str]:
    """Compare a split's tables with each other and with its manifest: columns, counts, ids, queries and
    fingerprint. Return a message for each problem.
    """
    manifest, index, queries = split.manifest, split.index, split.queries
    problems = [
        f"{what} doesn't have the columns that this version writes"
        for what, table, schema in (("the index", index, INDEX), ("the queries", queries, QUERIES))
        if table.schema != schema
    ]
    if problems:
        return [f"{split.name}: {problem}" for problem in problems]
    has_clips = not manifest.clips_of
    if has_clips and len(index) != manifest.num_clips:
        problems.append(f"{len(index)} clips in the index, {manifest.num_clips} in the manifest")
    if len(queries) != manifest.num_queries:
        problems.append(f"{len(queries)} queries, {manifest.num_queries} in the manifest")
    if split.clip_ids != sorted(set(split.clip_ids)):
        problems.append("clip ids aren't sorted and unique")
    known = set(split.clip_ids)
    relevant = queries["relevant_clip_ids"].to_pylist()
    unknown = sorted({clip_id for ids in relevant for clip_id in ids} - known)
    problems += [f"a query names {clip_id}, which doesn't exist" for clip_id in unknown[:10]]
    digests = dict(zip(split.clip_ids, index["digest"].to_pylist(), strict=True))
    if not has_clips:
        digests = {split.clips_manifest.split: split.clips_manifest.fingerprint}
    texts = [Query(text, tuple(ids)) for text, ids in zip(queries["text"].to_pylist(), relevant, strict=True)]
    if compute_fingerprint(digests, None if manifest.queries_are_captions else texts) != split.fingerprint:
        problems.append("the fingerprint doesn't match the contents")
    problems += check_other_tables(split)
    return [f"{split.name}: {problem}" for problem in problems]


def check_other_tables(split: StoredSplit) -> list[str]:
    """Check the tables of skipped items, sources and paraphrases of a split. Return a message for each problem."""
    problems = []
    num_set_aside = split.manifest.num_set_aside
    if len(split.set_aside) != num_set_aside:
        problems.append(f"{len(split.set_aside)} clips skipped, {num_set_aside} in the manifest")
    for what, read in (("sources", lambda: split.sources), ("paraphrases", split.read_paraphrases_table)):
        try:
            read()
        except UserError as error:
            problems.append(f"its {what} can't be read: {error}")
    return problems


def check_shard(split: StoredSplit, number: int) -> list[str]:
    """Decode all clips of the shard with this number, and compare them with the split's index. Return a message for
    each problem.
    """
    path = split.get_shard_path(number)
    try:
        table = split.read_shard(number)
    except (OSError, UserError) as error:
        return [f"{path} can't be read: {error}"]
    if table.schema != CLIPS:
        return [f"{path} doesn't have the columns that this version writes"]
    clips = np.flatnonzero(split.index["shard"].to_numpy() == number)
    rows = split.index.take(clips).to_pylist()
    stored = {row["clip_id"]: row for row in table.drop_columns("audio").to_pylist()}
    if sorted(stored) != [row["clip_id"] for row in rows]:
        return [f"{path} doesn't hold the clips that the index lists"]
    problems = []
    for clip, row in zip(clips.tolist(), rows, strict=True):
        differing = [
            column for column in ("captions", "source", "num_samples") if stored[row["clip_id"]][column] != row[column]
        ]
        clip_problems = [f"{column} of shard and index differ" for column in differing] or check_audio(split, clip, row)
        problems += [f"{path}: {row['clip_id']}: {problem}" for problem in clip_problems]
    return problems


def check_audio(split: StoredSplit, clip: int, row: dict[str, Any]) -> list[str]:
    """Decode the clip with the index `clip` completely, and compare its number of samples and its digest with `row`,
    its row of the split's index. Return a message for each problem.
    """
    digest, num_samples = hashlib.sha256(), 0
    try:
        for pcm in waveform.decode_stored(split.open_clip(clip), split.codec):
            digest.update(pcm.data)
            num_samples += len(pcm)
    except (AudioError, UserError, OSError) as error:
        return [str(error)]
    digest.update(json.dumps(row["captions"]).encode())
    if num_samples != row["num_samples"]:
        return [f"{num_samples} samples, {row['num_samples']} in the index"]
    return (
        [] if digest.hexdigest() == row["digest"] else ["its samples or captions differ from those that were written"]
    )


def check_exclusions(store: Store, names: list[str]) -> list[str]:
    """Check that a store's table of exclusions is up to date, and names only clips of existing splits; `names` are
    the names of these splits. Return a message for each problem.
    """
    absent = sorted(set(stored_exclusions(store)["split"].to_pylist()) - set(names))
    problems = [f"exclusions name clips of {name}, which doesn't exist" for name in absent]
    try:
        read_excluded_ids(store, names)
    except UserError as error:
        problems.append(str(error))
    return problems

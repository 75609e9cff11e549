"""Captions without a word, such as '...' or '?', which corpora contain and nothing can be learned from."""

import dataclasses

from data.captions import has_word
from data.errors import UserError
from data.schema import SkippedItem, SourceClip, Split, get_file_name


def drop_wordless(split: Split) -> Split:
    """Return a split without the captions and queries that contain no word, such as '...'. Each of them is added to the
    split's skipped items, with its table and row.

    A clip is skipped if none of its captions has a word, since it can neither be trained on nor searched for. Clips
    that have no captions by design, and queries without relevant clips, are kept: both are part of a challenge.

    Raises UserError if no clip is left.
    """
    skipped: list[SkippedItem] = []
    clips: list[SourceClip] = []
    for clip in split.clips:
        wordless = [index for index, caption in enumerate(clip.captions) if not has_word(caption)]
        if not wordless:
            clips.append(clip)
        elif len(wordless) == len(clip.captions):
            reason = f"none of its captions has a word: {', '.join(map(repr, clip.captions))}"
            skipped.append(SkippedItem(clip.origin, reason, file=get_file_name(clip.clip_id)))
        else:
            origins = clip.caption_origins or (clip.origin,) * len(clip.captions)
            skipped += [
                SkippedItem(origins[index], f"caption {clip.captions[index]!r} has no word") for index in wordless
            ]
            clips.append(remove_captions(clip, wordless))
    if split.clips and not clips:
        raise UserError(
            f"{split.corpus}/{split.name}: no caption of its {len(split.clips)} clips has a word (the first is at "
            f"{skipped[0].origin}): check the captions in that table"
        )
    queries = split.queries
    if queries is not None:
        wordless_queries = [query for query in queries if query.relevant_clip_ids and not has_word(query.text)]
        skipped += [SkippedItem(f"query {query.text!r}", "has no word") for query in wordless_queries]
        queries = tuple(query for query in queries if query not in wordless_queries)
    return dataclasses.replace(
        split,
        clips=tuple(clips),
        queries=queries,
        set_aside=(*split.set_aside, *skipped),
        num_listed=split.num_listed or len(split.clips) + len(split.set_aside),
    )


def remove_captions(clip: SourceClip, indices: list[int]) -> SourceClip:
    """Return a clip without the captions at these positions, counted from 0."""
    kept = [index for index in range(len(clip.captions)) if index not in indices]
    return dataclasses.replace(
        clip,
        captions=tuple(clip.captions[index] for index in kept),
        caption_origins=tuple(clip.caption_origins[index] for index in kept) if clip.caption_origins else (),
    )

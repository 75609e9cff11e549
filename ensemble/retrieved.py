"""What an ensemble retrieves for some queries, beside the truth, with the beginnings of the recordings to listen to."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import soundfile
import soxr

from data.errors import UserError
from data.schema import SAMPLE_RATE_HZ
from data.shards import StoredSplit, open_split
from ensemble import figures
from ensemble.format import weights_of
from ensemble.matrices import fused
from ensemble.pool import FILES, Which, load_trials
from ensemble.survey import Row
from trainables.ledger import Ledger

MOST_QUERIES, TOP = 100, 5
HEARD_S, HEARD_RATE_HZ, COMPRESSION = 10.0, 16_000, 0.95
"""Of a recording in the page: some 25 kB each as Opus."""


@dataclass(frozen=True)
class Answer:
    """A query, the clips that describe it, and what was retrieved: clip, score, whether it is one of them."""

    query: str
    truth: Sequence[str]
    best: Sequence[tuple[str, float, bool]]


@dataclass(frozen=True)
class Retrieved:
    """Answers, and the sounds of the clips that they name; why there is none."""

    answers: Sequence[Answer]
    sounds: Mapping[str, str]  # clip id -> data URI
    silent: str


def retrieved(
    ledger: Ledger, rows: Sequence[Row], ensemble: Mapping[str, Any], which: Which, store: str | None
) -> Retrieved:
    """An ensemble's answers to queries that are spread over the split."""
    by_signature = {row.candidate.signature: row.candidate for row in rows}
    candidates = [by_signature[member["signature"]] for member in ensemble["members"]]
    first = candidates[0]
    assert first.run is not None
    reference = ledger.embeddings(first.run, FILES[which])
    source = load_trials(ledger, [(one, FILES[which]) for one in candidates])
    source = fused(source, ensemble.get("fusion_name", "mean"))
    weights = np.array(weights_of(ensemble), float)
    number = len(reference.queries)
    answers = []
    for query in sorted({int(place) for place in np.linspace(0, number - 1, min(MOST_QUERIES, number))}):
        scores_A = figures.fuse(source, weights.tolist(), query, query + 1)[0] / weights.sum()
        best = np.argsort(-scores_A, kind="stable")[:TOP]
        truth = reference.relevant_clip_ids[query]
        clips = [(reference.clip_ids[clip], float(scores_A[clip])) for clip in best]
        answers.append(Answer(reference.queries[query], truth, [(clip, score, clip in truth) for clip, score in clips]))
    named = {clip for answer in answers for clip in (*answer.truth, *(clip for clip, _, _ in answer.best))}
    try:
        if store is None:
            raise UserError("no store is named")
        split = open_split(store, reference.split)
        return Retrieved(answers, {clip: sound(split, clip) for clip in sorted(named)}, "")
    except (UserError, OSError) as error:
        return Retrieved(answers, {}, f"without sound: {error}")


def sound(split: StoredSplit, clip_id: str) -> str:
    """The beginning of a clip as a data URI."""
    clip = split.clip_ids.index(clip_id)
    samples = split.window(clip, 0, min(round(HEARD_S * SAMPLE_RATE_HZ), int(split.num_samples[clip])))
    file = io.BytesIO()
    low = soxr.resample(samples, SAMPLE_RATE_HZ, HEARD_RATE_HZ)
    soundfile.write(file, low, HEARD_RATE_HZ, format="OGG", subtype="OPUS", compression_level=COMPRESSION)
    return f"data:audio/ogg;base64,{base64.b64encode(file.getvalue()).decode()}"

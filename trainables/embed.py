"""A model and a split -> embeddings, and the Arrow file that holds them: all that selection reads.

Shapes: A clips, Q queries, D the size of the embeddings.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from data.batches import load_clips
from data.captions import normalise
from data.errors import UserError
from data.shards import StoredSplit, read_table, write_table
from trainables.model import DualEncoder
from trainables.retrieval import Scores
from trainables.trial import Trial

CLIPS_PER_BATCH = 16
QUERIES_PER_BATCH = 256


@dataclass(frozen=True)
class Embeddings:
    """A split as one trial sees it. Vectors lie on the unit sphere, so that scores are dot products."""

    signature: str  # of the trial
    split: str
    fingerprint: str  # of the split's contents
    clip_ids: list[str]
    queries: list[str]
    relevant_clip_ids: list[list[str]]
    audio_AD: NDArray[np.float32]
    text_QD: NDArray[np.float32]

    def scores(self) -> Scores:
        """Cosines [Q, A]."""
        return self.text_QD @ self.audio_AD.T


@torch.inference_mode()
def embed(model: DualEncoder, trial: Trial, signature: str, split: StoredSplit) -> Embeddings:
    """Embed a split's clips, each once, and its queries. The model is left in evaluation mode."""
    model.eval()
    device = next(model.parameters()).device
    unused = torch.Generator()
    with torch.autocast(device.type, torch.bfloat16, enabled=trial.precision == "bfloat16"):
        audio = [
            model.embed_audio(batch.to(device), unused).cpu()
            for batch in load_clips(split, trial.audio.segment_s, trial.longest_audio_s, CLIPS_PER_BATCH)
        ]
        queries: list[str] = split.queries["text"].to_pylist()
        text = []
        for start in range(0, len(queries), QUERIES_PER_BATCH):
            captions = [normalise(query) for query in queries[start : start + QUERIES_PER_BATCH]]
            text.append(model.embed_text(model.text.tokenize(captions).to(device)).cpu())
    return Embeddings(
        signature=signature,
        split=split.name,
        fingerprint=split.fingerprint,
        clip_ids=split.clip_ids,
        queries=queries,
        relevant_clip_ids=split.queries["relevant_clip_ids"].to_pylist(),
        audio_AD=torch.cat(audio).numpy(),
        text_QD=torch.cat(text).numpy(),
    )


def write_embeddings(path: Path, embeddings: Embeddings) -> None:
    """Write an Arrow file with a row for each clip, then one for each query."""
    vectors = np.concatenate([embeddings.audio_AD, embeddings.text_QD])
    num_clips, num_queries = len(embeddings.clip_ids), len(embeddings.queries)
    table = pa.table(
        {
            "kind": ["clip"] * num_clips + ["query"] * num_queries,
            "name": [*embeddings.clip_ids, *embeddings.queries],
            "relevant_clip_ids": pa.array([[]] * num_clips + embeddings.relevant_clip_ids, pa.list_(pa.string())),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1]),
        }
    )
    described = {name: getattr(embeddings, name) for name in ("signature", "split", "fingerprint")}
    write_table(path, table.replace_schema_metadata(described))


def read_embeddings(path: Path) -> Embeddings:
    """Read what `write_embeddings` wrote. Raises UserError for a file that isn't one."""
    try:
        table = read_table(path)
        described = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        vectors = table["vector"].combine_chunks()
        matrix = vectors.flatten().to_numpy().reshape(len(table), -1)
        is_clip = np.array(table["kind"].to_pylist()) == "clip"
        names, relevant = table["name"].to_pylist(), table["relevant_clip_ids"].to_pylist()
        num_clips = int(is_clip.sum())
        return Embeddings(
            **{key: described[key] for key in ("signature", "split", "fingerprint")},
            clip_ids=names[:num_clips],
            queries=names[num_clips:],
            relevant_clip_ids=relevant[num_clips:],
            audio_AD=matrix[:num_clips],
            text_QD=matrix[num_clips:],
        )
    except (OSError, KeyError, pa.ArrowInvalid) as error:
        raise UserError(f"{path} isn't a file of embeddings: {error}") from error

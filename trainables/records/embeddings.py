"""Embeddings of a split by one trial, and the Arrow file that holds them. Selection reads nothing else of a trial.

Shapes: A clips, Q queries, D the size of the embeddings.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data.errors import UserError
from data.store.arrow_tables import open_table
from data.store.files import write_arrow_table
from trainables.retrieval import Scores

EMBEDDINGS_FOLDER = "embeddings"
EPOCHS_FOLDER = "epochs"
VALIDATION_FILE = "validation.arrow"
TEST_FILE = "test.arrow"
BANK_FILE = "bank.arrow"
"""Artifacts of a trial's run: `embeddings/validation.arrow`, `embeddings/test.arrow`, its query bank
`embeddings/bank.arrow`, which is stored with its model as well, and `embeddings/epochs/0001.arrow` for each epoch.
"""

SCHEMA = pa.schema(
    [
        pa.field("kind", pa.string(), nullable=False),
        pa.field("name", pa.string(), nullable=False),
        pa.field("relevant_clip_ids", pa.list_(pa.string()), nullable=False),
    ]
)
"""Columns of a file of embeddings, besides `vector`, whose type depends on the size of the embeddings."""


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of a split's clips and queries by one trial, on the unit sphere, so that scores are dot products."""

    signature: str  # signature of the trial
    split: str
    fingerprint: str  # fingerprint of the split's contents
    clip_ids: list[str]
    queries: list[str]
    relevant_clip_ids: list[list[str]]
    audio_AD: NDArray[np.float32]
    text_QD: NDArray[np.float32]

    def compute_scores(self) -> Scores:
        """Return the score matrix [Q, A]: the cosine of each query and each clip."""
        return self.text_QD @ self.audio_AD.T


def write_embeddings(path: Path, embeddings: Embeddings) -> None:
    """Write embeddings to an Arrow file with one row per clip, then one row per query."""
    vectors = np.concatenate([embeddings.audio_AD, embeddings.text_QD])
    num_clips, num_queries = len(embeddings.clip_ids), len(embeddings.queries)
    table = pa.table(
        {
            "kind": pa.array(["clip"] * num_clips + ["query"] * num_queries, pa.string()),
            "name": pa.array([*embeddings.clip_ids, *embeddings.queries], pa.string()),
            "relevant_clip_ids": pa.array([[]] * num_clips + embeddings.relevant_clip_ids, pa.list_(pa.string())),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1]),
        }
    )
    metadata = {name: getattr(embeddings, name) for name in ("signature", "split", "fingerprint")}
    write_arrow_table(path, table.replace_schema_metadata(metadata))


def read_embeddings(path: Path) -> Embeddings:
    """Return the embeddings in a file that `write_embeddings` wrote. Raises UserError for any other file."""
    try:
        table = open_table(path, str(path), "write it again", SCHEMA)
        metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        vectors = table["vector"].combine_chunks()
        if not pa.types.is_fixed_size_list(vectors.type) or vectors.type.value_type != pa.float32():
            raise ValueError(f"its vectors are of type {vectors.type}")
        if has_nulls(vectors):
            raise ValueError("some of its vectors are missing")
        matrix = vectors.flatten().to_numpy().reshape(len(table), vectors.type.list_size)
        num_clips = pc.sum(pc.equal(table["kind"], "clip")).as_py() or 0
        if table["kind"].to_pylist() != ["clip"] * num_clips + ["query"] * (len(table) - num_clips):
            raise ValueError("its rows aren't clips, then queries")
        if "'" in metadata["fingerprint"]:  # it is quoted in queries to MLflow
            raise ValueError(f"its fingerprint is {metadata['fingerprint']!r}")
        names, relevant = table["name"].to_pylist(), table["relevant_clip_ids"].slice(num_clips).to_pylist()
        return Embeddings(
            **{key: metadata[key] for key in ("signature", "split", "fingerprint")},
            clip_ids=names[:num_clips],
            queries=names[num_clips:],
            relevant_clip_ids=relevant,
            audio_AD=matrix[:num_clips],
            text_QD=matrix[num_clips:],
        )
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{path} isn't a file of embeddings: {error}") from error


def has_nulls(vectors: pa.FixedSizeListArray) -> bool:
    """Return whether a vector, or a number in one, is missing."""
    return bool(vectors.null_count or vectors.flatten().null_count)


def epoch_file_name(epoch: int) -> str:
    """Return the name of the file with an epoch's embeddings, such as '0001.arrow' for the first epoch."""
    return f"{epoch:04}.arrow"

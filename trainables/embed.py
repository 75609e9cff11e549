"""A model and a split -> embeddings, and the Arrow file that holds them: all that selection reads.

python trainables/embed.py --checkpoint MODEL [--audio DIR] [--captions FILE] --out FILE    # of your own

MODEL is the folder of a trained model, or the signature or MLflow run of a trial in --runs.

Shapes: A clips, Q queries, D the size of the embeddings.
"""

import argparse
import logging
import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import soundfile
import torch
from numpy.typing import NDArray

from data.batches import Batch, load_clips, load_files
from data.captions import normalise
from data.commands import command
from data.corpora._recordings import files_below
from data.errors import UserError
from data.shards import StoredSplit, read_table, write_table
from data.tables import read_csv, read_text
from trainables import checkpoint
from trainables.model import DualEncoder
from trainables.retrieval import Scores
from trainables.runs import Runs
from trainables.trial import Trial

logger = logging.getLogger("chorale.embed")

AUDIO = {f".{name.lower()}" for name in soundfile.available_formats()} | {".aif", ".oga", ".opus", ".wave"}
"""What audio files' names end in; others aren't looked at."""

CLIPS_PER_BATCH = 16
QUERIES_PER_BATCH = 256


def fastest_device() -> torch.device:
    """Where models embed: on this process' GPU, if it has one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


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


def embed(model: DualEncoder, trial: Trial, signature: str, split: StoredSplit) -> Embeddings:
    """Embed a split's clips, each once, and its queries. The model is left in evaluation mode."""
    queries: list[str] = split.queries["text"].to_pylist()
    clips = load_clips(split, trial.audio.segment_s, trial.longest_audio_s, CLIPS_PER_BATCH)
    audio, _ = embed_audio(model, trial, clips)
    return Embeddings(
        signature=signature,
        split=split.name,
        fingerprint=split.fingerprint,
        clip_ids=split.clip_ids,
        queries=queries,
        relevant_clip_ids=split.queries["relevant_clip_ids"].to_pylist(),
        audio_AD=audio,
        text_QD=embed_text(model, trial, queries),
    )


@torch.inference_mode()
def embed_audio(
    model: DualEncoder, trial: Trial, batches: Iterable[Batch]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Clips' vectors [A, D], and which clips they are [A]. The model is left in evaluation mode."""
    model.eval()
    device, unused = next(model.parameters()).device, torch.Generator()
    vectors, clips = [torch.zeros(0, trial.embedding_size)], [torch.zeros(0, dtype=torch.int64)]
    with torch.autocast(device.type, torch.bfloat16, enabled=trial.precision == "bfloat16"):
        for batch in batches:
            vectors.append(model.embed_audio(batch.to(device), unused).cpu())
            clips.append(batch.clips)
    return torch.cat(vectors).numpy(), torch.cat(clips).numpy()


@torch.inference_mode()
def embed_text(model: DualEncoder, trial: Trial, sentences: Sequence[str]) -> NDArray[np.float32]:
    """Sentences' vectors [Q, D]. The model is left in evaluation mode."""
    model.eval()
    device = next(model.parameters()).device
    vectors = [torch.zeros(0, trial.embedding_size)]
    with torch.autocast(device.type, torch.bfloat16, enabled=trial.precision == "bfloat16"):
        for start in range(0, len(sentences), QUERIES_PER_BATCH):
            captions = [normalise(sentence) for sentence in sentences[start : start + QUERIES_PER_BATCH]]
            vectors.append(model.embed_text(model.text.tokenize(captions).to(device)).cpu())
    return torch.cat(vectors).numpy()


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


def audio_files(folder: Path) -> list[Path]:
    """The audio files in a folder and below it, in the order of their names. Raises UserError where there is none."""
    if not folder.is_dir():
        raise UserError(f"{folder} isn't a folder")
    found = sorted(path for path in files_below(folder) if path.suffix.lower() in AUDIO)
    if not found:
        raise UserError(f"{folder} holds no audio file (looked for: {', '.join(sorted(AUDIO))})")
    return found


def read_sentences(path: Path) -> list[str]:
    """The sentences of a file: a .csv's column `caption`, else a line each. Raises UserError for one that is empty."""
    if path.suffix.lower() == ".csv":
        found = [(row["caption"], row.origin) for row in read_csv(path, ["caption"])]
    else:
        lines = read_text(path, "utf-8").splitlines()
        found = [(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1) if line.strip()]
    for sentence, origin in found:
        if not normalise(sentence):
            raise UserError(f"{origin}: no word is left of {sentence!r}: there is nothing to embed")
    if not found:
        raise UserError(f"{path} holds no sentence")
    return [sentence for sentence, _ in found]


def embed_files(
    model: DualEncoder, trial: Trial, paths: Sequence[Path]
) -> tuple[NDArray[np.float32], list[Path], dict[Path, str]]:
    """Audio files' vectors [A, D], the files that these are of, and why the others are left out."""
    refused: dict[Path, str] = {}
    batches = load_files(
        paths,
        trial.audio.segment_s,
        trial.longest_audio_s,
        CLIPS_PER_BATCH,
        refused.__setitem__,
    )
    vectors, places = embed_audio(model, trial, batches)
    return vectors, [paths[place] for place in places], refused


def model_folder(name: str, runs: Runs, tracking_uri: str | None, scratch: Path) -> Path:
    """The folder of a trained model: that folder, or that of a trial by its signature or by its run in MLflow."""
    if (Path(name) / checkpoint.TRIAL_FILE).exists():
        return Path(name)
    if "/" not in name and runs.has_model(name):
        return runs.model(name, scratch)
    if Path(name).exists():
        raise UserError(f"{name} holds no trained model ({checkpoint.TRIAL_FILE} is absent)")
    from trainables.ledger import open_ledger

    signature = open_ledger(runs, tracking_uri).signature_of(name)
    if signature is None or not runs.has_model(signature):
        raise UserError(
            f"{name!r} is neither a model's folder nor a trial in {runs}, by signature or run, with a model"
        )
    return runs.model(signature, scratch)


def run(arguments: argparse.Namespace) -> None:
    """Everything the command does."""
    if arguments.audio is None and arguments.captions is None:
        raise UserError("nothing to embed: give --audio DIR, --captions FILE or both")
    paths = audio_files(arguments.audio) if arguments.audio else []
    sentences = read_sentences(arguments.captions) if arguments.captions else []
    with tempfile.TemporaryDirectory() as scratch:
        folder = model_folder(
            arguments.checkpoint, Runs.of(arguments.runs), arguments.tracking_uri, Path(scratch) / "m"
        )
        trial, model = checkpoint.load_trial(folder), checkpoint.load_model(folder)
    audio, embedded, refused = embed_files(model.to(fastest_device()), trial, paths)
    for path, reason in refused.items():
        logger.warning("left out: %s: %s", path, reason)
    if paths and not embedded:
        raise UserError(f"{arguments.audio}: none of its {len(paths)} audio files can be decoded")
    found = Embeddings(
        signature=Path(arguments.checkpoint).name,
        split=str(arguments.audio or arguments.captions),
        fingerprint="",
        clip_ids=[path.relative_to(arguments.audio).as_posix() for path in embedded],
        queries=sentences,
        relevant_clip_ids=[[] for _ in sentences],
        audio_AD=audio,
        text_QD=embed_text(model, trial, sentences),
    )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_embeddings(arguments.out, found)
    logger.info("Wrote %s: %d clips and %d sentences, %d numbers each", arguments.out, len(embedded), len(sentences),
                trial.embedding_size)  # fmt: skip


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="embed.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkpoint", required=True, metavar="MODEL", help="a model's folder, a signature or a run's id"
    )
    parser.add_argument("--audio", type=Path, metavar="DIR", help="a folder of audio files, also in folders below")
    parser.add_argument(
        "--captions", type=Path, metavar="FILE", help="sentences: a line each, or a .csv's column caption"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the Arrow file to write")
    parser.add_argument("--runs", default="runs", help="where trials lie (default: %(default)s)")
    parser.add_argument("--tracking-uri", default=os.environ.get("MLFLOW_TRACKING_URI"), metavar="URI",
                        help="of an MLflow server (default: MLFLOW_TRACKING_URI, else SQLite in --runs)")  # fmt: skip
    run(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())

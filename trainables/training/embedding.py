"""Embed splits, audio files and sentences with a trained model.

Shapes: A clips, Q queries, D the size of the embeddings.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from data.captions import normalise
from data.loading.batch import Batch
from data.loading.clips import load_clips, load_files
from data.sources.audio_files import FileProblems
from data.store.stored_split import StoredSplit
from trainables.networks.dual_encoder import DualEncoder, average_segments
from trainables.records.embeddings import Embeddings
from trainables.trial import Trial

CLIPS_PER_BATCH = 16
QUERIES_PER_BATCH = 256


def fastest_device() -> torch.device:
    """Return the device to embed on: this process' GPU if it has one, otherwise the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def embed_split(
    model: DualEncoder, trial: Trial, signature: str, split: StoredSplit, texts: Sequence[str] | None = None
) -> Embeddings:
    """Return the embeddings of a split's clips and queries by the model of a trial, whose signature is recorded with
    them. If `texts` are given, they are embedded in place of the queries, without relevant clips. The model is left in
    evaluation mode.
    """
    queries = split.queries["text"].to_pylist() if texts is None else list(texts)
    relevant = split.queries["relevant_clip_ids"].to_pylist() if texts is None else [[] for _ in texts]
    clips = model.features.load_clips(split, CLIPS_PER_BATCH) if model.features else None
    if clips is None:
        clips = load_clips(split, trial.audio.segment_s, trial.longest_audio_s, CLIPS_PER_BATCH)
    audio, _ = embed_audio(model, trial, clips)
    if model.features:
        model.features.load_queries(split)
    return Embeddings(
        signature=signature,
        split=split.name,
        fingerprint=split.fingerprint,
        clip_ids=split.clip_ids,
        queries=queries,
        relevant_clip_ids=relevant,
        audio_AD=audio,
        text_QD=embed_text(model, trial, queries),
    )


@torch.inference_mode()
def embed_audio(
    model: DualEncoder, trial: Trial, batches: Iterable[Batch]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the embeddings [A, D] of the clips in `batches` by the model of a trial, and an array of each clip's
    number as given in its batch [A]. The model is left in evaluation mode.
    """
    model.eval()
    device, unused = next(model.parameters()).device, torch.Generator()
    vectors, clips = [torch.zeros(0, trial.embedding_size)], [torch.zeros(0, dtype=torch.int64)]
    with torch.autocast(device.type, torch.bfloat16, enabled=trial.precision == "bfloat16"):
        for batch in batches:
            vectors.append(model.embed_audio(batch.to(device), unused).cpu())
            clips.append(batch.clips)
    return torch.cat(vectors).numpy(), torch.cat(clips).numpy()


@torch.inference_mode()
def embed_passages(model: DualEncoder, trial: Trial, batch: Batch) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return two arrays by the model of a trial: the embeddings of the clips in a batch [A, D], and those of each of
    their segments alone [S, D]. The encoder runs once. The model is left in evaluation mode.
    """
    model.eval()
    device = next(model.parameters()).device
    with torch.autocast(device.type, torch.bfloat16, enabled=trial.precision == "bfloat16"):
        moved = batch.to(device)
        features_SW = model.encode_audio(moved, torch.Generator())
        audio_AD = model.project_audio(average_segments(features_SW, moved.segments_per_clip))
        segments_SD = model.project_audio(features_SW)
    return audio_AD.cpu().numpy(), segments_SD.cpu().numpy()


@torch.inference_mode()
def embed_text(model: DualEncoder, trial: Trial, sentences: Sequence[str]) -> NDArray[np.float32]:
    """Return the embeddings [Q, D] of sentences, which are normalised first, by the model of a trial. The model is left
    in evaluation mode.
    """
    model.eval()
    device = next(model.parameters()).device
    vectors = [torch.zeros(0, trial.embedding_size)]
    with torch.autocast(device.type, torch.bfloat16, enabled=trial.precision == "bfloat16"):
        for start in range(0, len(sentences), QUERIES_PER_BATCH):
            captions = [normalise(sentence) for sentence in sentences[start : start + QUERIES_PER_BATCH]]
            features_BW = model.features.find_texts(captions) if model.features else None
            if features_BW is None:
                features_BW = model.encode_text(model.text.tokenize(captions).to(device))
            vectors.append(model.project_text(features_BW.to(device)).cpu())
    return torch.cat(vectors).numpy()


def embed_files(
    model: DualEncoder, trial: Trial, paths: Sequence[Path]
) -> tuple[NDArray[np.float32], list[Path], FileProblems]:
    """Return three values: the embeddings [A, D] of audio files by the model of a trial; the paths of the files that
    could be embedded; and the files that were skipped, or whose audio was changed when it was decoded, with the
    reasons.
    """
    problems = FileProblems()
    batches = load_files(paths, trial.audio.segment_s, trial.longest_audio_s, CLIPS_PER_BATCH, problems)
    vectors, indices = embed_audio(model, trial, batches)
    return vectors, [paths[index] for index in indices], problems

"""Final artifacts of a training: the model in the run storage, config and embeddings in MLflow."""

from __future__ import annotations

import time

from data.store.files import write_json
from data.store.scratch import create_scratch_folder
from data.store.stored_split import StoredSplit
from trainables import trial as trials
from trainables.networks.dual_encoder import DualEncoder
from trainables.records import checkpoint
from trainables.records.embeddings import (
    BANK_FILE,
    EMBEDDINGS_FOLDER,
    TEST_FILE,
    VALIDATION_FILE,
    Embeddings,
    read_embeddings,
    write_embeddings,
)
from trainables.records.mlflow_log import RunLog
from trainables.records.run_storage import RunStorage
from trainables.training.embedding import embed_split
from trainables.trial import TRIAL_FILE, Trial


def store_model(runs: RunStorage, signature: str, trial: Trial, network: DualEncoder, bank: Embeddings) -> None:
    """Write a trial's trained model, `network`, with its query bank to the run storage under the trial's signature,
    where fine-tunings look for it. The write is atomic, and a model that is already stored is kept.
    """
    with runs.make_scratch() as scratch:
        checkpoint.save_model(scratch / "model", trial, network, checkpoint.copy_weights(network))
        write_embeddings(scratch / "model" / BANK_FILE, bank)
        runs.store_model(signature, scratch / "model")


def log_artifacts(
    log: RunLog,
    trial: Trial,
    signature: str,
    network: DualEncoder,
    validation: StoredSplit,
    test: StoredSplit,
    bank: Embeddings,
) -> None:
    """Embed the validation and the test split with the trained model `network`, log the embeddings, the query bank and
    the trial's config to MLflow, and read the embeddings back as a check. Test metrics are not computed. The embeddings
    are marked with the trial's signature.

    Splits that the trial was trained on are not embedded: metrics on them would say nothing about other recordings. If
    no split is embedded, the bank is stored with the model alone.
    """
    files = [(split, name) for split, name in ((validation, VALIDATION_FILE), (test, TEST_FILE))
              if split.name not in trial.training_splits]  # fmt: skip
    started_at = time.monotonic()
    with create_scratch_folder() as folder:
        for split, name in files:
            write_embeddings(folder / EMBEDDINGS_FOLDER / name, embed_split(network, trial, signature, split))
        if files:
            write_embeddings(folder / EMBEDDINGS_FOLDER / BANK_FILE, bank)
        embedding_s = time.monotonic() - started_at
        write_json(folder / TRIAL_FILE, trials.to_json(trial))
        log.log_files(folder, {"embedding_s": embedding_s})
        for name in [*(name for _, name in files), BANK_FILE] if files else []:
            with log.open_artifact(f"{EMBEDDINGS_FOLDER}/{name}") as path:
                read_embeddings(path)

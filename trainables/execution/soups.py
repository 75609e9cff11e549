"""Model soups in this process: embed splits with an average of models, and store a soup as a finished trial."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data.store.stored_split import StoredSplit, open_split
from trainables.execution.resources import Allocation
from trainables.execution.session import RunContext, TrainingJob, fetch_models, train_in_process
from trainables.records.embeddings import BANK_FILE, EMBEDDINGS_FOLDER, write_embeddings
from trainables.records.lease import Lease, compute_once
from trainables.records.ledger import Ledger
from trainables.signature import Relations
from trainables.trial import Trial

if TYPE_CHECKING:
    from trainables.networks.dual_encoder import DualEncoder

logger = logging.getLogger("chorale.soups")


@dataclass(frozen=True)
class Average:
    """Average of the weights of models in the run storage. Of a single model, it is that model."""

    trial: Trial  # config of the soup or, of a single model, of the model
    signature: str
    models: tuple[str, ...]  # signatures of the models


def embed_average(
    average: Average, site: RunContext, files: Sequence[tuple[str, str]], folder: Path, models: Path
) -> None:
    """Embed splits, and the query bank, with an average of models, and write the embeddings to the files of a trial.

    Args:
        average: the average.
        site: the store of the splits, and the run storage of the models.
        files: pairs of the name of a split and the name of its file; for the file of the bank, the name of the split is
            not used.
        folder: folder of the files of the trial.
        models: folder into which models are copied from an object store; those that are in it are not copied again.

    Raises:
        UserError: if the model of a part is missing from the run storage, or a split from the store.
    """
    from trainables.training.averaging import load_average
    from trainables.training.embedding import fastest_device

    missing = [signature for signature in average.models if not (models / signature).exists()]
    folders = {signature: models / signature for signature in average.models}
    folders |= dict(zip(missing, fetch_models(missing, site.runs, models), strict=True))
    network = load_average([folders[signature] for signature in sorted(folders)], average.trial).to(fastest_device())
    for split_name, file in files:
        path = folder / EMBEDDINGS_FOLDER / file
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, network, average, None if file == BANK_FILE else open_split(site.store, split_name), site)


def write_file(path: Path, network: DualEncoder, average: Average, split: StoredSplit | None, site: RunContext) -> None:
    """Write the embeddings of a split by an average of models, `network`, to an Arrow file; without a split, those of
    its query bank.
    """
    from trainables.training.embedding import embed_split
    from trainables.training.query_bank import embed_bank, list_bank_texts

    trial, signature = average.trial, average.signature
    if split:
        write_embeddings(path, embed_split(network, trial, signature, split))
        return
    splits = {name: open_split(site.store, name) for name in {*trial.train, trial.validation, trial.test}}
    texts = list_bank_texts(trial, splits, site.store)
    write_embeddings(path, embed_bank(network, trial, signature, texts))


def store_soup(average: Average, site: RunContext, ledger: Ledger, sweep_run_id: str | None) -> None:
    """Compute the soup of models as a trial: store its model, and log its embeddings and metrics to the ledger. If it
    has already finished, nothing is done; if another process computes it, its end is awaited. `sweep_run_id` is the
    MLflow run under which it is logged.

    Raises UserError if the model of a part is missing, or if the store has changed since the soup's parts were trained.
    """
    compute_once(
        site.runs,
        average.signature,
        is_done=lambda: is_stored(average.signature, site, ledger),
        compute=lambda lease: compute_under_lease(average, lease, site, ledger, sweep_run_id),
        description=f"{average.trial.name} ({average.signature})",
    )


def is_stored(signature: str, site: RunContext, ledger: Ledger) -> bool:
    """Return whether the trial with this signature has finished, and its model is in the run storage."""
    return ledger.find_finished_trial(signature) is not None and site.runs.has_model(signature)


def compute_under_lease(
    average: Average, lease: Lease, site: RunContext, ledger: Ledger, sweep_run_id: str | None
) -> None:
    """Compute a soup whose lease this process holds, and mark it as finished, or as failed after an error."""
    relations = Relations(average_of=tuple(sorted(average.models)))
    run_id = ledger.claim(average.trial, average.signature, sweep_run_id, relations)
    logger.info("%s (%s) is computed", average.trial.name, average.signature)
    job = TrainingJob(average.trial, lease, run_id, site, allocate_this_process(), relations=relations)
    try:
        train_in_process(job, lambda metrics: None)
        lease.require(site.runs)
    except BaseException as error:
        if lease.is_held(site.runs):
            ledger.mark_ended(run_id, "FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    ledger.finish(run_id)


def allocate_this_process() -> Allocation:
    """Return the resources of a trial in this process: its GPU if it has one, and as many threads as torch uses."""
    import torch

    threads = torch.get_num_threads()
    return Allocation(cpus_per_worker=threads, gpus_per_worker=float(torch.cuda.is_available()), threads=threads)

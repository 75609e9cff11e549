"""Snapshots in a pool: one training gives several candidates, its model after each cycle and that of its best epoch.

They are one trial in three respects. A snapshot after the best epoch is the model that the training ends with, and is
no candidate beside it. Nested cross-validation chooses the best epoch anew in each fold, and builds the candidates of
the training anew from that choice (`ensemble.selection.epoch_choice`). And a report counts them as one trial, in its
costs, main effects and means over seeds.
"""

from collections.abc import Collection, Mapping

from trainables.records.ledger import Ledger, TrialRun


def find_snapshots(ledger: Ledger, run: TrialRun) -> dict[int, TrialRun]:
    """Return the finished snapshots of a training by epoch: its models after each cycle; {} if its schedule has a
    single cycle. Snapshots after other epochs, which only a space can ask for, are not among them.
    """
    if not run.cycle_ends or run.snapshot_epoch or run.is_trained_on_all_splits:
        return {}
    snapshots = {snapshot.snapshot_epoch: snapshot for snapshot in ledger.find_related("snapshot_of", run.signature)}
    return {epoch: snapshots[epoch] for epoch in run.cycle_ends if epoch in snapshots}


def add_snapshots(ledger: Ledger, runs: Collection[TrialRun]) -> list[TrialRun]:
    """Return finished trials together with the snapshots of those that have several cycles, sorted by signature, each
    once.
    """
    snapshots = [snapshot for run in runs for snapshot in find_snapshots(ledger, run).values()]
    by_signature = {run.signature: run for run in [*runs, *snapshots]}
    return sorted(by_signature.values(), key=lambda run: run.signature)


def is_same_model(run: TrialRun, others: Mapping[str, TrialRun]) -> bool:
    """Return whether a trial is the snapshot after the best epoch of a training that is among `others`, which has the
    trials of a pool by signature. Then both have the same model.
    """
    training = others.get(run.relations.snapshot_of or "")
    return training is not None and run.snapshot_epoch == training.metrics.get("best_epoch")

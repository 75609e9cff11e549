"""Retraining: the members of a selected ensemble, trained again on all splits for a submission or for use.

As in the paper, members are also trained on the validation and the test split, and each training ends after the epoch
that was best on the validation split. Retrained members can no longer be evaluated on these splits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from data.errors import UserError
from trainables import trial as trials
from trainables.records.ensemble_file import Ensemble, Member, Normalisation
from trainables.schedule import Schedule
from trainables.trial import Trial

FirstStage = Literal["pretraining", "finetuning"]
"""First stage to retrain: the pretraining and with it the fine-tuning, or the fine-tuning alone."""


@dataclass(frozen=True)
class Retraining:
    """Member of an ensemble, and the trial that replaces it. If `is_retrained` is False, the member is kept as it
    is.
    """

    member: Member
    trial: Trial
    is_retrained: bool


def plan_retrainings(ensemble: Ensemble, path: Path, first_stage: FirstStage) -> list[Retraining]:
    """Return the retraining of each member of an ensemble: the trial that replaces it, on all splits. `first_stage`
    says whether pretrainings are trained again as well. Raises UserError, which names the file `path` and the member,
    if a member cannot be retrained.
    """
    retrainings = []
    for index, member in enumerate(ensemble.members):
        try:
            retrainings.append(plan_retraining(member, first_stage))
        except UserError as error:
            raise UserError(f"{path}: members[{index}], {member.name!r}: {error}") from error
    return retrainings


def plan_retraining(member: Member, first_stage: FirstStage) -> Retraining:
    """Return the retraining of a member from `first_stage` ('pretraining' or 'finetuning') on. A member that isn't
    trained at all is kept as it is; with 'finetuning', so is one that was only pretrained. Raises UserError, with the
    reason, if it cannot be retrained.
    """
    if member.trial is None or member.epoch is None:
        raise UserError("its config is missing (a file of scores?): it cannot be retrained")
    trial = trials.from_json(member.trial)
    if trial.final_epoch is not None:
        raise UserError("it is already trained on all splits")
    if trial.teachers:
        raise UserError(
            "it is a student, whose teachers know the training splits only: retraining it on all splits would need "
            "retrained teachers; remove the member from the file, or retrain its teachers as an ensemble"
        )
    if trial.average_of:
        raise UserError(
            "it is a soup, the mean of several models, each of which would have to be retrained: remove the member "
            "from the file, or select an ensemble without soups"
        )
    if not trial.is_trained or (first_stage == "finetuning" and trial.pretraining is None):
        return Retraining(member, trial, is_retrained=False)
    if first_stage == "pretraining" and trial.pretraining and member.pretraining_epoch is None:
        raise UserError("the best epoch of its pretraining is unknown: use --retrain-from finetuning")
    return Retraining(member, extend_to_all_splits(trial, member, first_stage), is_retrained=True)


def extend_to_all_splits(trial: Trial, member: Member, first_stage: FirstStage) -> Trial:
    """Return a member's trial changed to train on the validation and the test split, too, from `first_stage`
    ('pretraining' or 'finetuning') on. Each retrained stage ends after the epoch that was best in the member's own
    training.
    """
    held_out = (trial.validation, trial.test)
    parent = trial.pretraining
    if parent and parent.is_trained and first_stage == "pretraining":
        final_epoch = find_final_epoch(parent, member.pretraining_epoch, "pretraining_epoch")
        parent = replace(parent, train=add_splits(parent.train, held_out), final_epoch=final_epoch)
    final_epoch = find_final_epoch(trial, member.epoch, "epoch")
    train = add_splits(trial.train, held_out)
    return replace(trial, train=train, final_epoch=final_epoch, snapshot_epoch=None, pretraining=parent)


def find_final_epoch(stage: Trial, epoch: int | None, name: str) -> int:
    """Return `epoch`, the best epoch of a stage, after checking that a retraining of the stage can end after it.
    `name` is what messages call the epoch.

    Raises UserError if `epoch` is None or the stage has no such epoch, or its learning rate depends on validation
    losses.
    """
    if not isinstance(stage.schedule, Schedule):
        alternative = ", or keep the pretraining with --retrain-from finetuning" if stage.stage == "pretraining" else ""
        raise UserError(
            f"the schedule of its {stage.stage} depends on validation losses, and there are none if all splits are "
            f"trained on: remove the member from the file{alternative}"
        )
    num_epochs = stage.schedule.epochs
    if epoch is None or not 1 <= epoch <= num_epochs:
        raise UserError(f"its {name} is {epoch!r}: it must be a whole number from 1 to {num_epochs}")
    return epoch


def add_splits(train: Sequence[str], further: Sequence[str]) -> tuple[str, ...]:
    """Return the training splits with further ones, each once."""
    return tuple(dict.fromkeys([*train, *further]))


def build_retrained_ensemble(
    ensemble: Ensemble, retrainings: Sequence[Retraining], runs: Mapping[Trial, tuple[str, str]]
) -> Ensemble:
    """Return the ensemble of the retrained members, with the weights of the selected ensemble. `retrainings` has the
    trial that replaces each member, and `runs` the signature and the MLflow run id of each of these trials.

    The returned ensemble contains the selected one, with its metrics, as `before_retraining`; the metrics of retrained
    members are unknown.
    """
    members = []
    for retraining in retrainings:
        selected = retraining.member
        member = Member(selected.name, selected.weight, selected.signature, selected.run_id, count=selected.count)
        if retraining.is_retrained:
            signature, run_id = runs[retraining.trial]
            member = replace(member, name=retraining.trial.name, signature=signature, run_id=run_id, retrained=True)
        members.append(member)
    return Ensemble(
        members=tuple(members),
        pool=ensemble.pool,
        metric=ensemble.metric,
        metrics=ensemble.metrics,
        method=ensemble.method,
        fusion=ensemble.fusion,
        direction=ensemble.direction,
        normalisation=ensemble.normalisation and Normalisation(ensemble.normalisation.temperature),
        before_retraining=ensemble,
    )

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
from trainables.records.ensemble_file import Ensemble, Member
from trainables.schedule import Schedule
from trainables.trial import Trial

FirstStage = Literal["pretraining", "finetuning"]
"""First stage to retrain: the pretraining and with it the fine-tuning, or the fine-tuning alone."""


@dataclass(frozen=True)
class Retraining:
    """A member of an ensemble, and the trial that replaces it."""

    member: Member
    trial: Trial
    is_retrained: bool


def plan_retrainings(ensemble: Ensemble, path: Path, begin: FirstStage) -> list[Retraining]:
    """Return the trials that replace the members.

    Raises UserError, with the path of the ensemble, if a member cannot be retrained.
    """
    retrainings = []
    for index, member in enumerate(ensemble.members):
        try:
            retrainings.append(plan_retraining(member, begin))
        except UserError as error:
            raise UserError(f"{path}: members[{index}], {member.name!r}: {error}") from error
    return retrainings


def plan_retraining(member: Member, begin: FirstStage) -> Retraining:
    """Return the trial that replaces a member. Raises UserError with the reason if it cannot be retrained."""
    if member.trial is None or member.epoch is None:
        raise UserError("its config is missing (a file of scores?): it cannot be retrained")
    trial = trials.from_json(member.trial)
    if trial.final_epoch is not None:
        raise UserError("it is already trained on all splits")
    if begin == "finetuning" and trial.pretraining is None:
        return Retraining(member, trial, is_retrained=False)
    if begin == "pretraining" and trial.pretraining and member.pretraining_epoch is None:
        raise UserError("the best epoch of its pretraining is unknown: use --retrain-from finetuning")
    return Retraining(member, extend_to_all_splits(trial, member, begin), is_retrained=True)


def extend_to_all_splits(trial: Trial, member: Member, begin: FirstStage) -> Trial:
    """Return the trial on all splits, with stages that end after the epochs that were best."""
    also = (trial.validation, trial.test)
    parent = trial.pretraining
    if parent and begin == "pretraining":
        last = find_final_epoch(parent, member.pretraining_epoch, "pretraining_epoch")
        parent = replace(parent, train=add_splits(parent.train, also), final_epoch=last)
    last = find_final_epoch(trial, member.epoch, "epoch")
    return replace(trial, train=add_splits(trial.train, also), final_epoch=last, pretraining=parent)


def find_final_epoch(stage: Trial, epoch: int | None, name: str) -> int:
    """Return the epoch after which a stage ends.

    Raises UserError if the stage has no such epoch, or its learning rate depends on validation losses.
    """
    if not isinstance(stage.schedule, Schedule):
        otherwise = ", or keep the pretraining with --retrain-from finetuning" if stage.stage == "pretraining" else ""
        raise UserError(
            f"the schedule of its {stage.stage} depends on validation losses, and there are none if all splits are "
            f"trained on: remove the member from the file{otherwise}"
        )
    most = stage.schedule.epochs
    if epoch is None or not 1 <= epoch <= most:
        raise UserError(f"its {name} is {epoch!r}: it must be a whole number from 1 to {most}")
    return epoch


def add_splits(train: Sequence[str], also: Sequence[str]) -> tuple[str, ...]:
    """Return the training splits with further ones, each once."""
    return tuple(dict.fromkeys([*train, *also]))


def build_retrained_ensemble(
    ensemble: Ensemble, retrainings: Sequence[Retraining], runs: Mapping[Trial, tuple[str, str]]
) -> Ensemble:
    """Return the ensemble of the retrained members, with the selected weights.

    `runs` maps each trial to its signature and run id. The selected ensemble, with its metrics, is stored in
    `before_retraining`; the metrics of retrained members are unknown.
    """
    members = []
    for one in retrainings:
        before = one.member
        member = Member(before.name, before.weight, before.signature, before.run_id, count=before.count)
        if one.is_retrained:
            signature, run_id = runs[one.trial]
            member = replace(member, name=one.trial.name, signature=signature, run_id=run_id, retrained=True)
        members.append(member)
    return Ensemble(
        members=tuple(members),
        pool=ensemble.pool,
        metric=ensemble.metric,
        metrics=ensemble.metrics,
        method=ensemble.method,
        fusion=ensemble.fusion,
        direction=ensemble.direction,
        before_retraining=ensemble,
    )

"""Splits of a store by role: pretraining, fine-tuning, validation and test."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from data import corpora
from data.errors import UserError
from data.runtime.options import option
from data.store.storage import Store, StoreOptions
from data.store.stored_split import open_split

logger = logging.getLogger("chorale.splits")


@dataclass(frozen=True)
class Splits:
    """Splits for pretraining, fine-tuning, validation and test, each named 'corpus/split'.

    Pretraining uses all splits in `pretrain`, and fine-tuning the split `train` alone.
    """

    train: str
    validation: str
    test: str
    pretrain: tuple[str, ...]

    def __post_init__(self) -> None:
        overlap = {self.train, *self.pretrain} & {self.validation, self.test}
        if overlap:
            raise UserError(
                f"{', '.join(sorted(overlap))} would be used both for training and for evaluation; "
                "remove it from one of the two"
            )


def find_splits(corpus: str, store: Store, pretrain_on: Sequence[str] = (), hold_out: Sequence[str] = ()) -> Splits:
    """Return the splits of a corpus by role, after checking that the store holds them. `pretrain_on` names the corpora
    and splits to pretrain on, `hold_out` those of these splits to leave out.

    Args:
        corpus: Corpus to fine-tune and evaluate on.
        store: Store that has to hold the splits.
        pretrain_on: Corpora or splits ('corpus/split') to pretrain on; by default the training split of the corpus.
        hold_out: Splits to leave out of `pretrain_on`.

    Raises:
        UserError: If the store lacks a split, or `hold_out` names a split that isn't in `pretrain_on`.
    """
    names = get_splits_by_role(corpus)
    present = store.list_splits()
    pretraining_splits = [split for name in pretrain_on for split in resolve_split_names(name, present)] or [
        names["train"]
    ]
    unknown = sorted(set(hold_out) - set(pretraining_splits))
    if unknown:
        raise UserError(
            f"--hold-out {unknown[0]}: it isn't one of the pretraining splits: {', '.join(pretraining_splits)}"
        )
    pretrain = tuple(dict.fromkeys(name for name in pretraining_splits if name not in hold_out))
    for name in dict.fromkeys([*names.values(), *pretrain]):
        open_split(store, name)
    return Splits(**names, pretrain=pretrain)


def get_splits_by_role(corpus: str) -> dict[str, str]:
    """Return the names of a corpus' splits, 'corpus/split', by role: 'train', 'validation' and 'test'. Raises UserError
    for a corpus whose splits have no roles, because it is only for pretraining.
    """
    names = {role: f"{corpus}/{split}" for role, split in corpora.load(corpus).ROLES.items()}
    if not names:
        raise UserError(f"{corpus} has no validation split; name it with --pretrain-on, together with another --corpus")
    return names


def is_built_on_demand(corpus: str, store: Store) -> bool:
    """Return whether a command has to prepare a corpus first: True for the built-in corpus if the store is a folder
    that lacks one of its splits.
    """
    return (
        corpus == "synthetic"
        and not store.is_remote
        and not set(get_splits_by_role(corpus).values()) <= set(store.list_splits())
    )


def resolve_split_names(name: str, present: Sequence[str]) -> list[str]:
    """Return the names of the splits that `name` stands for: 'corpus/split' for itself, a corpus for those of its
    pretraining splits that the store holds.

    `present` are the splits in the store. Raises UserError if the store holds none of them.
    """
    if "/" in name and name not in present:
        raise UserError(f"the store holds no split {name!r} (it holds: {', '.join(present)})")
    if "/" in name:
        return [name]
    pretraining_splits = [f"{name}/{split}" for split in corpora.load(name).PRETRAINING]
    absent = [split for split in pretraining_splits if split not in present]
    if absent == pretraining_splits:
        raise UserError(
            f"the store holds none of {', '.join(pretraining_splits)}; prepare it: python data/prepare.py {name}"
        )
    for split in absent:
        logger.warning("%s isn't in the store: pretraining without it", split)
    return [split for split in pretraining_splits if split in present]


@dataclass(frozen=True, kw_only=True)
class SplitOptions(StoreOptions):
    """Options of commands that train: the store and its splits."""

    corpus: str = option(f"corpus to fine-tune on and evaluate on: {', '.join(corpora.list_names())}", "synthetic")
    pretrain_on: tuple[str, ...] = option(
        "corpora or corpus/split (default: the training split of --corpus)",
        (), metavar="CORPUS")  # fmt: skip
    hold_out: tuple[str, ...] = option("splits of --pretrain-on to leave out", (), metavar="SPLIT")

    def resolve_splits(self, store: Store) -> Splits:
        """Return the splits that the options name. Raises UserError if the store doesn't hold them."""
        return find_splits(self.corpus, store, self.pretrain_on, self.hold_out)

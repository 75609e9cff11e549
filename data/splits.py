"""Which splits of a store models are pretrained on, fine-tuned on, and judged by."""

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
    """The splits to train, validate and test on, 'corpus/split'; fine-tuning is on `train` alone."""

    train: str
    validation: str
    test: str
    pretrain: tuple[str, ...]

    def __post_init__(self) -> None:
        heard = {self.train, *self.pretrain} & {self.validation, self.test}
        if heard:
            raise UserError(f"{', '.join(sorted(heard))} would be trained on and judged by: leave it out of one")


def find_splits(corpus: str, store: Store, pretrain_on: Sequence[str] = (), hold_out: Sequence[str] = ()) -> Splits:
    """The corpus' splits in the store.

    `pretrain_on` names corpora or splits, by default the split to train on; of what they name, `hold_out` is left out.
    Raises UserError for what the store doesn't hold.
    """
    names = roles(corpus)
    present = store.splits()
    wanted = [split for name in pretrain_on for split in splits_of(name, present)] or [names["train"]]
    unknown = sorted(set(hold_out) - set(wanted))
    if unknown:
        raise UserError(f"--hold-out {unknown[0]}: it isn't among what is pretrained on: {', '.join(wanted)}")
    pretrain = tuple(dict.fromkeys(name for name in wanted if name not in hold_out))
    for name in dict.fromkeys([*names.values(), *pretrain]):
        open_split(store, name)
    return Splits(**names, pretrain=pretrain)


def roles(corpus: str) -> dict[str, str]:
    """The splits of a corpus by what they are for: train, validation, test. Raises UserError where it has none."""
    names = {role: f"{corpus}/{split}" for role, split in corpora.load(corpus).ROLES.items()}
    if not names:
        raise UserError(f"{corpus} has no split to validate on: name it with --pretrain-on beside another --corpus")
    return names


def is_built_on_demand(corpus: str, store: Store) -> bool:
    """Return whether a command has to prepare a corpus: the built-in one, where a local store doesn't hold it."""
    return corpus == "synthetic" and not store.is_remote and not set(roles(corpus).values()) <= set(store.splits())


def splits_of(name: str, present: Sequence[str]) -> list[str]:
    """A split, 'corpus/split', or the splits in the store that a corpus is pretrained on."""
    if "/" in name and name not in present:
        raise UserError(f"the store holds no split {name!r} (it holds: {', '.join(present)})")
    if "/" in name:
        return [name]
    wanted = [f"{name}/{split}" for split in corpora.load(name).PRETRAINING]
    absent = [split for split in wanted if split not in present]
    if absent == wanted:
        raise UserError(f"the store holds none of {', '.join(wanted)}; prepare it: python data/prepare.py {name}")
    for split in absent:
        logger.warning("%s isn't in the store: pretraining goes without it", split)
    return [split for split in wanted if split in present]


@dataclass(frozen=True, kw_only=True)
class SplitOptions(StoreOptions):
    """The options of commands that train: the store, and the splits that are used of it."""

    corpus: str = option(f"corpus to fine-tune on and evaluate on: {', '.join(corpora.names())}", "synthetic")
    pretrain_on: tuple[str, ...] = option(
        "corpora or splits (corpus/split) to pretrain on (default: the training split of --corpus)",
        (), metavar="CORPUS")  # fmt: skip
    hold_out: tuple[str, ...] = option("splits of --pretrain-on to leave out", (), metavar="SPLIT")

    def find(self, whole: Store) -> Splits:
        """Return the splits that the options name. Raises UserError for what the store doesn't hold."""
        return find_splits(self.corpus, whole, self.pretrain_on, self.hold_out)

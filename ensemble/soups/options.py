"""Command-line options of model soups, and the soups of a pool that they ask for."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.errors import UserError
from data.runtime.options import flag, option
from data.store.storage import Store
from ensemble.pool.candidates import Candidate
from ensemble.selection.pool_choice import PoolChooser
from ensemble.soups.averages import AverageEmbedder
from ensemble.soups.choice import ChosenSoup, SoupChooser, add_soups
from ensemble.soups.groups import find_groups
from trainables.execution.session import RunContext
from trainables.records.ensemble_file import BANK_FUSIONS
from trainables.records.ledger import Sweep
from trainables.records.run_storage import RunStorage

logger = logging.getLogger("chorale.soups")


@dataclass(frozen=True)
class PoolSoups:
    """Soups of a pool: those chosen on all queries, and how they are chosen on others."""

    chooser: SoupChooser
    chosen: tuple[ChosenSoup, ...]
    others: tuple[Candidate, ...]  # candidates of the pool besides the soups

    @property
    def candidates(self) -> list[Candidate]:
        """Candidates of the pool, the soups last."""
        return add_soups(self.others, [soup for chosen in self.chosen for soup in chosen.candidates])

    def choose_candidates(self, include_Q: NDArray[np.bool_]) -> list[Candidate]:
        """Return the candidates of the pool with soups that are chosen on the queries of a mask [Q]."""
        return add_soups(self.others, self.chooser.choose_soups(include_Q))


@dataclass(frozen=True, kw_only=True)
class SoupOptions:
    """Command-line options of model soups."""

    soup: bool = option("also select from averages of the weights of related trials (soups)", False)
    store: str | None = option("store that --soup embeds from (default: the sweep's)", None)
    weights: Path | None = option("folder of published checkpoints that the sweep used, for --soup", None)

    def __post_init__(self) -> None:
        for name in ("store", "weights"):
            if getattr(self, name) is not None and not self.soup:
                raise UserError(f"{flag(name)} only applies to --soup: leave it out, or add --soup")

    def make_soups(
        self, pool: PoolChooser, sweeps: Sequence[Sweep], runs: RunStorage, scratch: Path
    ) -> PoolSoups | None:
        """Return the soups of the trials of a pool, computed and stored as trials; None without --soup.

        Args:
            pool: the candidates, the metric and the direction of the selection.
            sweeps: the sweeps of the trials.
            runs: the run storage with their models.
            scratch: folder for temporary files.

        Raises:
            UserError: if no two trials can be averaged, or the store isn't known or lacks a split.
        """
        if not self.soup:
            return None
        if not sweeps:
            raise UserError(
                "--soup: files of scores have no weights that could be averaged: name a --sweep, or leave --soup out"
            )
        known = [str(sweep.description["store"]) for sweep in sweeps if sweep.description.get("store")]
        if not self.store and not known:
            raise UserError(f"--soup: the sweep {sweeps[0].name} doesn't say which store it used: name it with --store")
        store = Store.of(self.store or known[0]).location
        weights = self.weights.resolve() if self.weights else None
        site = RunContext(store, runs, pool.ledger.tracking_uri, weights)
        pool_groups = find_groups(pool.candidates, pool.ledger, site)
        for note in pool_groups.notes:
            logger.warning(note)
        averages = AverageEmbedder(site, pool.ledger, pool_groups.fingerprints, scratch, pool.fusion in BANK_FUSIONS)
        reference = next(candidate for candidate in pool.candidates if candidate.run)
        chooser = SoupChooser(pool_groups.groups, averages, reference, pool.metric, pool.direction)
        chosen = chooser.store_soups(sweeps[0].run_id)
        for soup in chosen:
            logger.info("%s: %d of %d kept in the greedy soup", soup.group.origin, len(soup.kept), len(soup.order))
        return PoolSoups(chooser, tuple(chosen), tuple(pool.candidates))

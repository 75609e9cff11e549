"""Choice of each trial's epoch, of soups and of the temperature of a query bank, for the queries of a selection.

All are chosen on the validation split, so nested cross-validation chooses them again within its folds.

Shapes: Q queries.
"""

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ensemble.pool import candidates as pool
from ensemble.pool import score_matrices
from ensemble.pool.candidates import EMBEDDINGS_FILES, Candidate, LoadEmbeddings, Role
from ensemble.pool.query_bank import BankLoader, require_banks
from ensemble.pool.score_matrices import ScoreMatrices
from ensemble.selection import epoch_choice, greedy
from ensemble.selection.cross_validation import PoolForQueries
from ensemble.selection.greedy import SelectionConfig
from ensemble.selection.pruned_pool import PrunedPool, prune
from trainables.records.ensemble_file import BANK_FUSIONS, Direction, Fusion
from trainables.records.ledger import Ledger

ChooseCandidates = Callable[[NDArray[np.bool_]], Sequence[Candidate]]
"""Function from a mask of queries [Q] to the candidates of a selection on them."""

PoolEntries = tuple[tuple[str, str], ...]
"""Keys of candidates, each with the file of its embeddings; (): all candidates of the pool with those of their best
epochs.
"""


def read_scores(
    candidates: Sequence[Candidate],
    role: Role,
    ledger: Ledger,
    fusion: str,
    direction: str,
    files: Sequence[str] | None = None,
    load: LoadEmbeddings | None = None,
) -> ScoreMatrices:
    """Return the candidates' score matrices on the split with this role, in a direction ('t2a' or 'a2t') and with a
    fusion applied. `files` has, for each candidate, the artifact with its embeddings if not all are those of the best
    epochs; `load` loads the embeddings if the fusion is by a query bank.
    """
    scores = pool.load_pool(ledger, candidates, role, files, load)
    return score_matrices.apply_fusion(score_matrices.transpose(scores) if direction == "a2t" else scores, fusion)


def make_loader(ledger: Ledger, fusion: str, temperature: float | None) -> LoadEmbeddings | None:
    """Return the function that loads embeddings for a fusion by a query bank with this temperature; None for any other
    fusion, whose temperature is None.
    """
    return None if temperature is None else BankLoader(ledger, fusion, [temperature]).at(temperature)


class PoolChooser:
    """The candidates' scores on the validation split, reduced to what can affect the metric, with epochs and the
    temperature chosen on any of the queries.

    The temperature is the one with which `config` selects the ensemble with the highest metric, the weakest of equal
    ones. Epochs are chosen by scores without normalisation, as in training.
    """

    def __init__(
        self, ledger: Ledger, candidates: Sequence[Candidate], metric: str, fusion: Fusion, direction: Direction,
        config: SelectionConfig,
    ) -> None:  # fmt: skip
        self.ledger, self.candidates, self.config = ledger, candidates, config
        self.metric, self.fusion, self.direction = metric, fusion, direction
        self.by_key = {candidate.key: candidate for candidate in candidates}
        self.banks: BankLoader | None = None
        self.temperatures: tuple[float | None, ...] = (None,)
        if fusion in BANK_FUSIONS:
            require_banks(ledger, candidates)
            self.banks = BankLoader(ledger, fusion)
            self.temperatures = tuple(self.banks.temperatures)
        self.prune_once = functools.lru_cache(maxsize=len(self.temperatures))(self.prune)

    def read_scores(self, temperature: float | None, entries: PoolEntries = ()) -> ScoreMatrices:
        """Return the scores of the candidates in `entries` on the validation split, normalised with this temperature.
        Their queries and clips have the order of the pool's first candidate.
        """
        load = self.banks.at(temperature) if self.banks and temperature is not None else None
        candidates, files = list(self.candidates), None
        if entries:
            candidates = [self.candidates[0], *(self.by_key[key] for key, _ in entries)]
            files = [EMBEDDINGS_FILES["validation"], *(file for _, file in entries)]
        scores = read_scores(candidates, "validation", self.ledger, self.fusion, self.direction, files, load)
        return scores.select(range(1, len(candidates))) if entries else scores

    def prune(self, temperature: float | None, entries: PoolEntries = ()) -> PrunedPool:
        """Return the scores of the candidates in `entries`, reduced to those that can affect the metric. Candidates are
        named by their keys: a trial's signature, or the name of a file of scores.
        """
        pruned = prune(self.read_scores(temperature, entries), self.metric)
        return replace(pruned, names=tuple(key for key, _ in entries) or tuple(one.key for one in self.candidates))

    def choose(
        self, include_Q: NDArray[np.bool_] | None = None, entries: PoolEntries = ()
    ) -> tuple[PrunedPool, float | None]:
        """Return two values: the pruned pool of all queries, with the candidates in `entries`, and with the temperature
        that is best on the queries of the mask, by default on all of them; and that temperature.
        """
        if len(self.temperatures) == 1:
            return self.prune_once(self.temperatures[0], entries), self.temperatures[0]
        pools = ((self.prune_once(temperature, entries), temperature) for temperature in self.temperatures)
        return max(pools, key=lambda pair: greedy.select(pair[0], self.config, include_Q).value)  # the first of equals

    def with_candidates(self, candidates: Sequence[Candidate]) -> "PoolChooser":
        """Return a chooser of these candidates, the trials among which have query banks if the fusion needs them."""
        other = copy.copy(self)
        other.candidates, other.by_key = candidates, {candidate.key: candidate for candidate in candidates}
        other.prune_once = functools.lru_cache(maxsize=len(self.temperatures))(other.prune)
        return other

    def make_pool_for(
        self, validation: ScoreMatrices, choose_candidates: ChooseCandidates | None = None
    ) -> tuple[PoolForQueries, bool]:
        """Return two values: a function from a mask of queries to the pruned pool, in which each trial's epoch, the
        temperature and, with `choose_candidates`, the candidates are the best on these queries; and whether it chooses
        among all epochs of all candidates, not only among those whose embeddings are stored.

        The number of candidates may differ between masks: a snapshot is one unless its epoch is the best.

        Args:
            validation: the candidates' scores, for its relevant clips.
            choose_candidates: function from a mask of queries to the candidates, if they depend on it, as soups do.
        """
        epochs = epoch_choice.load_epoch_scores(self.ledger, self.candidates)
        snapshots = [snapshot for training in epochs.values() for snapshot in training.snapshots]
        self.by_key |= {snapshot.key: snapshot for snapshot in snapshots}

        @functools.cache
        def choose_cached(mask_bytes: bytes) -> PrunedPool:
            include_Q = np.frombuffer(mask_bytes, bool)
            is_a2t = self.direction == "a2t"
            captions = epoch_choice.select_captions(validation, include_Q) if is_a2t else include_Q
            candidates = choose_candidates(include_Q) if choose_candidates else self.candidates
            self.by_key |= {candidate.key: candidate for candidate in candidates}
            is_same = not epochs and not choose_candidates
            entries = [] if is_same else epoch_choice.list_candidates(candidates, epochs, captions)
            return self.choose(include_Q, tuple((candidate.key, file) for candidate, file in entries))[0]

        redoes_epochs = epoch_choice.repeats_all_choices(self.candidates, epochs)
        return lambda include_Q: choose_cached(include_Q.tobytes()), redoes_epochs

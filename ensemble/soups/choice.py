"""Choice of the parts of model soups by the validation metric (Wortsman et al. 2022), on any of the queries.

A greedy soup starts with the best part. The others follow in the order of their own metric, and a part is kept if the
metric of the average with it isn't lower than that without it. A uniform soup has all parts.

Shapes: Q queries.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ensemble.pool import score_matrices
from ensemble.pool.candidates import Candidate, Role, load_pool
from ensemble.pool.score_matrices import ScoreMatrices
from ensemble.selection.pruned_pool import prune
from ensemble.soups.averages import AverageEmbedder
from ensemble.soups.groups import SoupGroup, SoupPart
from trainables.records.embeddings import Embeddings
from trainables.records.ensemble_file import Direction


@dataclass(frozen=True)
class ChosenSoup:
    """Soups of a group of parts."""

    group: SoupGroup
    order: tuple[SoupPart, ...]  # by descending metric
    kept: tuple[SoupPart, ...]  # parts of the greedy soup, the best first
    greedy: Candidate | None  # None if only the best part is kept
    uniform: Candidate

    @property
    def candidates(self) -> list[Candidate]:
        """The soups, each once."""
        soups = [*([self.greedy] if self.greedy else []), self.uniform]
        return list({soup.signature: soup for soup in soups}.values())


def choose_greedily(num_parts: int, score: Callable[[Sequence[int]], int]) -> tuple[list[int], list[int]]:
    """Return two lists of the indices of parts: all in the order in which they are tried, and those that are kept.

    Args:
        num_parts: number of parts.
        score: function from the indices of parts to the score of their average; the higher, the better. It is called
            once for each part alone, and once for each average that is tried.
    """
    single = [score([part]) for part in range(num_parts)]
    order = sorted(range(num_parts), key=lambda part: -single[part])
    kept, best = order[:1], single[order[0]]
    for part in order[1:]:
        value = score([*kept, part])
        if value >= best:
            kept, best = [*kept, part], value
    return order, kept


@dataclass
class SoupChooser:
    """Soups of the groups of a pool, chosen by one metric in one direction, without normalisation by a query bank.

    The score of an average is an integer for each query, so that equal metrics are equal; it is kept for other subsets
    of the queries.
    """

    groups: Sequence[SoupGroup]
    averages: AverageEmbedder
    reference: Candidate  # a trial of the pool, whose order of queries is that of the pool
    metric: str
    direction: Direction
    scores: dict[frozenset[str], NDArray[np.int64]] = field(default_factory=dict)
    loaded: dict[str, Embeddings] = field(default_factory=dict)  # of the reference, by file

    def load(self, candidate: Candidate, file: str) -> Embeddings:
        """Return the embeddings of a candidate in a file. Those of the reference are read once."""
        if candidate is not self.reference:
            return self.averages.ledger.load_embeddings(candidate.trial_run, file)
        if file not in self.loaded:
            self.loaded[file] = self.averages.ledger.load_embeddings(candidate.trial_run, file)
        return self.loaded[file]

    def load_scores(self, candidates: Sequence[Candidate], role: Role) -> ScoreMatrices:
        """Return the score matrices of candidates on the split with this role, with queries and clips in the order of
        the pool.
        """
        source = load_pool(self.averages.ledger, [self.reference, *candidates], role, load=self.load)
        selected = source.select(range(1, len(candidates) + 1))
        return score_matrices.transpose(selected) if self.direction == "a2t" else selected

    def score_average(self, parts: Sequence[SoupPart]) -> NDArray[np.int64]:
        """Return the integer score of the average of parts on each query [Q] of the validation split."""
        key = frozenset(part.signature for part in parts)
        if key not in self.scores:
            self.scores[key] = prune(
                self.load_scores([self.averages.embed(parts)], "validation"), self.metric
            ).single_scores[0]
        return self.scores[key]

    def choose_parts(
        self, group: SoupGroup, include_Q: NDArray[np.bool_] | None = None
    ) -> tuple[list[SoupPart], list[SoupPart]]:
        """Return two lists of the parts of a group, chosen on the queries of a mask [Q] or, without it, on all of them:
        all parts by descending metric, those with equal metrics sorted by signature; and those of the greedy soup.
        """

        def score(indices: Sequence[int]) -> int:
            scores_Q = self.score_average([group.parts[index] for index in indices])
            return int(scores_Q.sum() if include_Q is None else scores_Q[include_Q].sum())

        order, kept = choose_greedily(len(group.parts), score)
        return [group.parts[index] for index in order], [group.parts[index] for index in kept]

    def store_soups(self, sweep_run_id: str | None) -> list[ChosenSoup]:
        """Return the soups of all groups, chosen on all queries. They are stored as trials, and logged under the MLflow
        run `sweep_run_id`.
        """
        chosen = []
        for group in self.groups:
            order, kept = self.choose_parts(group)
            greedy = self.averages.store(kept, sweep_run_id) if len(kept) > 1 else None
            uniform = self.averages.store(group.parts, sweep_run_id)
            chosen.append(ChosenSoup(group, tuple(order), tuple(kept), greedy, uniform))
        return chosen

    def choose_soups(self, include_Q: NDArray[np.bool_]) -> list[Candidate]:
        """Return the soups of all groups, with greedy soups chosen on the queries of a mask [Q]. A greedy soup that
        isn't stored as a trial lies in a folder for temporary files.
        """
        soups = []
        for group in self.groups:
            _, kept = self.choose_parts(group, include_Q)
            soups += [self.averages.embed(parts) for parts in (kept, group.parts) if len(parts) > 1]
        return soups


def add_soups(candidates: Sequence[Candidate], soups: Iterable[Candidate]) -> list[Candidate]:
    """Return candidates followed by those soups that aren't among them, each once."""
    return list({candidate.key: candidate for candidate in (*candidates, *soups)}.values())

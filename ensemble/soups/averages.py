"""Averages of trials' weights as candidates: embedded for a comparison, or stored as soups."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ensemble.pool.candidates import EMBEDDINGS_FILES, Candidate, Role
from ensemble.soups.groups import SoupPart
from trainables.execution.session import RunContext
from trainables.execution.soups import Average, embed_average, store_soup
from trainables.records.embeddings import BANK_FILE, EMBEDDINGS_FOLDER
from trainables.records.ledger import Ledger, TrialRun
from trainables.signature import Fingerprints, Relations, sign
from trainables.trial import make_soup

logger = logging.getLogger("chorale.soups")


@dataclass
class AverageEmbedder:
    """Averages of parts as candidates. Each set of parts is embedded at most once, into a folder for temporary files,
    whatever the order of the parts; a single part that is a candidate already, and a finished soup, never.
    """

    site: RunContext
    ledger: Ledger
    fingerprints: Fingerprints
    scratch: Path
    with_bank: bool  # whether averages need a query bank, for a fusion that normalises scores
    finished: dict[str, Candidate] = field(default_factory=dict)  # soups by signature
    num_embedded: int = 0

    def describe(self, parts: Sequence[SoupPart]) -> Average:
        """Return the average of parts, of which there is at least one."""
        trial = make_soup(part.trial for part in parts) if len(parts) > 1 else parts[0].trial
        return Average(trial, sign(trial, self.fingerprints), tuple(part.signature for part in parts))

    def embed(self, parts: Sequence[SoupPart], role: Role = "validation") -> Candidate:
        """Return the average of parts as a candidate with embeddings of the split with this role. Raises UserError if
        the model of a part is missing.
        """
        if len(parts) == 1 and parts[0].candidate:
            return parts[0].candidate
        average = self.describe(parts)
        if finished := self.find_finished(average):
            return finished
        folder = self.scratch / average.signature
        file = EMBEDDINGS_FILES[role]
        if not (folder / EMBEDDINGS_FOLDER / file).exists():
            self.num_embedded += 1
            logger.info("%s (%d models) embeds %s", average.trial.name, len(parts), getattr(average.trial, role))
            files = [(getattr(average.trial, role), file)]
            files += [("", BANK_FILE)] if self.with_bank and role == "validation" else []
            embed_average(average, self.site, files, folder, self.scratch / "models")
        return to_candidate(average, folder)

    def find_finished(self, average: Average) -> Candidate | None:
        """Return an average as a candidate if it is a soup that has finished, otherwise None."""
        if average.signature not in self.finished and len(average.models) > 1:
            run = self.ledger.find_finished_trial(average.signature)
            if run:
                self.finished[average.signature] = Candidate(run.name, average.signature, run)
        return self.finished.get(average.signature)

    def store(self, parts: Sequence[SoupPart], sweep_run_id: str | None) -> Candidate:
        """Return the soup of at least two parts as a finished trial, which is computed unless the ledger and the run
        storage have it. A new one is logged under the MLflow run `sweep_run_id`.
        """
        average = self.describe(parts)
        store_soup(average, self.site, self.ledger, sweep_run_id)
        self.finished.pop(average.signature, None)  # its run may have changed
        soup = self.find_finished(average)
        assert soup is not None
        return soup


def to_candidate(average: Average, folder: Path) -> Candidate:
    """Return an average that is no trial in the ledger as a candidate, whose files lie in a local folder."""
    relations = Relations(average_of=tuple(sorted(average.models)) if len(average.models) > 1 else ())
    run = TrialRun(
        f"average-{average.signature}", average.trial.name, average.signature, "FINISHED", relations=relations,
        artifacts=folder.as_uri(),
    )  # fmt: skip
    return Candidate(run.name, run.signature, run)

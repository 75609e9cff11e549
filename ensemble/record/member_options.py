"""Command-line options that locate the members of a selected ensemble."""

from dataclasses import dataclass
from pathlib import Path

from data.runtime.options import group, option, positional
from ensemble.pool.candidates import Candidate, Role
from ensemble.record import build
from trainables.records.ensemble_file import Ensemble, read_ensemble
from trainables.records.ledger import Ledger
from trainables.records.mlflow_ledger import LedgerOptions


@dataclass(frozen=True, kw_only=True)
class MemberOptions:
    """Command-line options that locate the members of a selected ensemble on a split."""

    ensemble: Path = positional("ensemble.json to read")
    split: Role = option("split to read", "test")
    pool: tuple[Path, ...] = option("folders of members that are files of scores", (), metavar="DIR")
    ledger: LedgerOptions = group("candidates")

    def read(self) -> tuple[Ensemble, Ledger, list[Candidate]]:
        """Read the file ensemble.json. Return the ensemble, the ledger, and the ensemble's members as candidates."""
        ensemble = read_ensemble(self.ensemble)
        ledger = self.ledger.create() if self.pool else self.ledger.open()
        return ensemble, ledger, build.find_member_candidates(ensemble, self.ensemble, ledger, self.pool, self.split)


@dataclass(frozen=True, kw_only=True)
class ExportOptions(MemberOptions):
    """Command-line options of the export of an index."""

    out: Path | None = option("folder of the index (default: that of ensemble.json)", None)

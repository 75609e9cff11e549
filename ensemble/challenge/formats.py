"""A system's scores as the files that a challenge asks for.

LABEL is LASTNAME_INSTITUTE_TASK_NUMBER, the number being 1 to 4, and a submission is one zip of up to four systems
(cited: DCASE's pages on submission). The technical report that belongs beside them is for people to write.

DCASE 2023, task 6b: a row for each caption of the challenge's table, in its order: the caption, and the names of the
ten best files.

    LABEL/LASTNAME_INSTITUTE_task6b_submission_NUMBER_output.csv       what the system answers
    LABEL/LASTNAME_INSTITUTE_task6b_submission_NUMBER_metadata.yaml    what it is

The table's name is cited: from public code that writes it after the task's rules
(https://dcase.community/challenge2023/task-language-based-audio-retrieval#submission). Assumed, after it: the
description's name, and that the folder has the label's.

DCASE 2025, task 6: the scores of all files, one column each, under the same captions.

    LABEL/LABEL.output.csv
    LABEL/LABEL.meta.yaml

Captions that occur twice are two rows.

Equal scores are ranked by file name, in the order of code points. Files that couldn't be decoded are ranked last, by
file name, with scores below all others.

Shapes: Q queries, A files that were decoded, F all files of the evaluation set, sorted by name.
"""

import csv
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from data.corpora import clotho
from data.errors import UserError, unknown_name
from data.schema import file_of
from data.store.files import appearing_whole
from data.store.stored_split import StoredSplit

MOST_SYSTEMS = 4

RANKED = 10
"""File names in a row of 2023's output."""

WRITTEN_AT = (1980, 1, 1, 0, 0, 0)
"""Of all files in a zip, so that the same files make the same zip: the earliest that the format knows."""

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Evaluation:
    """What a challenge asks: which of these files answers which of these sentences."""

    split: str  # 'corpus/split'
    queries: list[str]  # in the order of the challenge's table
    heard: list[str]  # names of the files that were decoded, in the order of the split's clips
    unheard: Mapping[str, str]  # those that weren't, and why

    @property
    def files(self) -> list[str]:
        """The names of all files, sorted."""
        return sorted([*self.heard, *self.unheard])


def evaluation_of(split: StoredSplit) -> Evaluation:
    """The evaluation set that a store's split holds. Raises UserError for one without queries or without clips."""
    queries = split.queries["text"].to_pylist()
    if not queries:
        raise UserError(f"{split.store}/{split.name} has no queries: there is nothing to retrieve by")
    heard = [file_of(clip_id) for clip_id in split.clip_ids]
    if not heard:
        raise UserError(f"{split.store}/{split.name} has no clips: there is nothing to rank")
    unheard = {file_of(clip_id): reason for clip_id, reason in split.undecodable().items()}
    for aside in split.clips_set_aside:
        if aside.kind == "absent":
            unheard.setdefault(clotho.key(aside.file), aside.reason)
    return Evaluation(split.name, queries, heard, dict(sorted(unheard.items())))


def of_all_files(scores_QA: Scores, evaluation: Evaluation) -> Scores:
    """Scores [Q, F] of all files: those that couldn't be decoded lie below all others, each below the one before."""
    place = {name: column for column, name in enumerate(evaluation.files)}
    scores_QF = np.empty((len(scores_QA), len(place)))
    scores_QF[:, [place[name] for name in evaluation.heard]] = scores_QA
    last = scores_QA.min() - 1 - np.arange(len(evaluation.unheard))
    scores_QF[:, [place[name] for name in evaluation.unheard]] = last
    return scores_QF


def best_files(scores_QF: Scores, number: int) -> NDArray[np.int64]:
    """The columns of the best files of each query [Q, number], the best first; of equal scores the first column."""
    return np.argsort(-scores_QF, axis=1, kind="stable")[:, :number]


def ranked_rows(scores_QF: Scores, evaluation: Evaluation) -> Iterator[Sequence[Any]]:
    """The rows of 2023's output, header included."""
    files = evaluation.files
    yield ["caption", *(f"fname_{rank}" for rank in range(1, RANKED + 1))]
    for query, columns in zip(evaluation.queries, best_files(scores_QF, RANKED).tolist(), strict=True):
        yield [query, *(files[column] for column in columns)]


def score_rows(scores_QF: Scores, evaluation: Evaluation) -> Iterator[Sequence[Any]]:
    """The rows of 2025's output, header included; numbers with all their digits, so that they rank as they did."""
    yield ["index", *evaluation.files]
    for query, scores in zip(evaluation.queries, scores_QF.tolist(), strict=True):
        yield [query, *scores]


@dataclass(frozen=True)
class Challenge:
    """A year's challenge: how labels call its task, what an output's rows are, how many files a row needs, and names.

    A system is named by its prefix, LASTNAME_INSTITUTE, and its number.
    """

    task: str
    rows: Callable[[Scores, Evaluation], Iterator[Sequence[Any]]]
    fewest_files: int
    output: str  # the file's name, after LASTNAME_INSTITUTE_TASK, with {number} in it
    meta: str

    def label(self, prefix: str, number: int) -> str:
        """A system's label."""
        return f"{prefix}_{self.task}_{number}"

    def output_name(self, prefix: str, number: int) -> str:
        """Where a system's answers lie, from the submission's root."""
        return self._path(prefix, number, self.output)

    def meta_name(self, prefix: str, number: int) -> str:
        """Where a system's description lies, from the submission's root."""
        return self._path(prefix, number, self.meta)

    def _path(self, prefix: str, number: int, ending: str) -> str:
        return f"{self.label(prefix, number)}/{prefix}_{self.task}{ending.format(number=number)}"


CHALLENGES = {
    "dcase2023": Challenge(
        "task6b", ranked_rows, RANKED, "_submission_{number}_output.csv", "_submission_{number}_metadata.yaml"
    ),
    "dcase2025": Challenge("task6", score_rows, 1, "_{number}.output.csv", "_{number}.meta.yaml"),
}


def challenge(name: str) -> Challenge:
    """A challenge by name; an unknown one is answered with the known."""
    if name not in CHALLENGES:
        raise unknown_name("format", name, sorted(CHALLENGES))
    return CHALLENGES[name]


def require_files(name: str, evaluation: Evaluation) -> None:
    """Raise UserError where an evaluation set has too few files for a challenge's format."""
    fewest, number = challenge(name).fewest_files, len(evaluation.files)
    if number < fewest:
        raise UserError(f"{evaluation.split} has {number} files: a row of {name} ranks {fewest}")


def write_csv(path: Path, rows: Iterator[Sequence[Any]]) -> None:
    """Write a CSV file as RFC 4180 has it, in UTF-8: what holds commas, quotes or line breaks stands in quotes."""
    with appearing_whole(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


def write_yaml(path: Path, value: Mapping[str, Any]) -> None:
    """Write a YAML file that appears whole or not at all."""
    with appearing_whole(path) as temporary:
        temporary.write_text(yaml.safe_dump(dict(value), allow_unicode=True, sort_keys=False, width=100), "utf-8")


def write_zip(path: Path, folder: Path, names: Sequence[str]) -> None:
    """Pack files, named from a folder on; the same ones make the same bytes."""
    with appearing_whole(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(
                zipfile.ZipInfo(name, WRITTEN_AT), (folder / name).read_bytes(), compress_type=zipfile.ZIP_DEFLATED
            )

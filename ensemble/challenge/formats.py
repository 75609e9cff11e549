"""Output formats of challenges: the files that hold a system's scores.

LABEL is LASTNAME_INSTITUTE_TASK_NUMBER with a number from 1 to 4, and a submission is one zip of up to four systems
(cited: DCASE's pages on submission). The technical report, which must accompany them, is not generated. Lines end with
a line feed, as in the tables that the baselines write with pandas.

DCASE 2023, task 6b: one row per caption of the challenge's table, in its order, with the caption and the names of the
ten best files.

    task6/LABEL/LASTNAME_INSTITUTE_task6b_submission_NUMBER_output.csv       ranked files
    task6/LABEL/LASTNAME_INSTITUTE_task6b_submission_NUMBER_metadata.yaml    metadata of the system

The name of the output is cited, from public code that follows the task's rules
(https://dcase.community/challenge2023/task-language-based-audio-retrieval#submission). The name of the metadata and
that of the folder are assumed, by analogy.

DCASE 2025, task 6: one row per caption, in the same order, with the scores of all files, one column each.

    task6/LABEL/LABEL.output.csv
    task6/LABEL/LABEL.meta.yaml

A caption that occurs twice has two rows. A technical report is named LABEL.technical_report.pdf (cited: the reports on
DCASE's pages).

Files with equal scores are ranked by name, in the order of code points. Files that could not be decoded are ranked
last, by name, with scores below all others.

Shapes: Q queries, A decoded files, F all files of the evaluation set, sorted by name.
"""

import re
import string
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from data.corpora import clotho
from data.errors import UserError, unknown_name_error
from data.schema import get_file_name
from data.store.files import atomic_write
from data.store.stored_split import StoredSplit

MAX_SYSTEMS = 4

NUM_RANKED = 10
"""Number of file names in a row of 2023's output."""

ZIP_TIME = (1980, 1, 1, 0, 0, 0)
"""Time stamp of all files in a zip, so that the same files make the same zip: the earliest that the format allows."""

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class EvaluationSet:
    """Evaluation set of a challenge: queries, and the files to rank for each."""

    split: str  # 'corpus/split'
    queries: list[str]  # in the order of the challenge's table
    decoded: list[str]  # names of the decoded files, in the order of the split's clips
    undecodable: Mapping[str, str]  # names of the files that could not be decoded, with the reasons

    @property
    def files(self) -> list[str]:
        """Names of all files, decoded or not, sorted."""
        return sorted([*self.decoded, *self.undecodable])


def read_evaluation_set(split: StoredSplit) -> EvaluationSet:
    """Return the evaluation set that a split of a store contains. Raises UserError if it has no queries or no clips."""
    queries = split.queries["text"].to_pylist()
    if not queries:
        raise UserError(f"{split.store}/{split.name} has no queries to evaluate")
    decoded = [get_file_name(clip_id) for clip_id in split.clip_ids]
    if not decoded:
        raise UserError(f"{split.store}/{split.name} has no clips to rank")
    undecodable = {get_file_name(clip_id): reason for clip_id, reason in split.read_undecodable_clips().items()}
    for aside in split.clips_set_aside:
        if aside.kind == "absent":
            undecodable.setdefault(clotho.normalise_file_name(aside.file), aside.reason)
    return EvaluationSet(split.name, queries, decoded, dict(sorted(undecodable.items())))


def extend_to_all_files(scores_QA: Scores, evaluation: EvaluationSet) -> Scores:
    """Return the scores [Q, F] of all F files of the evaluation set, with the columns sorted by file name. `scores_QA`
    has a column for each of the A files that could be decoded. The other files get scores below all others, in
    descending order of their names.
    """
    columns = {name: column for column, name in enumerate(evaluation.files)}
    scores_QF = np.empty((len(scores_QA), len(columns)))
    scores_QF[:, [columns[name] for name in evaluation.decoded]] = scores_QA
    last = scores_QA.min() - 1 - np.arange(len(evaluation.undecodable))
    scores_QF[:, [columns[name] for name in evaluation.undecodable]] = last
    return scores_QF


def rank_files(scores_QF: Scores, number: int) -> NDArray[np.int64]:
    """Return the indices of each query's `number` files with the highest scores [Q, number], the best first. Of files
    with equal scores, the one with the lower index comes first.
    """
    return np.argsort(-scores_QF, axis=1, kind="stable")[:, :number]


def iter_ranked_rows(scores_QF: Scores, evaluation: EvaluationSet) -> Iterator[Sequence[Any]]:
    """Yield the rows of an output file of DCASE 2023: the header, then each query with the names of its NUM_RANKED best
    files. `scores_QF` are the scores of all files of the evaluation set for each query.
    """
    files = evaluation.files
    yield ["caption", *(f"fname_{rank}" for rank in range(1, NUM_RANKED + 1))]
    for query, columns in zip(evaluation.queries, rank_files(scores_QF, NUM_RANKED).tolist(), strict=True):
        yield [query, *(files[column] for column in columns)]


def iter_score_rows(scores_QF: Scores, evaluation: EvaluationSet) -> Iterator[Sequence[Any]]:
    """Yield the rows of an output file of DCASE 2025: the header, then each query of the evaluation set with its scores
    of all files, `scores_QF`. Scores keep all their digits, so that their order is preserved.
    """
    yield ["index", *evaluation.files]
    for query, scores in zip(evaluation.queries, scores_QF.tolist(), strict=True):
        yield [query, *scores]


@dataclass(frozen=True)
class Challenge:
    """Format of the submissions to one year's challenge: its task label, output rows, file names, and minimum number of
    files.

    A system's files are named after the prefix LASTNAME_INSTITUTE and the system's number.
    """

    task: str
    rows: Callable[[Scores, EvaluationSet], Iterator[Sequence[Any]]]
    min_files: int
    output: str  # ending of the output's name, after LASTNAME_INSTITUTE_TASK, with the placeholder {number}
    meta: str  # ending of the metadata's name

    def format_label(self, prefix: str, number: int) -> str:
        """Return the label of a system, such as 'Doe_EX_task6b_1' for the prefix 'Doe_EX' and number 1."""
        return f"{prefix}_{self.task}_{number}"

    def output_name(self, prefix: str, number: int) -> str:
        """Return the path of a system's output file in the submission's zip file. `prefix` is LASTNAME_INSTITUTE, and
        `number` that of the system, from 1.
        """
        return self._path(prefix, number, self.output)

    def meta_name(self, prefix: str, number: int) -> str:
        """Return the path of a system's metadata file in the submission's zip file. `prefix` is LASTNAME_INSTITUTE, and
        `number` that of the system, from 1.
        """
        return self._path(prefix, number, self.meta)

    def _path(self, prefix: str, number: int, ending: str) -> str:
        label = self.format_label(prefix, number)
        folder = self.task.rstrip(string.ascii_letters)  # of the task, without the letter of a subtask
        return f"{folder}/{label}/{prefix}_{self.task}{ending.format(number=number)}"


CHALLENGES = {
    "dcase2023": Challenge(
        "task6b",
        iter_ranked_rows,
        NUM_RANKED,
        "_submission_{number}_output.csv",
        "_submission_{number}_metadata.yaml",
    ),
    "dcase2025": Challenge("task6", iter_score_rows, 1, "_{number}.output.csv", "_{number}.meta.yaml"),
}


def find_challenge(name: str) -> Challenge:
    """Return the format of a challenge by name, such as 'dcase2023'. Raises UserError that lists the known names for an
    unknown one.
    """
    if name not in CHALLENGES:
        raise unknown_name_error("format", name, sorted(CHALLENGES))
    return CHALLENGES[name]


def require_min_files(name: str, evaluation: EvaluationSet) -> None:
    """Raise UserError if an evaluation set has fewer files than the output of the challenge `name` must contain."""
    min_files, number = find_challenge(name).min_files, len(evaluation.files)
    if number < min_files:
        raise UserError(f"{evaluation.split} has {number} files, but {name} needs at least {min_files}")


def write_csv(path: Path, rows: Iterator[Sequence[Any]]) -> None:
    """Write a CSV file in UTF-8, atomically; lines end with a line feed, and fields with special characters are
    quoted.
    """
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        file.writelines(",".join(map(quote_field, row)) + "\n" for row in rows)


def quote_field(value: Any) -> str:
    """Return a value as the text of a field of a CSV file (RFC 4180), in quotes if it contains a special character.

    Python's csv module leaves a carriage return without quotes if lines end with a line feed.
    """
    text = str(value)
    return '"' + text.replace('"', '""') + '"' if re.search('[",\r\n]', text) else text


def write_yaml(path: Path, value: Mapping[str, Any], comment: str) -> None:
    """Write a dict as a YAML file, atomically. The file begins with `comment`, each line of which gets a '# '."""
    with atomic_write(path) as temporary:
        text = yaml.safe_dump(dict(value), allow_unicode=True, sort_keys=False, width=100)
        temporary.write_text("".join(f"# {line}\n" for line in comment.splitlines()) + text, "utf-8", newline="\n")


def write_zip(path: Path, folder: Path, names: Sequence[str]) -> None:
    """Write a zip file atomically from the files of a folder that have these relative names. The same files always give
    the same bytes.
    """
    with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(
                zipfile.ZipInfo(name, ZIP_TIME), (folder / name).read_bytes(), compress_type=zipfile.ZIP_DEFLATED
            )

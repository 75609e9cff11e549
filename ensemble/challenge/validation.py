"""Validation of a submission's zip, by code that is independent of the code that writes it.

Names, headers and fields are therefore listed here again.
"""

import lzma
import re
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv

from data.errors import UserError
from ensemble.challenge.formats import EvaluationSet
from ensemble.challenge.yaml_text import parse_yaml

Check = Callable[[bytes, str, EvaluationSet], Iterator[str]]
"""Function from a file's content, its system's label and the evaluation set to an iterator of problems."""

MAX_LISTED_PROBLEMS = 5
"""Maximum number of problems listed per table; the rest are counted."""

MAX_MEMBER_BYTES, MAX_TOTAL_BYTES = 2**28, 2**30
"""Maximum size of a file in a zip, and of all. The scores of the challenge's captions for its files take 20 MB."""

BLOCK_BYTES = 2**20

MAX_COLUMNS = 20_000
"""Maximum number of columns of a table. The challenge has about a thousand files."""

READ_ERRORS = (
    zipfile.BadZipFile, RuntimeError, EOFError, ValueError, LookupError, OverflowError, OSError, struct.error,
    zlib.error, lzma.LZMAError,
)  # fmt: skip
"""Errors of Python's decompressors for damaged, encrypted or unsupported files in a zip."""

BOM = b"\xef\xbb\xbf"

AUTHOR = ("lastname", "firstname", "email")
AFFILIATION = ("abbreviation", "institute", "location")

DESCRIPTION = (
    "end_to_end", "acoustic_features", "word_embeddings", "data_augmentation", "training_data", "loss_function",
    "optimizer", "learning_rate", "metric_monitored", "ensemble_method_subsystem_count", "ensemble_members",
)  # fmt: skip

METRICS = ("mAP10", "R1", "R5", "R10")

TASKS = {"dcase2023": "task6b", "dcase2025": "task6"}

OUTPUT, META = "answers", "description"

FILE_NAMES = {
    "dcase2023": {
        OUTPUT: "{system}_submission_{number}_output.csv",
        META: "{system}_submission_{number}_metadata.yaml",
    },
    "dcase2025": {OUTPUT: "{system}_{number}.output.csv", META: "{system}_{number}.meta.yaml"},
}
"""Patterns of the names of a system's files; its label is SYSTEM_NUMBER."""


def guess_challenge(path: Path) -> str:
    """Return the name of the challenge that a zip file is meant for, such as 'dcase2023', from the names of the files
    in it. Raises UserError unless they match exactly one challenge.
    """
    names = " ".join(list_names(path))
    matches = [
        name
        for name, task in TASKS.items()
        if re.search(build_pattern(FILE_NAMES[name][OUTPUT], rf"\S+_{task}"), names)
    ]
    if len(matches) != 1:
        raise UserError(f"{path}: its file names don't identify the challenge; give --format")
    return matches[0]


def build_pattern(name: str, system: str = ".+") -> str:
    """Return the regular expression for a file name of FILE_NAMES, with the groups `system` and `number` in place of
    '{system}' and '{number}'. The argument `system` is the regular expression that the group `system` has to match.
    """
    return re.escape(name).replace(r"\{system\}", f"(?P<system>{system})").replace(r"\{number\}", r"(?P<number>\d+)")


def list_names(path: Path) -> list[str]:
    """Return the names of the files in a zip. Raises UserError if it cannot be opened."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror or error}") from error
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, OverflowError) as error:
        raise UserError(f"{path} isn't a zip file: {error}") from error


def read_members(path: Path, names: Collection[str]) -> dict[str, bytes]:
    """Return the contents of the files `names` of a zip, by name, after a check by their checksums. Technical reports
    are checked, too, but their contents are returned as empty bytes.

    No more than MAX_MEMBER_BYTES of a file are read, and MAX_TOTAL_BYTES of all, whatever sizes the zip declares.
    Raises ValueError, with the reason, if a file can't be read, or is too large.
    """
    contents: dict[str, bytes] = {}
    total = 0
    try:
        with zipfile.ZipFile(path) as archive:
            for name in names:
                limit = min(MAX_MEMBER_BYTES, MAX_TOTAL_BYTES - total)
                blocks, size = [], 0
                declared = archive.getinfo(name).file_size
                if declared > limit:
                    raise ValueError(f"{name} has {declared:,} bytes: at most {limit:,} are read")
                with archive.open(name) as file:
                    while block := file.read(BLOCK_BYTES):
                        size += len(block)
                        if size > limit:
                            raise ValueError(f"{name} has more than {limit:,} bytes")
                        blocks += [] if is_report(name) else [block]
                contents[name] = b"".join(blocks)
                total += size
    except READ_ERRORS as error:
        raise ValueError(str(error) or type(error).__name__) from error
    return contents


def find_problems(path: Path, challenge: str, evaluation: EvaluationSet) -> list[str]:
    """Return a description of each problem of a submission's zip file, given the name of the challenge, such as
    'dcase2023', and the evaluation set that it must cover. Problems of a file begin with its name; [] if the submission
    is valid.

    Raises UserError if it isn't a zip file.
    """
    names, names_of = list_names(path), FILE_NAMES[challenge]
    problems = [f"{name} is in the zip twice" for name, count in Counter(names).items() if count > 1]
    problems += [
        f"{name} points outside the zip" for name in names if ".." in PurePosixPath(name).parts or name[:1] == "/"
    ]
    form = re.compile(rf"[^_/\s]+_[^_/\s]+_{TASKS[challenge]}_[1-4]")
    try:
        contents = read_members(path, [name for name in dict.fromkeys(names) if not name.endswith("/")])
    except ValueError as error:
        return [*problems, f"its contents can't be read: {error}"]
    systems, others = group_by_system(contents, challenge)
    expected = " and ".join(
        name.format(system="LASTNAME_INSTITUTE_TASK", number="NUMBER") for name in names_of.values()
    )
    problems += [f"{name} belongs to no system: a system's files are named {expected}" for name in others]
    if not 1 <= len(systems) <= 4:
        problems.append(f"it contains {len(systems)} systems: submit one to four")
    for label, files in systems.items():
        if not form.fullmatch(label):
            problems.append(f"{label} isn't a label: use LASTNAME_INSTITUTE_{TASKS[challenge]}_NUMBER, from 1 to 4")
        system, _, number = label.rpartition("_")
        for kind, check in ((OUTPUT, make_output_check(challenge)), (META, check_metadata)):
            if kind not in files:
                problems.append(f"{names_of[kind].format(system=system, number=number)} is missing")
                continue
            name, data = files[kind]
            folder = f"{TASKS[challenge].rstrip('ab')}/{label}"
            if str(PurePosixPath(name).parent) != folder:
                problems.append(f"{name} must be in the folder {folder}")
            problems += [f"{name}: {problem}" for problem in check_text(data) or check(data, label, evaluation)]
    return problems


def group_by_system(
    contents: Mapping[str, bytes], challenge: str
) -> tuple[dict[str, dict[str, tuple[str, bytes]]], list[str]]:
    """Return the files in a zip by system, as {label: {kind: (name, content)}} with the kinds OUTPUT and META, and a
    list of the names of all other files except technical reports (PDF). `challenge` is the name of the challenge, whose
    rules for file names apply.
    """
    systems: dict[str, dict[str, tuple[str, bytes]]] = {}
    others = []
    for name, data in contents.items():
        file = PurePosixPath(name).name
        matches = {kind: re.fullmatch(build_pattern(named), file) for kind, named in FILE_NAMES[challenge].items()}
        kind, match = next(((kind, match) for kind, match in matches.items() if match), ("", None))
        label = f"{match['system']}_{match['number']}" if match else ""
        if match and kind not in systems.get(label, {}):
            systems.setdefault(label, {})[kind] = (name, data)
        elif not is_report(name):
            others.append(name)
    return systems, others


def is_report(name: str) -> bool:
    """Return whether a file of a submission is a technical report, by its name."""
    return name.lower().endswith(".pdf")


def list_reports(path: Path) -> list[str]:
    """Return the names of the technical reports in a zip file. Raises UserError if it can't be read."""
    return [name for name in list_names(path) if is_report(name)]


def find_name_differences(evaluation: EvaluationSet, names: Collection[str]) -> Iterator[str]:
    """Yield a description of each difference between the files of the evaluation set and `names`, the names of the
    challenge's audio files: first the files that only the evaluation set has, then those that it lacks. Names are
    compared byte for byte.
    """
    known = set(evaluation.files)
    for name in sorted(known - set(names)):
        yield f"{evaluation.split}: {name!r} isn't a file of the challenge: prepare the evaluation set again"
    for name in sorted(set(names) - known):
        yield f"{evaluation.split}: {name!r}, a file of the challenge, isn't in the evaluation set: prepare it again"


def abbreviate(problems: Iterable[str]) -> Iterator[str]:
    """Yield the first MAX_LISTED_PROBLEMS problems, then one line with the number of further ones, if any."""
    all_problems = list(problems)
    yield from all_problems[:MAX_LISTED_PROBLEMS]
    if len(all_problems) > MAX_LISTED_PROBLEMS:
        yield f"and {len(all_problems) - MAX_LISTED_PROBLEMS} more problems"


def shorten_error(error: Exception) -> str:
    """Return the first 200 characters of an error message on one line; the message may quote a whole row."""
    return " ".join(str(error).split())[:200]


def check_text(data: bytes) -> list[str]:
    """Return a list with a description of the problem if the bytes of a file aren't UTF-8 without a byte order mark;
    otherwise [].
    """
    if data.startswith(BOM):
        return ["it begins with a byte order mark: save it as UTF-8 without one"]
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        return [f"line {line}: byte 0x{data[error.start]:02x} isn't UTF-8"]
    return []


def read_table(data: bytes, numbers: bool) -> pa.Table:
    """Return the table in a CSV file with the bytes `data`. All columns are text or, if `numbers` is true, all but the
    first are numbers. Raises ArrowInvalid with the reason if that is impossible.
    """
    num_columns = data.partition(b"\n")[0].count(b",") + 1
    if num_columns > MAX_COLUMNS:
        raise pa.ArrowInvalid(f"its header has {num_columns:,} columns: at most {MAX_COLUMNS:,} are read")
    # Without threads: a reader's thread that outlives the command aborts its process.
    reading = pa.csv.ReadOptions(block_size=len(data) + 1, use_threads=False)
    parsing = pa.csv.ParseOptions(newlines_in_values=True)
    names = pa.csv.read_csv(pa.py_buffer(data), reading, parsing).column_names
    types = {name: pa.float64() if numbers and index else pa.string() for index, name in enumerate(names)}
    converting = pa.csv.ConvertOptions(column_types=types, null_values=[], strings_can_be_null=False)
    return pa.csv.read_csv(pa.py_buffer(data), reading, parsing, converting)


def check_ranking(data: bytes, label: str, evaluation: EvaluationSet) -> Iterator[str]:
    """Yield a description of each problem of an output file of DCASE 2023 with the bytes `data`: it must rank ten files
    of the evaluation set for each caption. `label`, the system's name, is not used.
    """
    try:
        table = read_table(data, numbers=False)
    except pa.ArrowException as error:
        yield f"it isn't a table: {shorten_error(error)}"
        return
    header = ["caption", "fname_1", "fname_2", "fname_3", "fname_4", "fname_5",
              "fname_6", "fname_7", "fname_8", "fname_9", "fname_10"]  # fmt: skip
    if table.column_names != header:
        yield f"its header is {','.join(table.column_names)[:120]!r}: it must be {','.join(header)!r}"
        return
    yield from check_captions(table.column(0).to_pylist(), evaluation.queries)
    files = set(evaluation.files)
    columns = [table.column(index).to_pylist() for index in range(1, len(header))]
    for number, names in enumerate(zip(*columns, strict=True), start=1):
        for name in sorted({name for name in names if name not in files}):
            yield f"row {number}: {name!r} isn't a file of {evaluation.split}"
        for name in sorted(name for name, count in Counter(names).items() if count > 1):
            yield f"row {number}: {name!r} is ranked more than once"


def check_matrix(data: bytes, label: str, evaluation: EvaluationSet) -> Iterator[str]:
    """Yield a description of each problem of an output file of DCASE 2025 with the bytes `data`: it must have the
    scores of all files of the evaluation set for each caption. `label`, the system's name, is not used.
    """
    try:
        table = read_table(data, numbers=True)
    except pa.ArrowException as error:
        yield f"it isn't a table of scores: {shorten_error(error)}"
        return
    first, *names = table.column_names
    if first != "index":
        yield f"its first column is {first[:60]!r}: it must be 'index'"
    yield from (f"column {name!r} occurs more than once" for name, count in Counter(names).items() if count > 1)
    known = set(evaluation.files)
    yield from (
        f"column {name!r} isn't a file of {evaluation.split}" for name in dict.fromkeys(names) if name not in known
    )
    yield from (f"file {name!r} has no column" for name in sorted(known - set(names)))
    yield from check_captions(table.column(0).to_pylist(), evaluation.queries)
    for index, name in enumerate(names, start=1):
        scores = table.column(index).to_numpy()
        for row in np.flatnonzero(~np.isfinite(scores))[:1]:
            yield f"row {row + 1}, column {name!r}: {scores[row]} isn't a finite score"


def check_captions(captions: Sequence[str], expected: Sequence[str]) -> Iterator[str]:
    """Yield a description of each caption that occurs more or less often in a table (`captions`) than in the evaluation
    set (`expected`).
    """
    if len(captions) != len(expected):
        yield f"it has {len(captions)} rows for {len(expected)} captions"
    counts, expected_counts = Counter(captions), Counter(expected)
    for caption in counts | expected_counts:
        if counts[caption] != expected_counts[caption]:
            number = expected_counts[caption]
            yield f"caption {caption[:80]!r} occurs {counts[caption]} times: it must occur {number} times"


def make_output_check(challenge: str) -> Check:
    """Return the function that checks an output file of a challenge, and yields the first few problems."""
    check: Check = {"dcase2023": check_ranking, "dcase2025": check_matrix}[challenge]
    return lambda data, label, evaluation: abbreviate(check(data, label, evaluation))


def check_metadata(data: bytes, label: str, evaluation: EvaluationSet) -> Iterator[str]:
    """Yield a description of each problem of the metadata file, YAML with the bytes `data`, of the system with this
    label. `evaluation` is not used.
    """
    try:
        value = parse_yaml(data)
    except ValueError as error:
        yield f"it isn't YAML: {shorten_error(error)}"
        return
    if value_at(value, "submission.label") != label:
        yield f"submission.label is {value_at(value, 'submission.label')!r}: its file is named {label!r}"
    if label.startswith("LASTNAME_INSTITUTE"):
        yield "submission.label is a placeholder: give --label"
    if len(str(value_at(value, "submission.abbreviation") or "")) > 10:
        yield f"submission.abbreviation is {value_at(value, 'submission.abbreviation')!r}: at most 10 characters"
    required = ["submission.name", "submission.abbreviation", *(f"system.description.{name}" for name in DESCRIPTION)]
    for field in required:
        if value_at(value, field) in (None, "", [], {}):
            yield f"{field} is missing"
    yield from check_authors(value_at(value, "submission.authors"))
    parameters = value_at(value, "system.complexity.total_parameters")
    if not isinstance(parameters, int) or isinstance(parameters, bool) or parameters < 1:
        yield f"system.complexity.total_parameters is {parameters!r}: it must be a positive integer"
    yield from check_results(value_at(value, "results.development_testing"))


def check_authors(authors: Any) -> Iterator[str]:
    """Yield a description of each problem of the list of authors in the metadata: no author, a missing field, or not
    exactly one corresponding author.
    """
    if not isinstance(authors, list) or not authors:
        yield "submission.authors is missing: give --authors"
        return
    for number, author in enumerate(authors, start=1):
        for field in (*AUTHOR, *(f"affiliation.{name}" for name in AFFILIATION)):
            if not value_at(author, field):
                yield f"submission.authors, number {number}: {field} is missing"
    if sum(value_at(author, "corresponding") is True for author in authors) != 1:
        yield "submission.authors: exactly one must have corresponding: true"


def check_results(results: Any) -> Iterator[str]:
    """Yield a description of each metric in the metadata that is missing or not between 0 and 1. `results` has the
    metrics on the development set's test split, by name.
    """
    for name in METRICS:
        value = results.get(name) if isinstance(results, dict) else None
        where = f"results.development_testing.{name}"
        if value is None:
            yield f"{where} is missing: select the ensemble without --no-test"
        elif not isinstance(value, int | float) or not 0 <= value <= 1:
            yield f"{where} is {value!r}: it must be between 0 and 1"


def value_at(value: Any, path: str) -> Any:
    """Return the value at a dotted path of names, 'system.description.optimizer'; None if it doesn't exist."""
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value

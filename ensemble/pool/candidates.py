"""Candidates of a pool: scores aligned by query and clip, from the ledger's trials or from files of any system.

    DIR/{validation,test}/NAME.npy         scores [queries, clips], float, higher is better
    DIR/{validation,test}/relevance.npy    int [queries], the column of the one relevant clip; or bool [queries, clips]
    DIR/{validation,test}/groups.npy       int [queries], optional: queries of one group are resampled together; by
                                           default those with the same relevant clips

In audio-to-text direction each clip is its own group.

Shapes: Q queries, A clips, P (query, relevant clip) pairs, D the size of the embeddings.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data.errors import UserError
from data.sources.numpy_files import read_array
from ensemble.pool import score_matrices, snapshots
from ensemble.pool.score_matrices import ReadScores, ScoreMatrices
from trainables.records.embeddings import TEST_FILE, VALIDATION_FILE, Embeddings
from trainables.records.ledger import Ledger, Sweep, TrialRun
from trainables.retrieval import Relevance, build_relevance

Role = Literal["validation", "test"]

EMBEDDINGS_FILES = {"validation": VALIDATION_FILE, "test": TEST_FILE}
RELEVANCE, GROUPS = "relevance", "groups"


@dataclass(frozen=True)
class Candidate:
    """Candidate of a selection: a finished trial, or a file of scores of any system."""

    name: str
    signature: str = ""
    run: TrialRun | None = None
    folder: Path | None = None

    @property
    def key(self) -> str:
        """String that identifies the candidate and by which candidates are sorted: its signature, or the name of its
        file.
        """
        return self.signature or self.name

    @property
    def trial_run(self) -> TrialRun:
        """Finished trial as recorded in the ledger. The candidate must not be a file of scores."""
        assert self.run is not None
        return self.run

    def locate_scores(self, role: Role) -> Path:
        """Return the path of the candidate's score matrix on the validation or the test split. The candidate must be a
        file of scores.
        """
        assert self.folder is not None
        return self.folder / role / f"{self.name}.npy"


LoadEmbeddings = Callable[[Candidate, str], Embeddings]
"""Function from a trial and the name of a file of its run to the embeddings in the file."""


def find_candidates(ledger: Ledger, sweeps: Sequence[Sweep], conditions: Iterable[str] = ()) -> list[Candidate]:
    """Return the finished trials of sweeps and their snapshots as candidates, sorted by signature, including those that
    another sweep trained. With `conditions` such as 'NAME=VALUE', only trials that meet all of them are returned. A
    snapshot after the best epoch of a returned trial is left out, since it is the same model.

    Args:
        ledger: the ledger of the trials.
        sweeps: the sweeps whose trials are returned.
        conditions: only trials with these settings are returned; each is 'NAME=VALUE' as shown in MLflow.

    Raises:
        UserError: if no trial is finished, or none meets the conditions.
    """
    signatures = sorted({signature for sweep in sweeps for signature in sweep.signatures})
    runs = {signature: ledger.find_finished_trial(signature) for signature in signatures}
    finished = snapshots.add_snapshots(ledger, [run for run in runs.values() if run])
    matches = [Candidate(run.name, run.signature, run) for run in finished]
    names = " and ".join(repr(sweep.name) for sweep in sweeps)
    if not matches:
        raise UserError(
            f"sweep {names} has no finished trial of {len(runs)}: "
            f"resume it with python sweeps/grid.py --name {sweeps[0].name}"
        )
    for condition in conditions:
        name, equals, value = condition.partition("=")
        known = sorted({name for candidate in matches for name in list_settings(candidate)})
        if not equals or name not in known:
            raise UserError(f"--filter {condition!r}: give NAME=VALUE, NAME being one of: {', '.join(known)}")
        values = sorted({list_settings(candidate).get(name, "") for candidate in matches})
        matches = [candidate for candidate in matches if list_settings(candidate).get(name) == value]
        if not matches:
            raise UserError(f"--filter {condition!r}: no trial matches; its values are: {', '.join(values)}")
    kept = {candidate.signature: candidate.trial_run for candidate in matches}
    return [candidate for candidate in matches if not snapshots.is_same_model(candidate.trial_run, kept)]


def list_settings(candidate: Candidate) -> dict[str, str]:
    """Return a trial's settings as shown in MLflow, by name; {} for a file of scores."""
    return dict(candidate.run.settings) if candidate.run else {}


def find_score_files(folders: Sequence[Path]) -> list[Candidate]:
    """Return a candidate for each score matrix in folders of score matrices.

    Raises UserError if a folder is empty, or if two folders contain the same name.
    """
    candidates: dict[str, Candidate] = {}
    for folder in folders:
        for name in list_score_files(folder):
            if name in candidates:
                raise UserError(f"{folder} and {candidates[name].folder} both contain {name}.npy: rename one of them")
            candidates[name] = Candidate(name, folder=folder)
    return list(candidates.values())


def list_score_files(folder: Path) -> list[str]:
    """Return the names, without .npy, of a folder's score matrices. Raises UserError if there is none."""
    names = sorted({path.stem for path in (folder / "validation").glob("*.npy")} - {RELEVANCE, GROUPS})
    if not names:
        raise UserError(f"{folder}/validation contains no NAME.npy: put score matrices [queries, clips] there")
    return names


def load_pool(
    ledger: Ledger | None,
    candidates: Sequence[Candidate],
    role: Role,
    files: Sequence[str] | None = None,
    load: LoadEmbeddings | None = None,
) -> ScoreMatrices:
    """Return the candidates' score matrices on the split with this role, in the order of the candidates. A trial's
    scores are computed from its embeddings: by default those of its best epoch, otherwise those in its file in `files`.

    Args:
        ledger: the ledger of the trials; not needed for files of scores.
        candidates: trials, files of scores, or both.
        role: the split to read, 'validation' or 'test'.
        files: for each candidate, the artifact with its embeddings; that of a file of scores is ignored.
        load: function that loads embeddings, if they are not used as the ledger has them.

    Raises:
        UserError: if candidates are incompatible: trials evaluated on different splits, files of different shapes, or a
            folder whose relevant clips differ from the trials'.
    """
    files = files or [EMBEDDINGS_FILES[role]] * len(candidates)
    trial_artifacts = [(candidate, file) for candidate, file in zip(candidates, files, strict=True) if candidate.run]
    indices = [index for index, candidate in enumerate(candidates) if candidate.run]
    pools = [load_trial_scores(ledger, trial_artifacts, load)] if ledger and trial_artifacts else []
    for folder in dict.fromkeys(candidate.folder for candidate in candidates if candidate.folder):
        members = [index for index, candidate in enumerate(candidates) if candidate.folder == folder]
        pools.append(load_file_scores(folder, [candidates[index] for index in members], role))
        indices += members
    first = pools[0]
    for pool in pools[1:]:
        if problem := explain_mismatch(first, pool):
            raise UserError(f"{pool.split} and {first.split} are incompatible: {problem}")
    combined = ScoreMatrices(
        tuple(name for pool in pools for name in pool.names), first.split, first.fingerprint, first.relevance,
        first.num_clips, tuple(read for pool in pools for read in pool.reads),
        tuple(read for pool in pools for read in pool.across),
        tuple(array for pool in pools for array in pool.arrays) if all(pool.arrays for pool in pools) else (),
    )  # fmt: skip
    return combined.select(np.argsort(indices).tolist())


def explain_mismatch(first: ScoreMatrices, second: ScoreMatrices) -> str:
    """Return a text that says how two pools differ in their queries, relevant clips or groups; '' if they agree."""

    def pairs(pool: ScoreMatrices) -> set[tuple[int, int]]:
        return set(zip(pool.relevance.query_P.tolist(), pool.relevance.clip_P.tolist(), strict=True))

    shapes = [(pool.num_queries, pool.num_clips) for pool in (first, second)]
    if shapes[0] != shapes[1] or pairs(first) != pairs(second):
        return (
            "both must have the same queries with the same relevant clips, in the same order "
            f"({second.num_queries} queries x {second.num_clips} clips, "
            f"not {first.num_queries} x {first.num_clips})"
        )
    both = np.stack([first.relevance.group_Q, second.relevance.group_Q])
    groups = [len(np.unique(group_Q)) for group_Q in both]
    if len(np.unique(both, axis=1).T) != max(groups) or groups[0] != groups[1]:
        return f"their queries are grouped differently: put the same {GROUPS}.npy into every folder, or into none"
    return ""


def load_trial_scores(
    ledger: Ledger, artifacts: Sequence[tuple[Candidate, str]], load: LoadEmbeddings | None = None
) -> ScoreMatrices:
    """Return the score matrices of trials, computed from embeddings. `artifacts` has each trial and its file of
    embeddings. By default they are loaded from the ledger; otherwise `load` returns them.

    Rows and columns are in the order of the first trial's queries and clips.
    """
    load = load or (lambda candidate, file: ledger.load_embeddings(candidate.trial_run, file))
    all_embeddings = [load(candidate, file) for candidate, file in artifacts]
    reference, first = all_embeddings[0], artifacts[0][0]
    reads, across = [], []
    for embeddings, (candidate, _) in zip(all_embeddings, artifacts, strict=True):
        read, read_across = align_scores(embeddings, reference, candidate, first)
        reads.append(read)
        across.append(read_across)
    relevant = build_relevance(reference.relevant_clip_ids, reference.clip_ids)
    names = tuple(candidate.name for candidate, _ in artifacts)
    return ScoreMatrices(
        names, reference.split, reference.fingerprint, relevant, len(reference.clip_ids), tuple(reads), tuple(across)
    )


def align_scores(
    embeddings: Embeddings, reference: Embeddings, candidate: Candidate, first: Candidate
) -> tuple[ReadScores, ReadScores]:
    """Return two functions that compute blocks of a trial's score matrix from its embeddings, with queries and clips in
    the order of the embeddings `reference`. The first function takes a range of queries, the second a range of clips.
    `candidate` and `first` are the two trials, for messages.
    """
    require_same_split(embeddings, reference, candidate, first)
    rows = find_order(build_query_keys(embeddings), build_query_keys(reference))
    columns = find_order(embeddings.clip_ids, reference.clip_ids)

    def read(first_query: int, last_query: int) -> NDArray[np.float32]:
        return compute_cosines(embeddings.text_QD[rows[first_query:last_query]], embeddings.audio_AD[columns])

    def read_across(first_clip: int, last_clip: int) -> NDArray[np.float32]:
        return compute_cosines(embeddings.audio_AD[columns[first_clip:last_clip]], embeddings.text_QD[rows])

    return read, read_across


def require_same_split(embeddings: Embeddings, reference: Embeddings, candidate: Candidate, first: Candidate) -> None:
    """Raise UserError, which names both candidates, unless their embeddings (`embeddings` and `reference`) are of the
    same split with the same contents.
    """
    if (embeddings.split, embeddings.fingerprint) != (reference.split, reference.fingerprint):
        raise UserError(
            f"trials differ in their splits and can't be compared: {candidate.name!r} has {embeddings.split} "
            f"({embeddings.fingerprint}), {first.name!r} has {reference.split} ({reference.fingerprint})"
        )


def compute_cosines(first_ND: NDArray[np.float32], second_MD: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the dot product of each vector of `first_ND` with each of `second_MD` [N, M], summed in float64 so that it
    does not depend on the number of vectors.
    """
    return (first_ND.astype(np.float64) @ second_MD.astype(np.float64).T).astype(np.float32)


def build_query_keys(embeddings: Embeddings) -> list[tuple[str, tuple[str, ...], int]]:
    """Return a key for each query of a split, so that queries can be matched between trials: its text, its relevant
    clips, and a number that counts repetitions of both.
    """
    repetitions: dict[tuple[str, tuple[str, ...]], int] = {}
    keys = []
    for text, relevant in zip(embeddings.queries, embeddings.relevant_clip_ids, strict=True):
        key = (text, tuple(sorted(relevant)))
        repetitions[key] = repetitions.get(key, 0) + 1
        keys.append((*key, repetitions[key]))
    return keys


def find_order(keys: Sequence[object], target_keys: Sequence[object]) -> list[int]:
    """Return the index in `keys` of each key of `target_keys`.

    Raises UserError unless both contain the same keys, each once, in any order.
    """
    index_of = {key: index for index, key in enumerate(keys)}
    if index_of.keys() != set(target_keys) or len(keys) != len(target_keys):
        raise UserError("two trials have different queries or clips for the same split: prepare the corpus again")
    return [index_of[key] for key in target_keys]


def load_file_scores(folder: Path, candidates: Sequence[Candidate], role: Role) -> ScoreMatrices:
    """Return the score matrices of candidates whose files lie in one folder, for the split with this role,
    memory-mapped. Raises UserError that names the file and the problem.
    """
    arrays = [read_scores(candidate.locate_scores(role)) for candidate in candidates]
    first = candidates[0].locate_scores(role)
    shape = arrays[0].shape
    for candidate, array in zip(candidates, arrays, strict=True):
        if array.shape != shape:
            raise UserError(f"{candidate.locate_scores(role)} has shape {array.shape}, but {first.name} has {shape}")
    relevant = read_relevance(folder / role, shape)
    digest = hashlib.sha256(repr(shape).encode() + relevant.query_P.tobytes() + relevant.clip_P.tobytes())
    names = [candidate.name for candidate in candidates]
    return score_matrices.from_arrays(names, str(folder / role), digest.hexdigest()[:16], relevant, arrays)


def read_scores(path: Path) -> NDArray[Any]:
    """Return a score matrix [Q, A] of floats, memory-mapped. Raises UserError if it has another form or is empty."""
    array = read_array(path)
    if array.ndim != 2 or array.dtype not in (np.float16, np.float32, np.float64):
        raise UserError(
            f"{path} is {array.dtype} {array.shape}: scores must be float16, float32 or float64 [queries, clips]"
        )
    if not array.size:
        raise UserError(f"{path} is empty {array.shape}: it contains no scores")
    return array


def read_relevance(folder: Path, shape: tuple[int, ...]) -> Relevance:
    """Return the relevant clips and the groups of the queries, read from the files in a folder of score matrices of
    this `shape`. Without a file of groups, the queries with the same relevant clips form a group.

    Raises UserError if the content of a file doesn't fit the shape, refers to a clip that doesn't exist, or leaves a
    query without a relevant clip.
    """
    path = folder / f"{RELEVANCE}.npy"
    array = read_array(path)
    num_queries, num_clips = shape
    if array.shape == (num_queries,) and array.dtype.kind in "iu":
        if len(bad := np.flatnonzero((array < 0) | (array >= num_clips))):
            raise UserError(f"{path}: query {bad[0]} refers to clip {array[bad[0]]} of {num_clips}")
        query_P, clip_P = np.arange(num_queries), array.astype(np.int64)
    elif array.shape == shape and array.dtype == bool:
        if len(bad := np.flatnonzero(~array.any(axis=1))):
            raise UserError(f"{path}: query {bad[0]} has no relevant clip: it can't be scored")
        query_P, clip_P = np.nonzero(array)
    else:
        raise UserError(f"{path} is {array.dtype} {array.shape}: it must be int ({num_queries},) or bool {shape}")
    group_of: dict[tuple[int, ...], int] = {}
    clips_Q = np.split(clip_P, np.searchsorted(query_P, np.arange(1, num_queries)))
    group_Q = np.array([group_of.setdefault(tuple(clips.tolist()), len(group_of)) for clips in clips_Q])
    if (groups := folder / f"{GROUPS}.npy").exists():
        group_ids = read_array(groups)
        if group_ids.shape != (num_queries,) or group_ids.dtype.kind not in "iu":
            raise UserError(f"{groups} is {group_ids.dtype} {group_ids.shape}: it must be int ({num_queries},)")
        group_Q = np.unique(group_ids, return_inverse=True)[1]
    return Relevance(query_P.astype(np.int64), clip_P, group_Q.astype(np.int64))

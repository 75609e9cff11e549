"""Costs of candidates: parameters, measured latency of a query, or values from a file."""

import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from data.errors import UserError
from data.sources.json_text import parse_json
from data.store.scratch import create_scratch_folder
from ensemble.pool.candidates import Candidate
from trainables.records.run_storage import RunStorage

TIMED_SENTENCE = "a dog barks in the distance while rain falls on a tin roof"
NUM_REPEATS = 7


def load_costs(kind: str, candidates: Sequence[Candidate], runs: RunStorage) -> list[float]:
    """Return the cost of each candidate, in their order, of the kind `kind`, such as the number of parameters.

    Args:
        kind: 'parameters' (their number), 'latency' (ms per query, measured here), or the path of a JSON file
            {name: cost}.
        candidates: the candidates.
        runs: the run storage with the candidates' models.

    Raises:
        UserError: if a candidate has no model, or the file has no cost for it.
    """
    if kind not in ("parameters", "latency"):
        return read_cost_file(Path(kind), candidates)
    costs = []
    for candidate in candidates:
        if not candidate.signature or not runs.has_model(candidate.signature):
            raise UserError(
                f"--cost {kind}: {candidate.name!r} has no model; give a JSON file with the cost of each candidate"
            )
        with create_scratch_folder() as scratch:
            folder = runs.fetch_model(candidate.signature, scratch / "model")
            costs.append(count_parameters(folder) if kind == "parameters" else measure_latency_ms(folder))
    return costs


def read_cost_file(path: Path, candidates: Sequence[Candidate]) -> list[float]:
    """Return the candidates' costs from a JSON file {name: cost}. Raises UserError if one is missing or not above 0."""
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--cost: {path} isn't 'parameters', 'latency' or a JSON file of costs: {error}") from error
    costs = []
    for candidate in candidates:
        cost = content.get(candidate.name) if isinstance(content, dict) else None
        if not isinstance(cost, int | float) or not cost > 0:
            raise UserError(f"--cost: {path} has no cost above 0 for {candidate.name!r}")
        costs.append(float(cost))
    return costs


def count_parameters(folder: Path) -> float:
    """Return the number of parameters of the model in a folder; 0 if there are no weights. Raises UserError if a file
    of weights is damaged.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    total = 0
    for path in sorted(folder.rglob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                total += sum(torch.Size(file.get_slice(name).get_shape()).numel() for name in file.keys())  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} can't be read ({error}): copy the model again, or train it again") from error
    return float(total)


def measure_latency_ms(folder: Path) -> float:
    """Return the median time in milliseconds in which a trial's trained model, in a folder, embeds a sentence on the
    CPU.
    """
    import torch

    from trainables.records.checkpoint import load_model

    model = load_model(folder).eval()
    durations_s = []
    for _ in range(NUM_REPEATS):
        began = time.perf_counter()
        with torch.inference_mode():
            model.embed_text(model.text.tokenize([TIMED_SENTENCE]))
        durations_s.append(time.perf_counter() - began)
    return 1000 * statistics.median(durations_s[1:])

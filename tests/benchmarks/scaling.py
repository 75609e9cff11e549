"""How time and memory of a training step grow with the batch, the clips' length, the micro-batch and the ranks.

python tests/benchmarks/scaling.py [--png scaling.png]                      # PaSST `tiny` and a small transformer
python tests/benchmarks/scaling.py --audio N --batches 4 8 16 --micro 2 4 --device cuda --bfloat16

Each point is measured in processes of its own, one a rank, on one thread each. Memory is what rank 0's steps need
beyond its network and its batch's samples; on a GPU, all that was allocated.
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from matplotlib.figure import Figure
from measure import machine, say, told
from torch.nn.parallel import DistributedDataParallel

from data.loading.batch import NUM_MASK_DRAWS, Batch
from data.schema import SAMPLE_RATE_HZ
from data.waveform import count_segments
from trainables.encoders.audio import passt
from trainables.encoders.text import transformer
from trainables.networks import load_network_module
from trainables.networks.dual_encoder import DualEncoder
from trainables.training.gradient_cache import Outputs, backward_by_parts, embed_by_parts
from trainables.training.loss import gather_rows, nt_xent

LENGTHS_S = (5.0, 10.0, 15.0, 20.0, 25.0, 30.0)
RANKS = (1, 2)
COMPARED_MICRO_BATCH = 16
CAPTION = "a dog barks while rain falls on the roof"
STEPS = 3
"""The first isn't timed."""


@dataclass(frozen=True)
class Point:
    """What is measured: pairs of all ranks together, pairs of a rank that are held at a time."""

    batch_size: int = 64
    clip_s: float = 10.0
    micro_batch: int | None = None
    ranks: int = 1


@dataclass(frozen=True)
class Setup:
    """What all points share."""

    audio: str  # a variant of PaSST
    device: str
    bfloat16: bool


@dataclass(frozen=True)
class Cost:
    """Of one step, on rank 0."""

    step_s: float
    memory_bytes: int


def cost_of(point: Point, setup: Setup) -> Cost:
    """Measure a point in fresh processes."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(work, (point, setup, Path(folder)), nprocs=point.ranks)
        return Cost(**json.loads((Path(folder) / "cost.json").read_text()))


def work(rank: int, point: Point, setup: Setup, folder: Path) -> None:
    """What each rank does; rank 0 writes its cost."""
    torch.set_num_threads(1)
    device = torch.device(setup.device)
    if point.ranks > 1:
        rendezvous = f"file://{folder / 'rendezvous'}"
        dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=point.ranks)
    torch.manual_seed(0)
    audio_config = replace(passt.VARIANTS[setup.audio], pretrained=False)
    audio = load_network_module(audio_config).build(audio_config)
    text_config = transformer.VARIANTS["small"]
    text = load_network_module(text_config).build(text_config, [CAPTION])
    network = DualEncoder(audio, text, embedding_size=1024, temperature=0.01).train().to(device)
    wrapped = DistributedDataParallel(network) if point.ranks > 1 else network
    optimizer = torch.optim.Adam(network.parameters(), 2e-5)
    own = make_batch(point.batch_size // point.ranks, point.clip_s, audio.config.segment_s).to(device)
    before_bytes = reset_peak(device)
    taken_s = []
    for _ in range(STEPS):
        started = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        backward(wrapped, network, own, point, setup)
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken_s.append(time.perf_counter() - started)
    if rank == 0:
        memory_bytes = peak_bytes(device) - before_bytes
        cost = {"step_s": statistics.median(taken_s[1:]), "memory_bytes": memory_bytes}
        (folder / "cost.json").write_text(json.dumps(cost))
    if point.ranks > 1:
        dist.destroy_process_group()


def backward(wrapped: torch.nn.Module, network: DualEncoder, own: Batch, point: Point, setup: Setup) -> None:
    """The gradients of one step, as the training loop computes them."""
    counts = [point.batch_size // point.ranks] * point.ranks
    clips_B = gather_rows(own.clips, counts)
    device = own.clips.device

    def forward(number: int, part: Batch) -> Outputs:
        torch.manual_seed(number)
        tokens = network.text.tokenize(part.captions).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=setup.bfloat16):
            outputs: Outputs = wrapped(part, tokens, torch.Generator().manual_seed(0))
        return outputs

    parts = own.split(point.micro_batch or counts[0])
    outputs = forward(0, own) if len(parts) == 1 else embed_by_parts(forward, parts)
    audio_LD, text_LD, temperature = outputs
    nt_xent(gather_rows(audio_LD, counts), gather_rows(text_LD, counts), clips_B, temperature).backward()
    if len(parts) > 1:
        backward_by_parts(forward, parts, outputs, wrapped)


def make_batch(batch_size: int, clip_s: float, segment_s: float) -> Batch:
    """Clips of noise, all as long."""
    segment_samples = round(segment_s * SAMPLE_RATE_HZ)
    size = count_segments(round(clip_s * SAMPLE_RATE_HZ), segment_samples)
    return Batch(
        segments=torch.rand(batch_size * size, segment_samples) - 0.5,
        segments_per_clip=torch.full((batch_size,), size),
        mask_draws=torch.rand(batch_size * size, NUM_MASK_DRAWS),
        captions=[CAPTION] * batch_size,
        clips=torch.arange(batch_size),
    )


def reset_peak(device: torch.device) -> int:
    """Let the peak be what is in use; what of it doesn't count is returned."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return 0
    Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes(device)


def peak_bytes(device: torch.device) -> int:
    """The most memory in use since `reset_peak`. getrusage's figure can't be reset, and begins at the parent's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def label(point: Point) -> str:
    """A point in words."""
    micro = f", micro-batch {point.micro_batch}" if point.micro_batch else ""
    ranks = f", {point.ranks} ranks" if point.ranks > 1 else ""
    return f"batch {point.batch_size}, clips of {point.clip_s:g} s{micro}{ranks}"


def draw(costs: dict[Point, Cost], sweeps: dict[str, list[Point]], picture: Path) -> None:
    """Draw each sweep's time above its memory."""
    figure = Figure(figsize=(3.2 * len(sweeps), 6), layout="constrained")
    rows = figure.subplots(2, len(sweeps), squeeze=False)
    for (name, points), upper, lower in zip(sweeps.items(), rows[0], rows[1], strict=True):
        for batch_size in sorted({point.batch_size for point in points} if name == "micro-batch" else {0}):
            line = [point for point in points if batch_size in (0, point.batch_size)]
            x = [place(point, name) for point in line]
            known_as = f"batch {batch_size}" if batch_size else None
            upper.plot(x, [costs[point].step_s for point in line], "o-", label=known_as)
            lower.plot(x, [costs[point].memory_bytes / 1e9 for point in line], "o-", label=known_as)
        for axes, unit in ((upper, "s a step"), (lower, "GB")):
            axes.set(xlabel=name, ylabel=unit, ylim=(0, None))
            if name == "micro-batch":
                axes.set_xscale("log", base=2)
            if name != "pairs":
                axes.set_xticks(sorted({place(point, name) for point in points}))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.spines[["top", "right"]].set_visible(False)
        if name == "micro-batch":
            lower.legend(frameon=False)
    figure.savefig(picture, dpi=150, format="png")


def place(point: Point, sweep: str) -> float:
    """Where a point lies in a sweep; without a micro-batch, the whole batch is one."""
    places = {
        "pairs": point.batch_size,
        "seconds": point.clip_s,
        "micro-batch": point.micro_batch or point.batch_size,
        "ranks": point.ranks,
    }
    return places[sweep]


def sweeps_of(batches: list[int], middle: int, micro_batches: list[int], device: str) -> dict[str, list[Point]]:
    """The points of each sweep; all but the first have `middle` pairs, and the micro-batches the most pairs too."""
    whole = dict.fromkeys([middle, max(batches)])
    return {
        "pairs": [Point(batch_size) for batch_size in batches],
        "seconds": [Point(middle, clip_s) for clip_s in LENGTHS_S],
        "micro-batch": [
            Point(batch_size, micro_batch=micro_batch)
            for batch_size in whole
            for micro_batch in [*(size for size in micro_batches if size < batch_size), None]
        ],
    } | ({"ranks": [Point(middle, ranks=ranks) for ranks in RANKS]} if device == "cpu" else {})


def tell_micro_batches(costs: dict[Point, Cost], points: list[Point]) -> None:
    """What a micro-batch saves, and whether memory grows with the batch all the same."""
    batches = sorted({point.batch_size for point in points})
    sizes = sorted({point.micro_batch for point in points if point.micro_batch and point.batch_size == batches[0]})
    micro = COMPARED_MICRO_BATCH if COMPARED_MICRO_BATCH in sizes else sizes[-1]
    say()
    for batch_size in batches:
        plain, cached = costs[Point(batch_size)], costs[Point(batch_size, micro_batch=micro)]
        told(f"memory, batch {batch_size}, micro-batch {micro}", cached.memory_bytes / 1e6, "MB")
        told(f"memory, batch {batch_size}, without", plain.memory_bytes / 1e6, "MB")
        told(f"time, batch {batch_size}, micro-batch {micro} / without", cached.step_s / plain.step_s, "times")
    first, last = (costs[Point(size, micro_batch=micro)].memory_bytes for size in (batches[0], batches[-1]))
    told(f"memory, micro-batch {micro}, batch {batches[-1]} / {batches[0]}", last / first, "times", most=1.5)


def main() -> None:
    """Measure, tell and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audio", default="tiny", choices=sorted(passt.VARIANTS))
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 16, 32, 64, 128, 256, 512])
    parser.add_argument("--batch-size", type=int, default=64, help="where it isn't the batch that grows")
    parser.add_argument("--micro", type=int, nargs="+", default=[4, 8, COMPARED_MICRO_BATCH, 32])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bfloat16", action="store_true")
    parser.add_argument("--png", type=Path)
    arguments = parser.parse_args()
    setup = Setup(arguments.audio, arguments.device, arguments.bfloat16)
    say(f"{machine()}, torch {torch.__version__}, {setup}")
    sweeps = sweeps_of(arguments.batches, arguments.batch_size, arguments.micro, arguments.device)
    costs: dict[Point, Cost] = {}
    for name, points in sweeps.items():
        say(f"\nGrowing with {name}: seconds a step, pairs a second, memory")
        for point in points:
            costs[point] = cost = costs.get(point) or cost_of(point, setup)
            per_s = point.batch_size / cost.step_s
            say(f"{label(point):<64} {cost.step_s:9.3f} s {per_s:9.1f} pairs/s {cost.memory_bytes / 1e6:10.0f} MB")
    tell_micro_batches(costs, sweeps["micro-batch"])
    if arguments.png:
        draw(costs, sweeps, arguments.png)


if __name__ == "__main__":
    main()

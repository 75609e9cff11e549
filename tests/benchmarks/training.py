"""What a training step and a validation pass cost, against the authors' recipe as a plain loop: PaSST-N and bert-base.

python tests/benchmarks/training.py [--batch-size 8] [--profile] [--device cuda]
python tests/benchmarks/training.py --layers 1 --batch-size 2 --clips 2     # a quick try

Both compute with the same parameters from the same batch, and their embeddings are compared first. The plain loop pads
each clip to 30 s and embeds all of its segments, with hear21passt's own front end and forward pass, pads each caption
to 32 tokens, and in validation embeds a clip once a caption. Weights are random.

Shapes: B pairs, K segments of a padded clip, N samples of a segment, S segments, W an encoder's width, D the size of
the embeddings.
"""

import argparse
import contextlib
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from hear21passt.models import passt as published
from hear21passt.models.preprocess import AugmentMelSTFT
from measure import machine, say, told
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from data.loading.batch import NUM_MASK_DRAWS, Batch
from data.schema import SAMPLE_RATE_HZ
from data.waveform import count_segments
from trainables.encoders.audio import passt
from trainables.encoders.text import Tokens, huggingface
from trainables.networks import load_network_module
from trainables.networks.audio.log_mel import LogMel
from trainables.networks.audio.passt import PasstEncoder, make_passt
from trainables.networks.dual_encoder import DualEncoder
from trainables.networks.text import huggingface as networks
from trainables.training.embedding import CLIPS_PER_BATCH, QUERIES_PER_BATCH
from trainables.training.loss import nt_xent

PASST_N = replace(passt.VARIANTS["N"], pretrained=False)
BERT_BASE = huggingface.VARIANTS["bert-base"]
SEGMENT_SAMPLES = round(PASST_N.segment_s * SAMPLE_RATE_HZ)
LONGEST_S = 30.0
SEGMENTS_OF_PADDED = math.ceil(LONGEST_S / PASST_N.segment_s)
EMBEDDING_SIZE = 1024
RATE = 2e-5
CAPTIONS_PER_CLIP = 5
TOLERANCE = 1e-4
"""Between entries of unit vectors."""

WORDS = ("a", "dog", "barks", "while", "rain", "falls", "on", "the", "roof", "and", "someone", "walks", "away")

Durations = Callable[[np.random.Generator, int], NDArray[np.float64]]


def uniform(shortest_s: float, longest_s: float) -> Durations:
    """Evenly spread durations."""
    return lambda rng, number: rng.uniform(shortest_s, longest_s, number)


def log_normal(mean_s: float, spread: float) -> Durations:
    """Durations with a given mean whose logarithm is normal with standard deviation `spread`."""
    return lambda rng, number: rng.lognormal(math.log(mean_s) - spread**2 / 2, spread, number)


@dataclass(frozen=True)
class Source:
    """A part of the paper's pretraining data."""

    pairs: int
    durations_s: Durations
    mean_words: float  # of a caption


MIX = {
    "Clotho development": Source(5 * 3_839, uniform(15, 30), 11.3),
    "AudioCaps": Source(49_838 + 5 * 495 + 5 * 975, uniform(10, 10), 9.0),
    "WavCaps, AudioSet": Source(108_317, uniform(10, 10), 9.79),
    "WavCaps, FreeSound": Source(262_300, log_normal(85.98, 2.0), 6.77),
    "WavCaps, BBC": Source(31_201, log_normal(115.04, 1.0), 9.67),
    "WavCaps, SoundBible": Source(1_232, log_normal(13.12, 1.0), 5.87),
}
"""Counts are published; mean durations and words of WavCaps are cited from its data card. Assumed: that durations are
log-normal and their spreads (a third of FreeSound's clips and four fifths of BBC's pass 30 s), the other captions' mean
words, that words follow Poisson, and a token a word."""


def draw(source: Source, number: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Durations after cropping (WavCaps leaves out what is under a second) and words of pairs [number, 2]."""
    durations_s = source.durations_s(rng, number).clip(1, LONGEST_S)
    return np.stack([durations_s, rng.poisson(source.mean_words, number).clip(1)], axis=1)


def num_segments(duration_s: float) -> int:
    """How many segments a clip has."""
    return count_segments(round(duration_s * SAMPLE_RATE_HZ), SEGMENT_SAMPLES)


def mixed_pairs(batch_size: int) -> list[tuple[float, int]]:
    """Durations in seconds and numbers of words of a batch: of the mix, the pairs at evenly spaced quantiles."""
    rng = np.random.default_rng(0)
    parts = {name: draw(source, source.pairs // 10, rng) for name, source in MIX.items()}
    say("\nThe paper's mix of durations (assumptions: see MIX)")
    for name, part in {**parts, "all": np.concatenate(list(parts.values()))}.items():
        segments = [num_segments(duration_s) for duration_s in part[:, 0]]
        shares = ", ".join(f"{segments.count(count) / len(segments):.0%} of {count}" for count in (1, 2, 3))
        pairs = f"{sum(each.pairs for each in MIX.values()) if name == 'all' else MIX[name].pairs:,}"
        told(f"{name}: {pairs} pairs, {part[:, 0].mean():.1f} s, {shares}", float(np.mean(segments)), "segments")
    told("all, padded / own segments", SEGMENTS_OF_PADDED / float(np.mean(segments)), "times")
    pairs_DW = np.concatenate(list(parts.values()))
    ordered = pairs_DW[pairs_DW[:, 0].argsort(kind="stable")]
    rows = ordered[((np.arange(batch_size) + 0.5) / batch_size * len(ordered)).astype(int)]
    return [(duration_s, int(words)) for duration_s, words in rows.tolist()]


@dataclass(frozen=True)
class Clips:
    """Clips in their own segments, and padded."""

    own: Batch
    padded_BKN: Tensor


def make_clips(durations_s: list[float], captions: list[str], device: torch.device) -> Clips:
    """Noise; zeros follow a clip's end."""
    generator = torch.Generator().manual_seed(0)
    padded_BKN = torch.zeros(len(durations_s), SEGMENTS_OF_PADDED, SEGMENT_SAMPLES)
    sizes = [num_segments(duration_s) for duration_s in durations_s]
    for padded, size, duration_s in zip(padded_BKN, sizes, durations_s, strict=True):
        samples = min(round(duration_s * SAMPLE_RATE_HZ), size * SEGMENT_SAMPLES)
        padded.view(-1)[:samples] = 0.1 * torch.randn(samples, generator=generator)
    own = Batch(
        segments=torch.cat([padded[:size] for padded, size in zip(padded_BKN, sizes, strict=True)]),
        segments_per_clip=torch.tensor(sizes),
        mask_draws=torch.rand(sum(sizes), NUM_MASK_DRAWS, generator=generator),
        captions=captions,
        clips=torch.arange(len(sizes)),
    )
    return Clips(own.to(device), padded_BKN.to(device))


def caption(words: int, number: int) -> str:
    """So many words; different numbers begin differently."""
    return " ".join(WORDS[(number + place) % len(WORDS)] for place in range(words))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A token a word, between BERT's marks."""
    named = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS)
    tokenizer = Tokenizer(models.WordLevel({token: number for number, token in enumerate(named)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [("[CLS]", named.index("[CLS]")), ("[SEP]", named.index("[SEP]"))]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")


def build_network(layers: int) -> DualEncoder:
    """PaSST-N and bert-base with random weights and up to so many layers."""
    torch.manual_seed(0)
    audio = load_network_module(PASST_N).build(PASST_N)
    audio.net.blocks = audio.net.blocks[:layers]
    for name, parameter in audio.net.named_parameters():
        if "pos_embed" in name or "token" in name:
            nn.init.normal_(parameter)  # large enough to matter when results are compared
    dropout = {"hidden_dropout_prob": BERT_BASE.dropout, "attention_probs_dropout_prob": BERT_BASE.dropout}
    bert = BertModel(BertConfig(num_hidden_layers=layers, **dropout), add_pooling_layer=False)
    text = networks.HuggingFaceEncoder(BERT_BASE, bert, build_tokenizer())
    return DualEncoder(audio, text, EMBEDDING_SIZE, temperature=0.01)


class PublishedFrontEnd(nn.Module):
    """hear21passt's front end with the paper's settings."""

    def __init__(self) -> None:
        super().__init__()
        self.mel = AugmentMelSTFT(fmin=0.0, fmax=15_000, fmin_aug_range=10, fmax_aug_range=2_000, freqm=48, timem=192)

    def forward(self, segments_SN: Tensor, mask_draws: Tensor, generator: torch.Generator) -> Tensor:
        """It draws by itself."""
        return self.mel(segments_SN)


class PublishedPasst(nn.Module):
    """hear21passt's PaSST with its own forward pass, and with the parameters of ours."""

    def __init__(self, ours: PasstEncoder) -> None:
        super().__init__()
        net = make_passt(ours.config)
        published.first_RUN = False  # of its first pass it prints every shape
        net.blocks = net.blocks[: len(ours.net.blocks)]
        net.head = net.head_dist = nn.Identity()
        net.load_state_dict(ours.net.state_dict(keep_vars=True), assign=True)
        self.net = net
        self.front_end: nn.Module = ours.front_end

    def forward(self, segments_SN: Tensor, mask_draws: Tensor, generator: torch.Generator) -> Tensor:
        """[S, W]."""
        return self.net(self.front_end(segments_SN, mask_draws, generator).unsqueeze(1))[1]


@dataclass(frozen=True)
class Way:
    """Which parts are computed our way; the others as the authors do."""

    segments: bool = False  # a clip's own ones only
    attention: bool = False  # our forward pass of PaSST; torch's fused attention in BERT
    front_end: bool = False
    text: bool = False  # padded to the longest caption
    bfloat16: bool = False


PLAIN = Way()
PARTS = {field.name: replace(PLAIN, **{field.name: True}) for field in fields(Way) if field.name != "bfloat16"}
OURS = Way(segments=True, attention=True, front_end=True, text=True)
LEAST_WORK = replace(OURS, attention=False)
"""The operations of OURS by plain matrix products: torch's counter hasn't a formula for every fused kernel."""


class Subject:
    """One network that computes either way."""

    def __init__(self, layers: int, device: torch.device) -> None:
        self.device = device
        self.network = build_network(layers).to(device)
        ours = self.network.audio
        assert isinstance(ours, PasstEncoder)
        self.encoders = {True: ours, False: PublishedPasst(ours)}
        self.front_ends: dict[bool, LogMel | PublishedFrontEnd] = {
            True: ours.front_end,
            False: PublishedFrontEnd().to(device),
        }
        self.optimizer = torch.optim.Adam(self.network.parameters(), RATE)
        self.generator = torch.Generator().manual_seed(0)

    @contextlib.contextmanager
    def working(self, way: Way, training: bool) -> Iterator[None]:
        """The network as a way asks for it."""
        network = self.network
        network.audio = self.encoders[way.attention]
        network.audio.front_end = self.front_ends[way.front_end]
        network.text.model.set_attn_implementation("sdpa" if way.attention else "eager")
        network.train(training)
        with torch.set_grad_enabled(training):
            yield

    def autocast(self, way: Way) -> torch.autocast:
        """The precision of a way."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=way.bfloat16)

    def embed_padded(self, padded_BKN: Tensor, counts_B: Tensor) -> Tensor:
        """Clips [B, D] as the authors do: all segments are embedded, the mean is taken over a clip's own."""
        segments_SN = padded_BKN.flatten(0, 1)
        mask_draws = torch.rand(len(segments_SN), NUM_MASK_DRAWS, device=self.device)
        features_SW = self.network.audio(segments_SN, mask_draws, self.generator)
        features = features_SW.view(*padded_BKN.shape[:2], -1)
        means_BW = torch.stack([own[:count].mean(0) for own, count in zip(features, counts_B.tolist(), strict=True)])
        return nn.functional.normalize(self.network.audio_projection(means_BW).float(), dim=-1)

    def tokenize(self, way: Way, captions: list[str]) -> Tokens:
        """Captions, padded to the longest or to 32 tokens."""
        text = self.network.text
        if way.text:
            return text.tokenize(captions).to(self.device)
        most = {"max_length": BERT_BASE.max_tokens, "truncation": True}
        encoded = text.tokenizer(captions, padding="max_length", return_tensors="pt", **most)
        return Tokens(encoded["input_ids"], encoded["attention_mask"]).to(self.device)

    def embed(self, way: Way, clips: Clips) -> tuple[Tensor, Tensor]:
        """Clips and captions [B, D]."""
        own = clips.own
        if way.segments:
            audio_BD = self.network.embed_audio(own, self.generator)
        else:
            audio_BD = self.embed_padded(clips.padded_BKN, own.segments_per_clip)
        return audio_BD, self.network.embed_text(self.tokenize(way, own.captions))

    def step(self, way: Way, clips: Clips) -> None:
        """One training step."""
        with self.working(way, training=True):
            self.optimizer.zero_grad(set_to_none=True)
            with self.autocast(way):
                audio_BD, text_BD = self.embed(way, clips)
            nt_xent(audio_BD, text_BD, clips.own.clips, self.network.temperature).backward()
            self.optimizer.step()

    def validate_plainly(self, clips: Clips, captions: list[str], batch_size: int) -> tuple[Tensor, Tensor]:
        """Clips and captions of all pairs: each clip is embedded once a caption."""
        embedded = []
        with self.working(PLAIN, training=False):
            for first in range(0, len(captions), batch_size):
                part = captions[first : first + batch_size]
                rows = torch.arange(first, first + len(part), device=self.device) // CAPTIONS_PER_CLIP
                audio_BD = self.embed_padded(clips.padded_BKN[rows], clips.own.segments_per_clip[rows])
                embedded.append((audio_BD, self.network.embed_text(self.tokenize(PLAIN, part))))
        audio, text = zip(*embedded, strict=True)
        return torch.cat(audio), torch.cat(text)

    def validate(self, clips: Clips, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Clips, each once, and captions: as trainables.embed does."""
        with self.working(OURS, training=False):
            audio = [self.network.embed_audio(part, self.generator) for part in clips.own.split(CLIPS_PER_BATCH)]
            texts = [
                captions[first : first + QUERIES_PER_BATCH] for first in range(0, len(captions), QUERIES_PER_BATCH)
            ]
            text = [self.network.embed_text(self.tokenize(OURS, part)) for part in texts]
        return torch.cat(audio), torch.cat(text)

    def seconds(self, function: Callable[[], object]) -> float:
        """How long a call takes."""
        self.wait()
        started = time.perf_counter()
        function()
        self.wait()
        return time.perf_counter() - started

    def wait(self) -> None:
        """Until a GPU has done its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def product_flop_s(self) -> float:
        """Operations a second of a plain matrix product, the best of a few."""
        size = 2048
        left, right = torch.randn(2, size, size, device=self.device)
        return 2 * size**3 / min(self.seconds(lambda: left @ right) for _ in range(6))


def compare(what: str, expected: tuple[Tensor, Tensor], got: tuple[Tensor, Tensor]) -> None:
    """Tell the largest difference; end with an error where results aren't equal."""
    difference = max(float((one - other).abs().max()) for one, other in zip(expected, got, strict=True))
    say(f"{what:<72} {difference:10.1e} largest difference")
    if difference > TOLERANCE:
        raise SystemExit(f"{what}: not the same embeddings (at most {TOLERANCE} is allowed)")


def training_step(subject: Subject, batch_size: int, rounds: int) -> Clips:
    """A step of each way, and what it reaches of the machine."""
    pairs = mixed_pairs(batch_size)
    captions = [caption(words, number) for number, (_, words) in enumerate(pairs)]
    clips = make_clips([duration_s for duration_s, _ in pairs], captions, subject.device)
    padded, own = clips.padded_BKN.shape[0] * SEGMENTS_OF_PADDED, len(clips.own.segments)
    ideal = padded / own
    longest = subject.tokenize(OURS, captions).ids.shape[1]
    say(f"\nA training step of {batch_size} pairs: {own} segments ({padded} padded), {longest} tokens (32 padded)")
    ways = {"plain": PLAIN, **PARTS, "all": OURS}
    embedded = {}
    for name, way in ways.items():
        with subject.working(way, training=False):
            embedded[name] = subject.embed(way, clips)
    for name in list(ways)[1:]:
        compare(f"embeddings, plain and {name}", embedded["plain"], embedded[name])

    if subject.device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    capabilities = torch.cpu.get_capabilities()
    has_bfloat16 = subject.device.type == "cuda" or capabilities["avx512_bf16"]
    if has_bfloat16:
        ways["all, bfloat16"] = replace(OURS, bfloat16=True)
    with FlopCounterMode(display=False) as counter:  # a step before those that are timed, which finds Adam's memory
        subject.step(LEAST_WORK, clips)
    taken_s: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            taken_s[name].append(subject.seconds(lambda way=way: subject.step(way, clips)))
    step_s = {name: statistics.median(times) for name, times in taken_s.items()}

    say(f"\nOne part our way, the others plain (median of {rounds}; segments alone allow {ideal:.2f} times)")
    for name, median_s in step_s.items():
        told(
            f"{name}: {median_s:.3f} s a step, {batch_size / median_s:.2f} pairs/s", step_s["plain"] / median_s, "times"
        )
    told("all, of what the segments alone allow", step_s["plain"] / step_s["all"] / ideal, "", least=0.9)
    if has_bfloat16:
        told("all, bfloat16 / float32", step_s["all"] / step_s["all, bfloat16"], "times", least=2.5)
    else:
        say("bfloat16: not measured here, as this CPU has no AVX512-BF16")

    rate, limit = counter.get_total_flops() / step_s["all"], subject.product_flop_s()
    told(f"a step's matrix products ({counter.get_total_flops() / 1e12:.3f} TFLOP)", rate / 1e9, "GFLOP/s")
    told("a product of 2048 x 2048 matrices", limit / 1e9, "GFLOP/s")
    told("the step / the product: what it reaches of the machine", 100 * rate / limit, "%")
    return clips


def profile_step(subject: Subject, clips: Clips) -> None:
    """What a step's time goes into."""
    with torch.profiler.profile() as profiler:
        subject.step(OURS, clips)
    order = "self_cuda_time_total" if subject.device.type == "cuda" else "self_cpu_time_total"
    say("\n" + profiler.key_averages().table(sort_by=order, row_limit=10, max_name_column_width=48))


def validation_pass(subject: Subject, num_clips: int, batch_size: int, rounds: int) -> None:
    """Clips of 15 to 30 s with five captions each."""
    durations_s = np.linspace(15, LONGEST_S, 2 * num_clips + 1)[1::2].tolist()
    clips = make_clips(durations_s, [""] * num_clips, subject.device)
    words = np.random.default_rng(0).poisson(MIX["Clotho development"].mean_words, CAPTIONS_PER_CLIP * num_clips)
    captions = [caption(count, number) for number, count in enumerate(words.clip(1).tolist())]
    own = len(clips.own.segments)
    say(f"\nA validation pass over {num_clips} clips of 15 to 30 s ({own} segments) with {len(captions)} captions")
    audio_PD, text_PD = subject.validate_plainly(clips, captions, batch_size)
    audio_AD, text_QD = subject.validate(clips, captions)
    compare("embeddings", (audio_PD, text_PD), (audio_AD.repeat_interleave(CAPTIONS_PER_CLIP, dim=0), text_QD))
    plain, ours = [], []
    for _ in range(rounds):
        plain.append(subject.seconds(lambda: subject.validate_plainly(clips, captions, batch_size)))
        ours.append(subject.seconds(lambda: subject.validate(clips, captions)))
    plain_s, ours_s = statistics.median(plain), statistics.median(ours)
    told("segments, plain / ours", CAPTIONS_PER_CLIP * SEGMENTS_OF_PADDED * num_clips / own, "times")
    told(f"time, plain ({plain_s:.2f} s) / ours ({ours_s:.2f} s)", plain_s / ours_s, "times", least=4.5)


def main() -> None:
    """Measure and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--clips", type=int, default=6, help="of the validation pass")
    parser.add_argument("--layers", type=int, default=12, help="of each encoder")
    parser.add_argument("--rounds", type=int, default=3, help="in which each way is timed once")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")  # hear21passt's use of what torch will drop
    say(f"{machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {arguments.device}")
    subject = Subject(arguments.layers, arguments.device)
    clips = training_step(subject, arguments.batch_size, arguments.rounds)
    if arguments.profile:
        profile_step(subject, clips)
    torch.set_float32_matmul_precision("highest")
    validation_pass(subject, arguments.clips, arguments.batch_size, arguments.rounds)


if __name__ == "__main__":
    main()

"""What audio models of Hugging Face cost, as ratios to PaSST-N: a training step, its memory, and the front end's share.

python tests/benchmarks/audio_models.py [--segments 2] [--device cuda] [--families ast clap whisper]

The models have the sizes of published ones and random weights, and embed segments of their own length; figures are for
a second of audio, since those lengths differ. Each is measured in a process of its own. The extractor is transformers'
own, called on the CPU. Memory is what a step keeps for its backward pass.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers
from measure import machine, say, told
from torch import Tensor, nn

from data.loading.batch import NUM_MASK_DRAWS
from data.schema import SAMPLE_RATE_HZ
from trainables.encoders.audio import huggingface, passt
from trainables.networks import load_network_module
from trainables.networks.audio.feature_extraction import ExtractorFrontEnd

REPEATS = 2
MAX_FRONT_END_SHARE = 0.1
"""Of a step: with more, the front end would hold up the encoder."""

MASKED = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}


def dac() -> Any:
    """DAC at 16 kHz, without its decoder's size."""
    shape = {"downsampling_ratios": [2, 4, 5, 8], "sampling_rate": 16_000, "hop_length": 320, "decoder_hidden_size": 16}
    return transformers.DacModel(transformers.DacConfig(**shape))


def pe_audio() -> Any:
    """The audio encoder of PE-Audio with the default size of its config, two of six layers, and a codec at 48 kHz."""
    codec = {"downsampling_ratios": [2, 8, 10, 12], "sampling_rate": 48_000, "hop_length": 1920}
    return transformers.PeAudioEncoder(transformers.PeAudioEncoderConfig(num_hidden_layers=2, dac_config=codec))


FAMILIES: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "ast": (lambda: transformers.ASTModel(transformers.ASTConfig()), transformers.ASTFeatureExtractor),
    "clap": (
        lambda: transformers.ClapModel(transformers.ClapConfig(text_config={"num_hidden_layers": 1})),
        lambda: transformers.ClapFeatureExtractor(truncation="rand_trunc"),
    ),
    "whisper": (
        lambda: transformers.WhisperModel(
            transformers.WhisperConfig(
                d_model=512,
                encoder_layers=6,
                encoder_attention_heads=8,
                encoder_ffn_dim=2048,
                decoder_layers=1,
                decoder_attention_heads=8,
            )
        ),
        transformers.WhisperFeatureExtractor,
    ),
    "wav2vec2": (
        lambda: transformers.Wav2Vec2Model(transformers.Wav2Vec2Config()),
        transformers.Wav2Vec2FeatureExtractor,
    ),
    "wav2vec2-conformer": (
        lambda: transformers.Wav2Vec2ConformerModel(
            transformers.Wav2Vec2ConformerConfig(num_hidden_layers=12, position_embeddings_type="rotary")
        ),
        transformers.Wav2Vec2FeatureExtractor,
    ),
    "wav2vec2-bert": (
        lambda: transformers.Wav2Vec2BertModel(transformers.Wav2Vec2BertConfig(num_hidden_layers=12)),
        lambda: transformers.SeamlessM4TFeatureExtractor(padding_value=1.0),
    ),
    "hubert": (
        lambda: transformers.HubertModel(transformers.HubertConfig(**MASKED)),
        lambda: transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True),
    ),
    "wavlm": (lambda: transformers.WavLMModel(transformers.WavLMConfig()), transformers.Wav2Vec2FeatureExtractor),
    "data2vec-audio": (
        lambda: transformers.Data2VecAudioModel(transformers.Data2VecAudioConfig()),
        lambda: transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True),
    ),
    "dac": (dac, lambda: transformers.DacFeatureExtractor(hop_length=320)),
    "encodec": (
        lambda: transformers.EncodecModel(transformers.EncodecConfig()),
        transformers.EncodecFeatureExtractor,
    ),
    "pe-audio": (pe_audio, transformers.PeAudioFeatureExtractor),
}


@dataclass(frozen=True)
class Cost:
    """Seconds and bytes for a second of audio."""

    step_s: float
    memory: float
    front_end_s: float = 0.0
    extractor_s: float = 0.0


def build(name: str) -> tuple[nn.Module, float]:
    """A network with random weights, and the length of its segments in seconds."""
    torch.manual_seed(0)
    if name == "passt":
        config = replace(passt.VARIANTS["N"], pretrained=False)
        return load_network_module(config).build(config), config.segment_s
    with tempfile.TemporaryDirectory() as folder:
        make_model, make_extractor = FAMILIES[name]
        make_model().save_pretrained(folder)
        make_extractor().save_pretrained(folder)
        own = huggingface.Config(folder)
        return load_network_module(own).build(own), own.segment_s


def seconds(device: torch.device, function: Callable[[], object]) -> float:
    """The median time of a call, after a first one: of a GPU's calls the time that passes, otherwise CPU time."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    times = []
    for _ in range(REPEATS + 1):
        started = clock()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(clock() - started)
    return statistics.median(times[1:])


def saved_bytes(step: Callable[[], object], weights: set[int]) -> float:
    """The bytes that a step keeps for its backward pass, besides the weights, which are given by their addresses."""
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return float(sum(size for address, size in sizes.items() if address not in weights))


def measure(name: str, segments: int, device: torch.device) -> Cost:
    """The cost of one family."""
    network, segment_s = build(name)
    network.to(device).train()
    size = round(segment_s * SAMPLE_RATE_HZ)
    segments_SN = 0.1 * torch.randn(segments, size, generator=torch.Generator().manual_seed(0)).to(device)
    counts_S = torch.full((segments,), size, device=device)
    draws = torch.rand(segments, NUM_MASK_DRAWS).to(device)
    is_own = getattr(network, "reads_num_samples", False)
    audio_s = segments * segment_s
    front_end_s = extractor_s = 0.0
    if is_own:
        front_end_s = seconds(device, lambda: network.extract(segments_SN, counts_S))  # type: ignore[operator]
        extractor: Any = network.extractor
        called = ExtractorFrontEnd(extractor, round(segment_s * extractor.sampling_rate))
        samples_SN = torch.zeros(segments, round(segment_s * extractor.sampling_rate)) + 0.1
        extractor_s = seconds(
            torch.device("cpu"), lambda: called(samples_SN, torch.full((segments,), samples_SN.shape[1]))
        )

    def step() -> Tensor:
        network.zero_grad(set_to_none=True)
        options = {"num_samples_S": counts_S} if is_own else {}
        loss: Tensor = network(segments_SN, draws, torch.Generator(), **options).square().mean()
        loss.backward()
        return loss

    step_s = seconds(device, step)
    memory = saved_bytes(step, {one.untyped_storage().data_ptr() for one in network.parameters()})
    return Cost(step_s / audio_s, memory / audio_s, front_end_s / audio_s, extractor_s / audio_s)


def measure_elsewhere(name: str, segments: int, device: str) -> Cost:
    """The cost of one family, measured in a process of its own."""
    words = [sys.executable, __file__, "--only", name, "--segments", str(segments), "--device", device]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """All of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--segments", type=int, default=2, help="of a batch")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--families", nargs="*", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--only", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only:
        say(json.dumps(vars(measure(given.only, given.segments, torch.device(given.device)))))
        return
    say(f"{machine()}, {given.device}, batches of {given.segments} segments")
    reference = measure_elsewhere("passt", given.segments, given.device)
    told("PaSST-N: a step, for a second of audio", 1000 * reference.step_s, "ms")
    told("PaSST-N: memory of a step, for a second of audio", reference.memory / 1e6, "MB")
    for name in given.families:
        cost = measure_elsewhere(name, given.segments, given.device)
        say()
        told(f"{name}: step / PaSST-N's", cost.step_s / reference.step_s, "times")
        told(f"{name}: memory / PaSST-N's", cost.memory / reference.memory, "times")
        told(f"{name}: front end / step", cost.front_end_s / cost.step_s, "", most=MAX_FRONT_END_SHARE)
        told(f"{name}: transformers' extractor on the CPU / step", cost.extractor_s / cost.step_s, "")


if __name__ == "__main__":
    main()

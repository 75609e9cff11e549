"""Input of audio models from Hugging Face: what a model's own feature extractor makes of a recording.

`make_front_end` compares a front end in torch with the extractor itself, which is called, on the CPU, where there is no
front end or where they differ.

Shapes: S segments, N samples.
"""

import inspect
import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.networks.audio.front_ends import FRONT_ENDS, Inputs

logger = logging.getLogger("chorale.encoders")

MIN_AUDIO_S = 0.1
"""Shorter recordings count as that long, zeros included: some extractors and models have no frame for them."""

TOLERANCE = 1e-4
"""Maximum difference between a front end's output and the extractor's, as a share of that one's largest magnitude (at
least 1).
"""


def make_front_end(extractor: Any, segment_s: float) -> nn.Module:
    """Return the module that computes what a feature `extractor` of transformers makes of segments of `segment_s`
    seconds at its sample rate. Its arguments are the samples of S segments [S, N] and how many of them are the
    recording's [S]; it returns `Inputs`.
    """
    size = round(segment_s * extractor.sampling_rate)
    called = ExtractorFrontEnd(extractor, size)
    kind = type(extractor).__name__
    if kind not in FRONT_ENDS:
        logger.info("%s is called on the CPU for each segment.", kind)
        return called
    front_end = FRONT_ENDS[kind](extractor)
    if (difference := measure_difference(front_end, called, size)) > TOLERANCE:
        logger.warning(
            "%s differs from its torch version by %.1g: it is called on the CPU for each segment, which is slower.",
            kind, difference,
        )  # fmt: skip
        return called
    return front_end


@torch.no_grad()
def measure_difference(front_end: nn.Module, called: "ExtractorFrontEnd", size: int) -> float:
    """Return the maximum difference between the output of a front end and that of an extractor, `called`, for noise
    that fills half of a segment of `size` samples and for noise that fills all of it, as a share of the extractor's
    largest magnitude (at least 1).
    """
    samples_SN = 0.1 * torch.randn(2, size, generator=torch.Generator().manual_seed(0))
    counts_S = torch.tensor([size // 2 + 1, size])
    samples_SN[0, counts_S[0] :] = 0
    actual, expected = front_end(samples_SN, counts_S), called(samples_SN, counts_S)
    differences = [0.0]
    for name, values in expected.arguments.items():
        other = actual.arguments.get(name)
        if other is None or other.shape != values.shape:
            return float("inf")
        scale = max(1.0, float(values.double().abs().max()))
        differences.append(float((other.double() - values.double()).abs().max()) / scale)
    return max(differences)


class ExtractorFrontEnd(nn.Module):
    """Front end that calls an extractor for each segment by itself, and pads its output at the end, as that of a
    segment of `size` samples is long.
    """

    def __init__(self, extractor: Any, size: int) -> None:
        super().__init__()
        self.extractor = extractor
        options = inspect.signature(type(extractor).__call__).parameters
        # An extractor that doesn't pad by default returns lists, and one that pads to a fixed length must keep it.
        needs_padding = "padding" in options and options["padding"].default is False
        self.options: dict[str, bool] = {"padding": True} if needs_padding else {}
        recording = np.full(size, 0.1, np.float32)
        self.names = self.extract(recording).keys()
        if "return_attention_mask" in options:  # needed in order to count, even if the model doesn't read it
            self.options["return_attention_mask"] = True
        self.whole = self.extract(recording)

    def extract(self, samples_N: Any) -> dict[str, Tensor]:
        """Return the extractor's output for the samples of one recording [N], with a first dimension of 1."""
        rate_hz = self.extractor.sampling_rate
        output = self.extractor([samples_N], sampling_rate=rate_hz, return_tensors="pt", **self.options)
        arguments = {name: value for name, value in output.items() if isinstance(value, Tensor)}
        if "is_longer" in arguments:  # CLAP's extractor sets it for a random recording of a batch
            arguments["is_longer"] = torch.zeros_like(arguments["is_longer"])
        return arguments

    def forward(self, samples_SN: Tensor, counts_S: Tensor) -> Inputs:
        """Return the input of a model for the samples [S, N] of segments, of which the first `counts_S` are the
        recording's.
        """
        rows = [
            self.extract(row[:count].cpu().numpy()) for row, count in zip(samples_SN, counts_S.tolist(), strict=True)
        ]
        arguments = {
            name: torch.cat([pad_as(row[name], whole, self.padding_value(name)) for row in rows]).to(samples_SN.device)
            for name, whole in self.whole.items()
        }
        mask = next((arguments[name] for name in arguments if "mask" in name), None)
        read = {name: value for name, value in arguments.items() if name in self.names}
        if mask is None:
            return Inputs(read, counts_S, samples_SN.shape[1])
        return Inputs(read, mask.flatten(1).sum(dim=1), mask.flatten(1).shape[1])

    def padding_value(self, name: str) -> float:
        """Return the number with which the argument `name` is padded."""
        return 0.0 if "mask" in name else float(getattr(self.extractor, "padding_value", 0.0))


def pad_as(values: Tensor, whole: Tensor, padding_value: float) -> Tensor:
    """Return `values` padded with `padding_value` at the end of each dimension to the shape of `whole`."""
    padding = [size for now, end in zip(values.shape[::-1], whole.shape[::-1], strict=True) for size in (0, end - now)]
    return functional.pad(values, padding, value=padding_value)

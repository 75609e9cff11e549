"""Front ends: what the feature extractors of transformers make of recordings, computed in torch for a batch of
segments, on their device.

The front ends in `FRONT_ENDS` compute the functions of transformers' extractors of these names (5.23) from the
extractor's own filters and settings. Products are computed in float64 on a GPU, since torch multiplies float32 matrices
in TF32 there, which has ten bits.

Shapes: S segments, N samples, T frames, M mel bands, F frequencies, W samples of a window.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchaudio.compliance.kaldi import get_mel_banks

from trainables.networks.audio.log_mel import PRE_EMPHASIS, transform_in_blocks

KALDI_FLOOR = 1.192092955078125e-07
KALDI_WINDOW_S, KALDI_HOP_S, KALDI_FMIN_HZ = 0.025, 0.010, 20.0
"""Smallest energy of a mel band, and Kaldi's frames (torchaudio.compliance.kaldi.fbank)."""

POWER_FLOOR, WHISPER_RANGE = 1e-10, 8.0
"""Smallest power of a mel band (transformers.audio_utils), and Whisper's range below the maximum, as log10."""

INT16_SCALE = 2**15
NORMALISE_EPSILON = 1e-7


class Inputs(NamedTuple):
    """Input of a model: its arguments by name, and which part of them is the recording's: the first `valid_S` of the
    `length` samples or frames.
    """

    arguments: dict[str, Tensor]
    valid_S: Tensor
    length: int


def precise(samples_SN: Tensor) -> Tensor:
    """Return samples in float64 on a GPU, where products of float32 may be computed in TF32."""
    return samples_SN.double() if samples_SN.is_cuda else samples_SN


def mask_positions(length: int, counts_S: Tensor) -> Tensor:
    """Return a mask [S, length] that is True for the first `counts_S` positions."""
    return torch.arange(length, device=counts_S.device) < counts_S[:, None]


def pad_end(samples_SN: Tensor, size: int) -> Tensor:
    """Return samples [S, size], padded with zeros at the end or cut."""
    return functional.pad(samples_SN, (0, size - samples_SN.shape[1]))


class KaldiLogMel(nn.Module):
    """Logarithm of Kaldi's mel spectrograms [S, T, M]: each frame is centred, emphasised and multiplied by a window,
    `window` [W], before its spectrum is weighted by the filters `bank` [M, F]. Frames begin every `hop` samples.
    """

    window: Tensor
    bank: Tensor

    def __init__(self, window: Tensor, hop: int, bank: Tensor) -> None:
        super().__init__()
        self.hop, self.fft = hop, 2 * (bank.shape[1] - 1)
        self.register_buffer("window", window.double(), persistent=False)
        self.register_buffer("bank", bank.double(), persistent=False)

    def forward(self, samples_SN: Tensor) -> Tensor:
        """Return the spectrograms [S, T, M] of the samples [S, N] of segments."""
        return transform_in_blocks(samples_SN, self.transform)

    def transform(self, samples_SN: Tensor) -> Tensor:
        """Return the spectrograms [S, T, M] of the samples [S, N] of some segments, computed at once."""
        frames_STW = precise(samples_SN).unfold(1, len(self.window), self.hop)
        frames_STW = frames_STW - frames_STW.mean(dim=2, keepdim=True)
        previous_STW = torch.cat([frames_STW[..., :1], frames_STW[..., :-1]], dim=2)
        emphasised_STW = (frames_STW - PRE_EMPHASIS * previous_STW) * self.window.to(frames_STW.dtype)
        spectrum_STF = torch.fft.rfft(emphasised_STW, self.fft).to(torch.complex64)  # as transformers rounds it
        real_STF, imaginary_STF = (part.to(frames_STW.dtype) for part in (spectrum_STF.real, spectrum_STF.imag))
        power_STF = real_STF.square() + imaginary_STF.square()
        mel_STM: Tensor = power_STF @ self.bank.T.to(power_STF.dtype)
        return mel_STM.clamp(min=KALDI_FLOOR).log().float()

    def count_frames(self, counts_S: Tensor) -> Tensor:
        """Return the number of frames [S] that lie within the first `counts_S` samples."""
        return ((counts_S - len(self.window)) // self.hop + 1).clamp(min=0)


class CentredMel(nn.Module):
    """Mel spectrograms [S, M, T] of frames that are centred at every `hop`th sample and mirrored at the ends, with a
    Hann window of `size` samples and an extractor's filters [F, M].
    """

    window: Tensor
    bank: Tensor

    def __init__(self, size: int, hop: int, filters: Any) -> None:
        super().__init__()
        self.size, self.hop = size, hop
        self.register_buffer("window", torch.hann_window(size, dtype=torch.float64), persistent=False)
        self.register_buffer("bank", torch.from_numpy(np.asarray(filters)).double().T.contiguous(), persistent=False)

    def forward(self, samples_SN: Tensor) -> Tensor:
        """Return the spectrograms [S, M, T] of the samples [S, N] of segments, at least POWER_FLOOR."""
        return transform_in_blocks(samples_SN, self.transform)

    def transform(self, samples_SN: Tensor) -> Tensor:
        """Return the spectrograms [S, M, T] of the samples [S, N] of some segments, computed at once."""
        samples_SN = precise(samples_SN)
        window = self.window.to(samples_SN.dtype)
        spectrum_SFT = torch.stft(samples_SN, self.size, self.hop, window=window, return_complex=True)
        power_SFT = spectrum_SFT.real.square() + spectrum_SFT.imag.square()
        return (self.bank.to(power_SFT.dtype) @ power_SFT).clamp(min=POWER_FLOOR).float()


class AstFrontEnd(nn.Module):
    """ASTFeatureExtractor: Kaldi's log-mel spectrogram, padded with zeros to a fixed number of frames and scaled."""

    def __init__(self, extractor: Any) -> None:
        super().__init__()
        self.extractor = extractor
        rate_hz = extractor.sampling_rate
        size, hop = int(rate_hz * KALDI_WINDOW_S), int(rate_hz * KALDI_HOP_S)
        fft = 1 << (size - 1).bit_length()
        bank, _ = get_mel_banks(extractor.num_mel_bins, fft, float(rate_hz), KALDI_FMIN_HZ, 0.0, 100.0, -500.0, 1.0)
        window = torch.hann_window(size, periodic=False)
        self.log_mel = KaldiLogMel(window, hop, functional.pad(bank, (0, 1)))  # Kaldi has no Nyquist bin

    def forward(self, samples_SN: Tensor, counts_S: Tensor) -> Inputs:
        """Return the input of AST for the samples [S, N] of segments, of which the first `counts_S` are the
        recording's.
        """
        length = self.extractor.max_length
        log_mel_STM = self.log_mel(samples_SN)
        frames_S = self.log_mel.count_frames(counts_S).clamp(max=length)
        log_mel_STM = log_mel_STM * mask_positions(log_mel_STM.shape[1], frames_S).unsqueeze(2)
        log_mel_STM = functional.pad(log_mel_STM, (0, 0, 0, length - log_mel_STM.shape[1]))
        if self.extractor.do_normalize:
            log_mel_STM = (log_mel_STM - self.extractor.mean) / (2 * self.extractor.std)
        return Inputs({"input_values": log_mel_STM}, frames_S, length)


class ClapFrontEnd(nn.Module):
    """ClapFeatureExtractor for recordings that aren't longer than its input: the recording is repeated to fill it, and
    its mel spectrogram is in decibels.

    A model with fusion gets the spectrogram four times, and `is_longer` is False. The extractor sets that for a random
    recording of a batch without long ones.
    """

    def __init__(self, extractor: Any) -> None:
        super().__init__()
        self.extractor = extractor
        self.is_fused = extractor.truncation == "fusion"
        filters = extractor.mel_filters if self.is_fused else extractor.mel_filters_slaney
        self.mel = CentredMel(extractor.fft_window_size, extractor.hop_length, filters)

    def forward(self, samples_SN: Tensor, counts_S: Tensor) -> Inputs:
        """Return the input of CLAP for the samples [S, N] of segments, of which the first `counts_S` are the
        recording's.
        """
        power_SMT = self.mel(self.repeat(samples_SN, counts_S))
        decibels_S1TM = 10 * power_SMT.log10().transpose(1, 2).unsqueeze(1)
        is_longer = torch.zeros(len(samples_SN), 1, dtype=torch.bool, device=samples_SN.device)
        features = decibels_S1TM.expand(-1, 4 if self.is_fused else 1, -1, -1)
        length = features.shape[2]  # what fills the input is the recording's
        return Inputs({"input_features": features, "is_longer": is_longer}, torch.full_like(counts_S, length), length)

    def repeat(self, samples_SN: Tensor, counts_S: Tensor) -> Tensor:
        """Return samples that fill the extractor's input: the recording's are repeated, as whole recordings only
        ("repeatpad") or to the end ("repeat"), or followed by zeros ("pad").
        """
        positions_N = torch.arange(self.extractor.nb_max_samples, device=samples_SN.device)
        counts_S1 = counts_S[:, None]
        filled_S1 = counts_S1
        if self.extractor.padding == "repeatpad":
            filled_S1 = len(positions_N) // counts_S1 * counts_S1
        elif self.extractor.padding == "repeat":
            filled_S1 = torch.full_like(counts_S1, len(positions_N))
        return samples_SN.gather(1, positions_N % counts_S1) * (positions_N < filled_S1)


class WhisperFrontEnd(nn.Module):
    """WhisperFeatureExtractor: the log-mel spectrogram of the recording and the zeros after it, of which the values far
    below the maximum are raised.
    """

    def __init__(self, extractor: Any) -> None:
        super().__init__()
        self.extractor = extractor
        self.mel = CentredMel(extractor.n_fft, extractor.hop_length, extractor.mel_filters)

    def forward(self, samples_SN: Tensor, counts_S: Tensor) -> Inputs:
        """Return the input of Whisper for the samples [S, N] of segments, of which the first `counts_S` are the
        recording's.
        """
        log_mel_SMT = self.mel(pad_end(samples_SN, self.extractor.n_samples))[..., :-1].log10()
        log_mel_SMT = log_mel_SMT.maximum(log_mel_SMT.amax(dim=(1, 2), keepdim=True) - WHISPER_RANGE)
        hop, length = self.extractor.hop_length, log_mel_SMT.shape[2]
        return Inputs({"input_features": (log_mel_SMT + 4) / 4}, (counts_S + hop - 1) // hop, length)


class SeamlessFrontEnd(nn.Module):
    """SeamlessM4TFeatureExtractor, which wav2vec2-bert has: Kaldi's log-mel spectrogram, each mel band scaled to mean 0
    and variance 1 over the recording, and neighbouring frames joined.
    """

    def __init__(self, extractor: Any) -> None:
        super().__init__()
        self.extractor = extractor
        window, bank = torch.from_numpy(extractor.window), torch.from_numpy(extractor.mel_filters).T
        self.log_mel = KaldiLogMel(window, round(len(window) * KALDI_HOP_S / KALDI_WINDOW_S), bank.contiguous())

    def forward(self, samples_SN: Tensor, counts_S: Tensor) -> Inputs:
        """Return the input of wav2vec2-bert for the samples [S, N] of segments, of which the first `counts_S` are the
        recording's.
        """
        stride = self.extractor.stride
        log_mel_STM = self.log_mel(samples_SN.double() * INT16_SCALE)  # as NumPy does
        frames_S = self.log_mel.count_frames(counts_S)
        mask_ST = mask_positions(log_mel_STM.shape[1], frames_S)
        scaled_STM = normalise(log_mel_STM, mask_ST.unsqueeze(2), correction=1)
        scaled_STM = scaled_STM.masked_fill(~mask_ST.unsqueeze(2), self.extractor.padding_value)
        padding = scaled_STM.shape[1] % 2  # the extractor pads to an even number of frames
        scaled_STM = functional.pad(scaled_STM, (0, 0, 0, padding), value=self.extractor.padding_value)
        mask_ST = functional.pad(mask_ST, (0, padding))
        length = scaled_STM.shape[1] // stride
        joined = scaled_STM[:, : length * stride].unflatten(1, (length, stride)).flatten(2)
        mask_ST = mask_ST[:, 1::stride][:, :length].long()
        return Inputs({"input_features": joined, "attention_mask": mask_ST}, mask_ST.sum(dim=1), length)


class WaveformFrontEnd(nn.Module):
    """Wav2Vec2FeatureExtractor: the samples, scaled to mean 0 and variance 1 over the recording if the extractor does
    so, with a mask if it returns one.
    """

    def __init__(self, extractor: Any) -> None:
        super().__init__()
        self.extractor = extractor

    def forward(self, samples_SN: Tensor, counts_S: Tensor) -> Inputs:
        """Return the input of wav2vec 2.0 for the samples [S, N] of segments, of which the first `counts_S` are the
        recording's.
        """
        mask_SN = mask_positions(samples_SN.shape[1], counts_S)
        if self.extractor.do_normalize:
            samples_SN = normalise(samples_SN, mask_SN, correction=0)
        arguments = {"input_values": samples_SN.masked_fill(~mask_SN, self.extractor.padding_value)}
        if self.extractor.return_attention_mask:
            arguments["attention_mask"] = mask_SN.long()
        return Inputs(arguments, counts_S, samples_SN.shape[1])


class CodecFrontEnd(nn.Module):
    """DacFeatureExtractor and EncodecFeatureExtractor: the samples as one channel, followed by zeros up to a multiple
    of the extractor's hop, if it has one; and PeAudioFeatureExtractor, which mirrors the recording up to such a
    multiple.
    """

    def __init__(self, extractor: Any) -> None:
        super().__init__()
        self.hop = getattr(extractor, "hop_length", 1)
        self.mirrors = hasattr(extractor, "_reflect_pad")

    def forward(self, samples_SN: Tensor, counts_S: Tensor) -> Inputs:
        """Return the input of a codec for the samples [S, N] of segments, of which the first `counts_S` are the
        recording's.
        """
        samples_SN = pad_end(samples_SN, -(-samples_SN.shape[1] // self.hop) * self.hop)
        length = samples_SN.shape[1]
        if self.mirrors:
            period_S1 = (2 * counts_S - 2).clamp(min=1)[:, None]
            positions_SN = torch.arange(length, device=samples_SN.device) % period_S1
            samples_SN = samples_SN.gather(1, positions_SN.minimum(period_S1 - positions_SN))
            counts_S = (counts_S + self.hop - 1) // self.hop * self.hop
            samples_SN = samples_SN * mask_positions(length, counts_S)
        mask_SN = mask_positions(length, counts_S).long()
        return Inputs({"input_values": samples_SN.unsqueeze(1), "padding_mask": mask_SN}, counts_S, length)


def normalise(values: Tensor, mask: Tensor, correction: int) -> Tensor:
    """Return values scaled to mean 0 and variance 1 over the positions of the second dimension for which `mask` is
    True. The variance is the sum of squares divided by the number of positions less `correction`.
    """
    count = mask.sum(dim=1, keepdim=True)
    centred = values - (values * mask).sum(dim=1, keepdim=True) / count.clamp(min=1)
    variance = (centred * mask).square().sum(dim=1, keepdim=True) / (count - correction).clamp(min=1)
    return centred / (variance + NORMALISE_EPSILON).sqrt()


FRONT_ENDS: dict[str, Callable[[Any], nn.Module]] = {
    "ASTFeatureExtractor": AstFrontEnd,
    "ClapFeatureExtractor": ClapFrontEnd,
    "WhisperFeatureExtractor": WhisperFrontEnd,
    "SeamlessM4TFeatureExtractor": SeamlessFrontEnd,
    "Wav2Vec2FeatureExtractor": WaveformFrontEnd,
    "DacFeatureExtractor": CodecFrontEnd,
    "EncodecFeatureExtractor": CodecFrontEnd,
    "PeAudioFeatureExtractor": CodecFrontEnd,
}
"""Front ends by the class of the extractor that they compute."""

"""Log-mel spectrograms as PaSST computes them (hear21passt 0.0.26, `AugmentMelSTFT`), which other encoders share.

Differences from hear21passt: the filter bank of evaluation is built once, random numbers in training come from
generators that are passed in, and nothing is printed.

Shapes: S segments, N samples, M mel bands, T frames.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchaudio.compliance.kaldi import get_mel_banks

from data.schema import SAMPLE_RATE_HZ
from trainables.encoders.frontend import Config

PRE_EMPHASIS = 0.97
LOG_OFFSET = 1e-5
NORMALISE_SHIFT, NORMALISE_SCALE = 4.5, 5.0
"""Approximate mean and standard deviation of AudioSet's log-mel spectrograms, from hear21passt."""

CPU_BLOCK = 4
"""Number of segments that a CPU transforms at a time. Their spectra stay in its cache, which halves the time
(measured).
"""


class LogMel(nn.Module):
    """Front end that computes normalised log-mel spectrograms [S, M, T], with M mel bands and T frames, of S segments
    of N samples.
    """

    window: Tensor
    bank: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        window = torch.hann_window(config.window_samples, periodic=False)
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("bank", self.make_filter_bank(config.fmin_hz, config.fmax_hz), persistent=False)

    def make_filter_bank(self, fmin_hz: float, fmax_hz: float) -> Tensor:
        """Return Kaldi's triangular mel filters from `fmin_hz` to `fmax_hz`: the weight of each frequency in each of M
        mel bands [M, fft_samples / 2 + 1].
        """
        config = self.config
        bank, _ = get_mel_banks(
            config.num_mels,
            config.fft_samples,
            SAMPLE_RATE_HZ,
            fmin_hz,
            fmax_hz,
            vtln_low=100.0,
            vtln_high=-500.0,
            vtln_warp_factor=1.0,
        )
        return nn.functional.pad(bank, (0, 1))  # Kaldi has no Nyquist bin

    def draw_filter_bank(self, generator: torch.Generator) -> Tensor:
        """Return mel filters, the weight of each frequency in each of M mel bands [M, fft_samples / 2 + 1], whose
        frequency limits are drawn at random. All ranks draw the same limits for a batch, since their generators have
        the same seed.
        """
        config = self.config
        low, high = (
            int(torch.randint(max(1, span), (1,), generator=generator))
            for span in (config.fmin_jitter_hz, config.fmax_jitter_hz)
        )
        return self.make_filter_bank(config.fmin_hz + low, config.fmax_hz + config.fmax_jitter_hz // 2 - high).to(
            self.bank
        )

    def forward(self, segments_SN: Tensor, mask_draws: Tensor, generator: torch.Generator) -> Tensor:
        """Return the normalised log-mel spectrograms [S, M, T], with M mel bands and T frames, of S segments of N
        samples. In training, the mel filters' limits are drawn by `generator`, and mel bands and frames are masked
        where the random numbers `mask_draws` say.
        """
        config = self.config
        bank = self.draw_filter_bank(generator) if self.training else self.bank
        log_mel_SMT = transform_in_blocks(segments_SN, lambda segments: self.compute_log_mel(segments, bank))
        if self.training:
            log_mel_SMT = mask_stripes(log_mel_SMT, 1, config.mask_mels, mask_draws[:, :2])
            log_mel_SMT = mask_stripes(log_mel_SMT, 2, config.mask_frames, mask_draws[:, 2:])
        return (log_mel_SMT + NORMALISE_SHIFT) / NORMALISE_SCALE

    def compute_log_mel(self, segments_SN: Tensor, bank: Tensor) -> Tensor:
        """Return the natural logarithm of the mel spectrograms [S, M, T], with M mel bands and T frames, of S segments
        of N samples, neither masked nor normalised. `bank` holds the mel filters [M, fft_samples / 2 + 1].
        """
        emphasised = segments_SN[:, 1:] - PRE_EMPHASIS * segments_SN[:, :-1]
        spectrum = torch.stft(
            emphasised,
            self.config.fft_samples,
            hop_length=self.config.hop_samples,
            win_length=self.config.window_samples,
            window=self.window,
            return_complex=True,
        )
        power = spectrum.real.square() + spectrum.imag.square()
        return (bank @ power + LOG_OFFSET).log()


def transform_in_blocks(segments_SN: Tensor, transform: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the results of `transform` for all segments as one tensor. They are computed in float32 even under
    autocast and, on a CPU, for a few segments at a time, which is faster.
    """
    block = len(segments_SN) if segments_SN.is_cuda else CPU_BLOCK
    with torch.autocast(segments_SN.device.type, enabled=False):
        return torch.cat([transform(segments) for segments in segments_SN.split(max(1, block))])


def mask_stripes(log_mel_SMT: Tensor, dim: int, max_width: int, draws_S2: Tensor) -> Tensor:
    """Return log-mel spectrograms with one stripe of mel bands (`dim` 1) or frames (`dim` 2) set to zero in each
    segment, as in SpecAugment (Park et al. 2019). A stripe is at most `max_width` wide.

    `draws_S2` has two uniform random numbers on [0, 1) for each segment: they determine the stripe's width and
    position.
    """
    size = log_mel_SMT.shape[dim]
    width_S = (draws_S2[:, 0] * min(max_width, size)).floor()
    start_S = (draws_S2[:, 1] * (size - width_S)).floor()
    position = torch.arange(size, device=log_mel_SMT.device)
    stripe = (position >= start_S[:, None]) & (position < (start_S + width_S)[:, None])
    return log_mel_SMT.masked_fill(stripe.unsqueeze(3 - dim), 0.0)

"""Settings of the log-mel front end of PaSST and the small CNN; trainables.networks.audio.log_mel computes it."""

from dataclasses import dataclass

from data.errors import UserError
from data.schema import SAMPLE_RATE_HZ


@dataclass(frozen=True)
class Config:
    """Settings of the log-mel front end. The defaults are those that PaSST was trained with."""

    num_mels: int = 128
    window_samples: int = 800
    hop_samples: int = 320
    fft_samples: int = 1024
    fmin_hz: float = 0.0
    fmax_hz: float = 15_000.0
    fmin_jitter_hz: int = 10  # in training, fmin is drawn from [fmin, fmin + jitter)
    fmax_jitter_hz: int = 2_000  # in training, fmax is drawn from (fmax - jitter / 2, fmax + jitter / 2]
    mask_mels: int = 48  # SpecAugment: maximum width of a segment's mask in mel bands
    mask_frames: int = 192  # SpecAugment: maximum width in frames

    def __post_init__(self) -> None:
        if not 0 < self.window_samples <= self.fft_samples:
            raise UserError(
                f"window_samples is {self.window_samples}: it must be from 1 to fft_samples ({self.fft_samples})"
            )
        if self.fmax_hz + self.fmax_jitter_hz / 2 > SAMPLE_RATE_HZ / 2:
            raise UserError(
                f"fmax_hz + fmax_jitter_hz / 2 must not exceed {SAMPLE_RATE_HZ // 2} Hz: lower fmax_hz or the jitter"
            )
        if not 0 <= self.mask_mels <= self.num_mels:
            raise UserError(f"mask_mels is {self.mask_mels}: it must be from 0 to num_mels ({self.num_mels})")

    @property
    def augmentations(self) -> tuple[str, ...]:
        """Names of the front end's augmentations in training: 'SpecAugment' and 'jittered mel bands', as far as they
        are enabled.
        """
        masks, jitters = self.mask_mels or self.mask_frames, self.fmin_jitter_hz or self.fmax_jitter_hz
        return ("SpecAugment",) * bool(masks) + ("jittered mel bands",) * bool(jitters)

"""Random changes of training pairs: clips mixed with others, their captions joined, and random gains.

Mixing pairs in both modalities is PairMix (Kim et al. 2022, "Exploring Train and Test-Time Augmentations for
Audio-Language Learning"), which follows MixGen (Hao et al. 2023) for images.
"""

from dataclasses import dataclass

import numpy as np

from data.errors import UserError

MAX_MIX_DB = 5.0
"""Maximum difference in gain, in dB, between a clip and the one that is added to it."""

JOINT = " and "
"""Text between the captions of a mixture; captions are normalised, so they have no punctuation."""


@dataclass(frozen=True)
class Augmentation:
    """Settings of the augmentation of pairs. With the defaults, pairs are used as they are."""

    mix_probability: float = 0.0  # of mixing a pair's clip with that of another pair
    gain_db: float = 0.0  # gains are drawn from -gain_db to gain_db
    filter_db: float = 0.0  # gains of random filters are drawn from -filter_db to filter_db

    def __post_init__(self) -> None:
        if not 0 <= self.mix_probability <= 1:
            raise UserError(f"mix_probability is {self.mix_probability}: it must be from 0 to 1")
        for name in ("gain_db", "filter_db"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}: it must be 0 or more")


NO_AUGMENTATION = Augmentation()


@dataclass(frozen=True)
class PairChange:
    """Random change of one pair. The draws are uniform on [0, 1)."""

    gain: float  # factor of the clip, or of the mixture
    is_mixed: bool
    partner: int  # index of the pair that is mixed in
    partner_gain: float
    partner_draws: tuple[float, float, float]  # of the partner's crop and wording
    is_partner_first: bool  # whether the partner's caption comes first

    def join(self, caption: str, partner_caption: str) -> str:
        """Return the caption of the mixture, from the normalised captions of both pairs."""
        captions = (partner_caption, caption) if self.is_partner_first else (caption, partner_caption)
        return JOINT.join(captions)


def draw_change(rng: np.random.Generator, augmentation: Augmentation, num_pairs: int) -> PairChange:
    """Return a random change of a pair, one of `num_pairs`. It takes the same number of draws whatever the settings
    are, so that the changes of two settings differ only where they must.
    """
    draws = rng.random(8)
    return PairChange(
        gain=to_factor((2 * draws[1] - 1) * augmentation.gain_db),
        is_mixed=bool(draws[0] < augmentation.mix_probability),
        partner=int(draws[2] * num_pairs),
        partner_gain=to_factor((2 * draws[3] - 1) * MAX_MIX_DB),
        partner_draws=(float(draws[4]), float(draws[5]), float(draws[6])),
        is_partner_first=bool(draws[7] < 0.5),
    )


def to_factor(decibels: float) -> float:
    """Return the factor by which a gain in decibels multiplies samples."""
    return float(10 ** (decibels / 20))

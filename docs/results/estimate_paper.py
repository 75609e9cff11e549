"""Estimate the GPU hours of each trained row of the paper's Table 2.

    python docs/results/estimate_paper.py

Writes paper_hours.json. The numbers of clips are those published. The average number of 10-s segments is 2.7 for a
Clotho clip, 1 for AudioCaps and AudioSet, 2.2 for FreeSound, and 2.8 for BBC and SoundBible (assumed).
"""

import json
from pathlib import Path

from data.splits import Splits
from sweeps import spaces
from sweeps.planning.estimate import A10G, EpochWork, estimate_epoch_seconds
from trainables import encoders
from trainables.trial import iter_required_trials

TOKENS = 32
"""Length that captions are padded to: the encoders' maximum."""

CLOTHO = (3_839 * 5, 3_839 * 5 * 2.7)
AUDIOCAPS = (49_838 + 495 * 5 + 975 * 5, 49_838 + 495 * 5 + 975 * 5)
WAVCAPS = (108_317 + 31_201 + 262_300 + 1_232, 108_317 + 262_300 * 2.2 + (31_201 + 1_232) * 2.8)
"""Pairs and 10-s segments in an epoch."""


def count_published(segment_s: float, corpora: list[tuple[float, float]]) -> EpochWork:
    """Return the amount of computation in an epoch over some corpora; longer segments are counted in proportion."""
    return EpochWork(
        pairs=round(sum(pairs for pairs, _ in corpora)),
        segments=round(sum(max(pairs, segments * 10 / segment_s) for pairs, segments in corpora)),
        tokens=TOKENS,
    )


def main() -> None:
    """Write the hours of each trial of the space `table2`, its pretraining apart."""
    train, wavcaps = "clotho/development", ("AudioSet_SL", "BBC_Sound_Effects", "FreeSound", "SoundBible")
    pretrain = (
        train,
        *(f"audiocaps/{split}" for split in ("train", "val", "test")),
        *(f"wavcaps/{s}" for s in wavcaps),
    )
    splits = Splits(train=train, validation="clotho/validation", test="clotho/evaluation", pretrain=pretrain)
    rows = []
    for trial in spaces.table2(splits, "bfloat16"):
        if trial.seed:
            continue
        hours = {}
        for stage in reversed(list(iter_required_trials(trial))):
            corpora = [CLOTHO] if stage.train == (train,) else [CLOTHO, AUDIOCAPS, WAVCAPS]
            epoch = count_published(trial.audio.segment_s, corpora)
            hours[stage.stage] = round(estimate_epoch_seconds(stage, epoch) / 3600, 1)
        names = [encoders.format_label(config) for config in (trial.audio, trial.text)]
        rows.append({"encoders": names, "paraphrases": trial.paraphrase_probability > 0, "hours": hours})
    result = {"gpu": A10G.name, "tflops": A10G.tflops, "used": A10G.used, "rows": rows}
    Path(__file__).with_name("paper_hours.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Table 2 of the paper: text-to-audio retrieval on Clotho's test split, in percent.

Primus, Koutini and Widmer, CP-JKU's submission to task 6b of DCASE 2023. The row of CNN14 with all-mpnet-base-v2 is
DCASE's baseline; the row of CNN14 with bert-base belongs to another system, with a different recipe. The best system of
2022 is left out, since no trial can reproduce it.
"""

from dataclasses import dataclass

from data.schema import SplitId
from trainables import encoders, retrieval
from trainables.recipes import PAPER_PARAPHRASES
from trainables.trial import Trial

METRICS = retrieval.METRICS

TEST, TRAIN = "clotho/evaluation", ("clotho/development",)
"""Test split of the table, and training splits of its fine-tunings and its baseline (from the paper)."""

PRETRAINING_CORPORA = {"audiocaps", "clotho", "wavcaps"}
"""Corpora of the pretrainings (from the paper); the splits that are held out from them may differ."""

PRETRAINING_RATE, FINE_TUNING_RATE, BASELINE_RATE = 2e-5, 8e-6, 1e-3
"""Peak learning rates: from the paper, and the baseline's from its published code."""

BASELINE = "cnn14:dcase2023"
"""Audio encoder of the baseline, which is trained once, on Clotho."""

PaperMetrics = tuple[float | None, float, float, float]
"""mAP@10, R@1, R@5 and R@10."""


@dataclass(frozen=True, order=True)
class TableKey:
    """Key of a row of the paper's Table 2: the encoders, and whether it has fine-tuning and paraphrases."""

    audio: str  # family:variant
    text: str
    fine_tuned: bool
    paraphrases: bool


def make_key(trial: Trial) -> TableKey:
    """Return the key of the row in the paper's Table 2 that a trial corresponds to."""
    audio, text = encoders.format_label(trial.audio), encoders.format_label(trial.text)
    return TableKey(audio, text, trial.pretraining is not None, trial.paraphrase_probability > 0)


def find_published(trial: Trial) -> PaperMetrics | None:
    """Return the paper's metrics, in percent, of the row of Table 2 that a trial reproduces.

    None if there is no such row, or the trial's test split, corpora, learning rates or paraphrase probability differ.
    """
    return TABLE_2.get(make_key(trial)) if trial.test == TEST and matches_paper_recipe(trial) else None


def matches_paper_recipe(trial: Trial) -> bool:
    """Return whether a trial, and its pretraining, were trained on the paper's corpora at the paper's rates, without
    teachers, to the end, and it is no soup.
    """
    rate = trial.schedule.peak_rate
    if trial.teachers or trial.average_of or trial.snapshot_epoch:
        return False
    if trial.pretraining:
        is_fine_tuned_so = (rate, trial.train) == (FINE_TUNING_RATE, TRAIN)
        is_share = trial.paraphrase_probability in (0.0, PAPER_PARAPHRASES)
        return is_fine_tuned_so and is_share and matches_paper_recipe(trial.pretraining)
    if encoders.format_label(trial.audio) == BASELINE:
        return (rate, trial.train) == (BASELINE_RATE, TRAIN)
    corpora = {SplitId.parse(split).corpus for split in trial.train}
    return rate == PRETRAINING_RATE and corpora == PRETRAINING_CORPORA


def _row(audio: str, text: str, fine_tuned: bool = True, paraphrases: bool = True) -> TableKey:
    return TableKey(audio, f"huggingface:{text}", fine_tuned, paraphrases)


TABLE_2: dict[TableKey, PaperMetrics] = {
    _row("passt:N", "bert-base"): (37.15, 24.63, 53.53, 68.38),
    _row("passt:N", "roberta-base"): (37.29, 24.56, 54.78, 68.25),
    _row("passt:N", "bert-large"): (37.85, 25.11, 55.69, 68.42),
    _row("passt:N", "roberta-large"): (38.56, 26.07, 55.27, 69.30),
    _row("passt:S", "bert-base"): (36.29, 24.15, 53.22, 67.06),
    _row("passt:S", "roberta-base"): (36.76, 24.15, 54.16, 68.33),
    _row("passt:S", "bert-large"): (37.06, 24.80, 53.89, 67.69),
    _row("passt:S", "roberta-large"): (37.79, 25.53, 54.62, 68.48),
    _row("passt:S15", "bert-large"): (38.16, 25.36, 54.85, 68.42),
    _row("passt:S15", "roberta-large"): (38.42, 26.00, 55.54, 69.13),
    _row("passt:N", "roberta-large", paraphrases=False): (38.00, 25.51, 55.06, 68.56),
    _row("passt:N", "roberta-large", fine_tuned=False, paraphrases=False): (36.27, 24.38, 52.54, 66.22),
    _row("cnn14:dcase2023", "all-mpnet-base-v2", fine_tuned=False, paraphrases=False): (22.20, 13.00, 34.30, 48.00),
    _row("cnn14:audioset", "bert-base", paraphrases=False): (None, 21.40, 47.90, 61.90),
}

ENSEMBLE: PaperMetrics = (41.42, 28.89, 58.73, 71.08)

ENSEMBLE_MEMBERS = {
    *(_row("passt:N", text) for text in ("bert-base", "roberta-base", "bert-large", "roberta-large")),
    *(_row(audio, text) for audio in ("passt:S", "passt:S15") for text in ("bert-large", "roberta-large")),
}
"""Members of the paper's ensemble: rows 1 to 8."""

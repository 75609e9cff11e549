"""Trial: the config of one training, with everything that can change its result."""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import dacite

from data.errors import UserError
from data.loading.augmentation import Augmentation
from data.sources.json_text import parse_json
from trainables import encoders
from trainables.encoders import dual_models
from trainables.encoders.audio import AudioConfig
from trainables.encoders.dual_models import DualModel
from trainables.encoders.text import TextConfig
from trainables.schedule import Plateau, Schedule

TRIAL_FILE, MODEL_FILE = "trial.json", "model.safetensors"
"""Files of a trained model: its config, which is also an artifact of its MLflow run, and its weights."""

Precision = Literal["float32", "bfloat16"]

ADDED_SETTINGS = ("final_epoch", "log_temperature", "reset_temperature", "shared_mask", "cycles", "teachers",
                  "teacher_temperature", "hard_share", "average_of", "snapshot_epoch",
                  "mix_probability", "gain_db", "filter_db", "audio_rate_share", "text_rate_share", "layer_decay",
                  "initial")  # fmt: skip
"""Settings, of trials or schedules, that trial.json didn't have at first. It has them only if they differ from their
defaults, so that the files of other trials stay as they were.
"""

NAMED_SETTINGS = ("fixed_temperature", "log_temperature", "reset_temperature", "shared_mask")
"""Settings that a trial's name mentions if they are on."""

RATE_SETTINGS = ("audio_rate_share", "text_rate_share", "layer_decay")
"""Settings of the learning rates of a model's parts; a trial's name mentions those that aren't 1."""


@dataclass(frozen=True)
class Teacher:
    """Teacher of a student: a trial that is trained before the student, or files with the output of any other model.

    Files are embeddings (`trainables.records.embeddings`) of the clips and normalised captions of a split, or scores as
    a NumPy array [captions, clips] of cosines, with the clips in the order of the store and the captions clip by clip.
    """

    trial: "Trial | None" = None
    weight: float = 1.0  # relative to the student's other teachers
    files: tuple[str, ...] = ()  # absolute path of a file for each of the student's training splits

    def __post_init__(self) -> None:
        if (self.trial is None) == (not self.files):
            raise UserError("a teacher is either a trial or a list of files: give one of them")
        if not self.weight > 0:
            raise UserError(f"the weight of a teacher is {self.weight}: it must be above 0")

    @property
    def name(self) -> str:
        """Human-readable name: that of the trial, or the paths of the files."""
        return self.trial.name if self.trial else ", ".join(self.files)


@dataclass(frozen=True)
class Trial:
    """Config of one training. The defaults are the paper's, as far as they don't depend on the stage.

    If `pretraining` is given, training starts from the best epoch of that trial, which must have the same encoders and
    embedding size.

    If `teachers` are given, the trial is a student: it learns their scores in each batch (`soft_cross_entropy`), and
    the labels with the share `hard_share` of the loss.

    If `average_of` is given, the trial is a model soup (Wortsman et al. 2022), which `make_soup` returns: nothing is
    trained, and its weights are the mean of those of the trials.
    """

    audio: AudioConfig
    text: TextConfig
    train: tuple[str, ...]  # training splits, 'corpus/split'
    validation: str
    test: str  # embedded after training; its metrics are not computed
    schedule: Schedule | Plateau
    batch_size: int = 64  # pairs per batch, over all ranks
    embedding_size: int = 1024
    temperature: float = 0.01  # initial value; from the authors' published settings
    fixed_temperature: bool = False  # the temperature is not learned
    log_temperature: bool = False  # the temperature's logarithm is learned, which moves it more slowly
    reset_temperature: bool = False  # a fine-tuning starts with `temperature`, not with its pretraining's learned one
    shared_mask: bool = False  # one SpecAugment mask for all segments of a batch, as in the authors' code
    frozen_audio: bool = False  # the audio encoder isn't trained, only its projection
    frozen_text: bool = False
    audio_rate_share: float = 1.0  # share of the schedule's learning rate that the audio encoder has
    text_rate_share: float = 1.0
    layer_decay: float = 1.0  # the rate of each block of an encoder is that of the next block times this factor
    paraphrase_probability: float = 0.0
    mix_probability: float = 0.0  # of mixing a clip with another one and joining their captions (PairMix)
    gain_db: float = 0.0  # training clips have random gains from -gain_db to gain_db
    filter_db: float = 0.0  # training clips have random filters with gains from -filter_db to filter_db
    longest_audio_s: float = 30.0
    precision: Precision = "float32"
    clip_norm: float | None = None  # maximum norm of all gradients; None: no clipping, as in the paper
    seed: int = 0
    pretraining: "Trial | None" = None
    initial: DualModel | None = None  # both encoders, their projections and the temperature are those of one model
    teachers: tuple[Teacher, ...] = ()
    teacher_temperature: float = 0.05  # divides the mean of the teachers' cosines before the softmax
    hard_share: float = 0.0  # share of the loss on labels (NT-Xent) in that of a student
    final_epoch: int | None = None  # train on all splits to the end of this epoch, without validation
    snapshot_epoch: int | None = None  # train to the end of this epoch, whose weights are kept, best or not
    average_of: tuple["Trial", ...] = ()

    def __post_init__(self) -> None:
        if not self.train:
            raise UserError("a trial needs at least one split to train on")
        if not 0 <= self.paraphrase_probability <= 1:
            raise UserError(f"paraphrase_probability is {self.paraphrase_probability}: it must be from 0 to 1")
        if self.batch_size < 2:
            raise UserError(f"batch_size is {self.batch_size}: a contrastive loss needs at least 2 pairs")
        if self.precision not in get_args(Precision):
            raise UserError(f"precision is {self.precision!r}: it must be {' or '.join(get_args(Precision))}")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise UserError(f"clip_norm is {self.clip_norm}: it must be above 0, or None")
        if self.seed < 0:
            raise UserError(f"seed is {self.seed}: it must be 0 or more")
        if self.longest_audio_s <= 0:
            raise UserError(f"longest_audio_s is {self.longest_audio_s}: it must be above 0")
        if self.shared_mask and "SpecAugment" not in self.audio.augmentations:
            raise UserError("shared_mask: the audio encoder has no SpecAugment; unset shared_mask, or set its masks")
        Augmentation(self.mix_probability, self.gain_db, self.filter_db)  # raises if a value is out of range
        self.check_temperature()
        self.check_rates()
        self.check_last_epoch()
        self.check_teachers()
        self.check_initial()
        self.check_average()
        if self.pretraining and (self.audio, self.text, self.embedding_size) != (
            self.pretraining.audio,
            self.pretraining.text,
            self.pretraining.embedding_size,
        ):
            raise UserError("a fine-tuning must have its pretraining's encoders and embedding size")

    def check_temperature(self) -> None:
        """Raise UserError if the temperature isn't above 0, or if a setting of it has no effect."""
        if self.temperature <= 0:
            raise UserError(f"temperature is {self.temperature}: it must be above 0")
        if self.fixed_temperature and self.log_temperature:
            raise UserError("log_temperature: the temperature isn't learned, since fixed_temperature is set; unset one")
        if self.reset_temperature and not (self.pretraining or self.initial):
            raise UserError("reset_temperature: a pretraining always starts with its own temperature; unset it")

    def check_rates(self) -> None:
        """Raise UserError if a setting of the learning rates of the model's parts is out of range or has no effect."""
        frozen = (self.frozen_audio, self.frozen_text, self.frozen_audio and self.frozen_text)
        for name, is_frozen in zip(RATE_SETTINGS, frozen, strict=True):
            value = getattr(self, name)
            if not value > 0 or (name == "layer_decay" and value > 1):
                raise UserError(f"{name} is {value}: it must be above 0, and layer_decay at most 1")
            if is_frozen and value != 1:
                raise UserError(f"{name} has no effect on a frozen encoder: leave it at 1, or train the encoder")

    def check_last_epoch(self) -> None:
        """Raise UserError if `final_epoch` or `snapshot_epoch` exceeds the schedule's epochs, if both are set, or if
        training without validation would need validation losses.
        """
        for name in ("final_epoch", "snapshot_epoch"):
            epoch = getattr(self, name)
            if epoch is not None and not 1 <= epoch <= self.schedule.epochs:
                raise UserError(f"{name} is {epoch}: it must be from 1 to epochs ({self.schedule.epochs})")
        if self.final_epoch is not None and self.snapshot_epoch is not None:
            raise UserError("final_epoch and snapshot_epoch both say when training ends: unset one")
        if self.final_epoch is not None and not isinstance(self.schedule, Schedule):
            raise UserError(
                "final_epoch: training to a fixed epoch has no validation, but Plateau needs it: use Schedule"
            )

    def check_teachers(self) -> None:
        """Raise UserError if a setting of the distillation is out of range or has no effect, or if a teacher hasn't one
        file for each training split.
        """
        if self.teacher_temperature <= 0:
            raise UserError(f"teacher_temperature is {self.teacher_temperature}: it must be above 0")
        if not 0 <= self.hard_share < 1:
            raise UserError(f"hard_share is {self.hard_share}: it must be at least 0 and below 1")
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name in ("teacher_temperature", "hard_share"):
            if not self.teachers and getattr(self, name) != defaults[name]:
                raise UserError(f"{name} has no effect without teachers: add teachers, or leave it at {defaults[name]}")
        if self.teachers and self.mix_probability:
            raise UserError("mix_probability: teachers have no scores for mixtures of clips; unset it, or the teachers")
        for teacher in self.teachers:
            if teacher.files and len(teacher.files) != len(self.train):
                raise UserError(
                    f"the teacher {teacher.name} has {len(teacher.files)} files: give one for each of the training "
                    f"splits ({', '.join(self.train)})"
                )

    def check_initial(self) -> None:
        """Raise UserError if the trial can't start from a published dual encoder as `initial` says, or if it has no
        epochs without such a start, or settings that have no effect without epochs.
        """
        if self.initial:
            dual_models.require_one_model(self.initial, self.audio, self.text)
        if self.pretraining and self.pretraining.initial != self.initial:
            raise UserError("a fine-tuning must have its pretraining's `initial`")
        if self.schedule.epochs:
            return
        if not self.initial or self.pretraining:
            raise UserError("a trial of 0 epochs needs a published dual encoder (`initial`), which it evaluates")
        for name in ("teachers", "mix_probability", "gain_db", "filter_db", "paraphrase_probability"):
            if getattr(self, name):
                raise UserError(f"{name} has no effect on a trial of 0 epochs: unset it")

    def check_average(self) -> None:
        """Raise UserError unless the trials of a soup have the same encoders and splits and a common origin: either the
        same pretraining, or one training after different epochs. The mean of other models' weights is no working model.
        """
        if not self.average_of:
            return
        if len(set(self.average_of)) < max(2, len(self.average_of)):
            raise UserError("average_of must have at least two trials, each once")
        first = self.average_of[0]
        for part in (*self.average_of, self):
            for name in ("audio", "text", "embedding_size", "train", "validation", "test", "pretraining"):
                if getattr(part, name) != getattr(first, name):
                    raise UserError(f"the trials of a soup differ in {name}: {part.name} and {first.name}")
            if part.final_epoch:
                raise UserError(f"{part.name} is trained on all splits, so that it can't be part of a soup")
        if first.pretraining is None and len({replace(part, snapshot_epoch=None) for part in self.average_of}) > 1:
            raise UserError(
                "the trials of a soup must be fine-tunings of one pretraining, or one training after different epochs: "
                + " and ".join(part.name for part in self.average_of)
            )
        for name in ("teachers", "snapshot_epoch"):
            if getattr(self, name):
                raise UserError(f"{name} has no effect on a soup, which isn't trained: unset it")

    @property
    def stage(self) -> str:
        """Stage of the training: 'pretraining' or 'fine-tuning'."""
        return "fine-tuning" if self.pretraining else "pretraining"

    @property
    def epochs(self) -> int:
        """Maximum number of epochs: `final_epoch` or `snapshot_epoch` if it is set, otherwise that of the schedule; 1
        for a model that isn't trained, which is evaluated once.
        """
        return self.final_epoch or self.snapshot_epoch or self.schedule.epochs if self.is_trained else 1

    @property
    def is_trained(self) -> bool:
        """Whether weights are trained: not those of a soup, nor those of a published dual encoder in 0 epochs."""
        return not self.average_of and self.schedule.epochs > 0

    def is_over(self, epoch: int, validation_losses: Sequence[float] = ()) -> bool:
        """Return whether training ends after `epoch` epochs, given the validation loss of each epoch so far
        (`validation_losses`).
        """
        return epoch >= self.epochs or self.schedule.is_over(epoch, validation_losses)

    @property
    def training_splits(self) -> set[str]:
        """Names of the splits that the trial or a trial that it requires is trained on."""
        return {name for trial in iter_required_trials(self) for name in trial.train}

    @property
    def name(self) -> str:
        """Human-readable name that distinguishes the trial from others of its sweep."""
        parts = [encoders.format_label(self.audio), encoders.format_label(self.text)]
        if self.average_of:
            return " ".join([*parts, f"soup of {len(self.average_of)}"])
        parts += [f"rate {self.schedule.peak_rate:g}"]
        frozen = {"audio": self.frozen_audio, "text": self.frozen_text}
        parts += [f"frozen {kind}" for kind, is_frozen in frozen.items() if is_frozen]
        parts += describe_rate_settings(self)
        if not self.is_trained:
            return " ".join([*parts[:2], "without training"])
        parts += [f"p {self.paraphrase_probability:g}"] if self.pretraining else ["pretraining"]
        parts += [f"mix {self.mix_probability:g}"] if self.mix_probability else []
        parts += [f"student of {len(self.teachers)}"] if self.teachers else []
        parts += [name.replace("_", " ") for name in NAMED_SETTINGS if getattr(self, name)]
        parts += [f"final epoch {self.final_epoch}"] if self.final_epoch else []
        parts += [f"epoch {self.snapshot_epoch}"] if self.snapshot_epoch else []
        return " ".join([*parts, f"seed {self.seed}"])


def make_soup(parts: Iterable[Trial]) -> Trial:
    """Return the model soup of trials: the trial whose weights are the mean of theirs. The order of `parts` doesn't
    matter. Raises UserError if they have no common origin.
    """
    ordered = tuple(sorted(parts, key=lambda part: json.dumps(to_json(part), sort_keys=True)))
    untrained = {name: getattr(Trial, name) for name in ("teachers", "teacher_temperature", "hard_share")}
    return replace(ordered[0], average_of=ordered, snapshot_epoch=None, **untrained)


def list_requirements(trial: Trial) -> list[Trial]:
    """Return the trials that must have finished before a trial can start: its pretraining and its teachers, or the
    trials whose weights it averages.
    """
    if trial.average_of:
        return list(trial.average_of)
    pretraining = [trial.pretraining] if trial.pretraining else []
    return [*pretraining, *(teacher.trial for teacher in trial.teachers if teacher.trial)]


def iter_required_trials(trial: Trial) -> Iterator[Trial]:
    """Yield a trial, the trials that it requires (`list_requirements`), and those that these require. A trial that is
    required several times is yielded several times.
    """
    yield trial
    for required in list_requirements(trial):
        yield from iter_required_trials(required)


def describe_rate_settings(trial: Trial) -> list[str]:
    """Return each setting of the learning rates of a trial's parts that isn't 1, with its value, as text."""
    return [f"{name.replace('_', ' ')} {value:g}" for name in RATE_SETTINGS if (value := getattr(trial, name)) != 1]


def to_json(trial: Trial) -> dict[str, Any]:
    """Return the trial as a dict for JSON, including its encoders and its pretraining. Settings of ADDED_SETTINGS are
    omitted while they have their defaults.
    """
    teachers = [
        {
            "trial": to_json(teacher.trial) if teacher.trial else None,
            "weight": teacher.weight,
            "files": list(teacher.files),
        }
        for teacher in trial.teachers
    ]
    return {
        **list_fields(trial),
        **({"teachers": teachers} if teachers else {}),
        **({"average_of": [to_json(part) for part in trial.average_of]} if trial.average_of else {}),
        "audio": encoders.to_json(trial.audio),
        "text": encoders.to_json(trial.text),
        "train": list(trial.train),
        "schedule": list_fields(trial.schedule),
        "pretraining": to_json(trial.pretraining) if trial.pretraining else None,
    }


def list_fields(config: Trial | Schedule | Plateau) -> dict[str, Any]:
    """Return the fields of a config by name, without those of ADDED_SETTINGS that have their defaults."""
    return {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name not in ADDED_SETTINGS or getattr(config, field.name) != field.default
    }


def from_json(value: dict[str, Any]) -> Trial:
    """Return the trial for a dict that `to_json` returned. Raises UserError for an unknown encoder or setting."""
    if not isinstance(value, dict):
        raise UserError(f"not a trial: it must be an object with settings by name, not {value!r}")
    settings = dict(value)
    try:
        settings["audio"] = encoders.from_json("audio", settings["audio"])
        settings["text"] = encoders.from_json("text", settings["text"])
        settings["pretraining"] = from_json(settings["pretraining"]) if settings["pretraining"] else None
        settings["teachers"] = tuple(map(teacher_from_json, settings.get("teachers", ())))
        settings["average_of"] = tuple(map(from_json, settings.get("average_of", ())))
        return dacite.from_dict(Trial, settings, dacite.Config(strict=True, cast=[tuple]))
    except (dacite.DaciteError, KeyError) as error:
        raise UserError(f"not a trial: {error}") from error


def teacher_from_json(value: dict[str, Any]) -> Teacher:
    """Return the teacher for an entry of the list `teachers` of a trial in JSON. Raises UserError for a malformed
    one.
    """
    if not isinstance(value, dict):
        raise UserError(f"not a teacher: it must be an object with settings by name, not {value!r}")
    try:
        trial = from_json(value["trial"]) if value["trial"] else None
        return dacite.from_dict(Teacher, value | {"trial": trial}, dacite.Config(strict=True, cast=[tuple]))
    except (dacite.DaciteError, KeyError) as error:
        raise UserError(f"not a teacher: {error}") from error


def load_trial(folder: Path) -> Trial:
    """Return the config of the trained model in a folder. Raises UserError if the folder has no trial.json, or if that
    file is damaged.
    """
    path = folder / TRIAL_FILE
    try:
        return from_json(parse_json(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"{folder} holds no trained model ({TRIAL_FILE} is missing)") from None
    except ValueError as error:
        raise UserError(f"{path} isn't the config of a model ({error}): copy the model again, or train it again") from (
            error
        )

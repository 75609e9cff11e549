"""Built-in synthetic corpus of soundscapes, so that everything can run without a download.

Provenance: every sample and every word is generated here, by numpy and a small grammar, without third-party recordings
or texts. Licence: the project's own, Apache-2.0. Checksums: none, as nothing is read. Stored as 16-bit PCM: by default
1,000 clips, 70 minutes, 0.27 GB.

A clip is a scene: one to three foreground sounds in a row, each occurring one to three times, half the time over a
continuous background. Captions name the sounds, their number of occurrences, and their order. No two scenes of a corpus
have the same background and the same sounds in the same order and number, so that a caption distinguishes its clip from
all others.

Quirks: a seed gives the same scenes and captions everywhere with one release of numpy (whose random streams may change
between releases); samples may differ in the last bit between processors. The captions are far more regular than
people's, so scores on this corpus show that the pipeline works, not how well it retrieves.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.random import Generator

from data.corpora._sounds import BACKGROUNDS, FOREGROUNDS, compute_ramps, mix_into
from data.errors import UserError
from data.schema import SAMPLE_RATE_HZ, Paraphrase, Samples, SourceClip, Split
from data.waveform import PCM16_BYTES, Codec

ROLES: dict[str, str] = {"train": "development", "validation": "validation", "test": "evaluation"}
PRETRAINING = ("development",)
HELD_OUT = ("validation", "evaluation")
PUBLISHED: dict[str, dict[str, int]] = {}
CODEC: Codec = "pcm16"


@dataclass(frozen=True)
class Config:
    """Size of the synthetic corpus: the number of clips in each split, and the range of their durations in seconds.

    The defaults suit the space `demo`: clips that fit into one segment of 5 s make training cheap, and hundreds of
    clips for validation and test distinguish systems that differ by a few points.
    """

    development: int = 300
    validation: int = 300
    evaluation: int = 400
    min_duration_s: float = 3.0
    max_duration_s: float = 5.0

    def __post_init__(self) -> None:
        for name, size in self.sizes().items():
            if size < 1:
                raise UserError(f"{name}={size}: a split must have at least one clip; give 1 or more")
        durations = f"min_duration_s={self.min_duration_s}, max_duration_s={self.max_duration_s}"
        if not 1 <= self.min_duration_s <= self.max_duration_s:
            raise UserError(f"{durations}: 1 <= min_duration_s <= max_duration_s is required; change them accordingly")
        if self.max_duration_s < 5:
            raise UserError(f"{durations}: many sounds don't fit into so short a clip; give max_duration_s=5 or more")

    def sizes(self) -> dict[str, int]:
        """Return the number of clips of each split, by name."""
        return {"development": self.development, "validation": self.validation, "evaluation": self.evaluation}


@dataclass(frozen=True)
class Event:
    """Foreground sound in a clip: its kind (a key of FOREGROUNDS), when each of its occurrences starts in the clip,
    and the duration of one occurrence. Times are in seconds.
    """

    kind: str
    onsets_s: tuple[float, ...]
    duration_s: float


@dataclass(frozen=True)
class Scene:
    """Description of a synthetic clip, from which its audio is rendered. Its events are in order of time and don't
    overlap.
    """

    entropy: tuple[int, int, int]  # seed, number of the split, index in the split
    duration_s: float
    background: str | None
    events: tuple[Event, ...]

    def identity(self) -> tuple[str | None, tuple[tuple[str, int], ...]]:
        """Return everything about a scene that captions can express: the background (None if there is none),
        and the kind and the number of occurrences of each event, in order. Scenes with equal identities can't
        be distinguished by captions.
        """
        return self.background, tuple((event.kind, len(event.onsets_s)) for event in self.events)


WORDINGS: dict[str, str] = {
    "bell": "a bell rings/ringing; a church bell tolls/tolling; a large bell chimes/chiming",
    "siren": "a siren wails/wailing; an emergency siren sounds/sounding; a siren howls/howling",
    "bird": "a bird sings/singing; a songbird calls/calling; a small bird warbles/warbling",
    "footsteps": "someone walks/walking past; footsteps pass/passing by; a person walks/walking along",
    "dog": "a dog barks/barking; a dog woofs/woofing; a hound barks/barking; a guard dog barks/barking",
    "clock": "a clock ticks/ticking; a wall clock ticks/ticking; a clock ticks/ticking away",
    "telephone": "a telephone rings/ringing; a phone rings/ringing; an old telephone jangles/jangling",
    "knock": "someone knocks/knocking; someone raps/rapping on a door; a hand knocks/knocking on wood",
    "whistle": "a whistle blows/blowing; a referee whistles/whistling; a whistle shrills/shrilling",
    "gunshot": "a gun fires/firing; a shot rings/ringing out; a rifle cracks/cracking; a gun is/being fired",
    "insect": "an insect buzzes/buzzing past; a fly buzzes/buzzing by; a bee hums/humming past",
    "car horn": "a car honks/honking; a car horn blares/blaring; a driver honks/honking; a car horn beeps/beeping",
    "rain": "rain falls/falling; rain pours/pouring down; steady rain falls/falling; rain patters/pattering",
    "wind": "wind blows/blowing; the wind howls/howling; wind gusts/gusting; a strong wind blows/blowing",
    "waves": "waves break/breaking; sea waves roll/rolling in; waves wash/washing ashore; the surf roars/roaring",
    "engine": "an engine runs/running; a motor idles/idling; an engine hums/humming; a motor chugs/chugging",
    "crickets": "crickets chirp/chirping; crickets sing/singing; night crickets chirp/chirping",
}
"""Wordings of each kind. A verb is written as in a clause and, after the slash, as a participle."""

COUNTS: dict[int, tuple[str, ...]] = {1: ("", "", " once"), 2: (" twice", " two times"), 3: (" three times",)}

# In the patterns, {0} is the first event as a clause ("a dog barks twice"), {p0} with a participle ("a dog barking
# twice"); {s} is the sequence of events; {b} and {pb} are the background.
FOLLOWING_PATTERNS: dict[int, tuple[str, ...]] = {
    1: ("{0}",),
    2: ("{0}, then {1}", "{0} before {1}", "{0} and then {1}", "{0}, and afterwards {1}", "{1} after {0}"),
    3: ("{0}, then {1}, then {2}", "{0} before {1}, then {2}", "{0}, then {1}, and finally {2}"),
}
"""Sequences that can follow an introductory phrase, by the number of events."""

OPENING_PATTERNS: dict[int, tuple[str, ...]] = {
    1: ("{p0} is heard", "there is {p0}"),
    2: ("after {0}, {1}", "before {1}, {0}", "first {0}, then {1}", "{p0}, followed by {p1}"),
    3: ("after {0}, {1} and then {2}", "before {2}, {0} and then {1}", "{p0}, followed by {p1}, then {p2}"),
}
"""Sequences that can only open a sentence, by the number of events."""

SINGLE_EVENT_PATTERNS = (
    "{0} in an otherwise quiet place",
    "{0}, and nothing else is heard",
    "there is the sound of {p0}",
    "the only sound is {p0}",
    "it is quiet until {0}",
    "{p0} is all that can be heard",
)
"""Patterns for a single event without a background, which alone would have too few words."""

AFTER_ANY = ("{s} while {b}", "{s} as {b}", "{s} with {pb} in the background")
AFTER_PLAIN = (*AFTER_ANY, "while {b}, {s}", "as {b}, {s}", "with {pb} in the background, {s}")

NUM_CAPTIONS = 5
MIN_WORDS, MAX_WORDS = 6, 20
MIN_VARIANTS, MAX_VARIANTS = 3, 5

MAX_REPETITIONS = 6
"""Maximum number of occurrences of all events in a scene; more can't be described in MAX_WORDS."""
BACKGROUND_SHARE = 0.5
PLAIN_SHARE = 0.6
NUM_EVENTS_SHARES = (0.15, 0.45, 0.4)
COUNT_SHARES = (0.5, 0.3, 0.2)
EVENT_GAP_S = 0.4
"""Minimum gap between events, and between events and the ends of the clip."""
RENDERING = 2
"""Version of the rendering, part of every clip's revision: increase it when the samples of a scene change."""
MAX_DRAWS = 1000
"""Maximum number of draws for one clip, until its scene fits and is unique."""


def _pick(rng: Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _draw_scene(rng: Generator, entropy: tuple[int, int, int], config: Config) -> Scene | None:
    """Return a random scene drawn by `rng`, or None if the sounds that were drawn are too many for a caption or too
    long for a clip of this config. `entropy` is kept in the scene, and seeds its rendering.
    """
    background = _pick(rng, list(BACKGROUNDS)) if rng.random() < BACKGROUND_SHARE else None
    kinds = rng.choice(list(FOREGROUNDS), size=rng.choice([1, 2, 3], p=NUM_EVENTS_SHARES), replace=False)
    counts = [min(int(rng.choice([1, 2, 3], p=COUNT_SHARES)), FOREGROUNDS[kind].max_count) for kind in kinds]
    durations_s = np.array([rng.uniform(*FOREGROUNDS[kind].duration_s) for kind in kinds])
    periods_s = durations_s + rng.uniform(0.15, 0.5, len(kinds))
    needed_s = float(np.dot(counts, periods_s) + EVENT_GAP_S * (len(kinds) + 1))
    if sum(counts) > MAX_REPETITIONS or needed_s > config.max_duration_s:
        return None
    spread_s = config.max_duration_s - config.min_duration_s
    duration_s = max(config.min_duration_s + spread_s * float(rng.beta(1.2, 4.5)), needed_s)
    gaps_s = EVENT_GAP_S + (duration_s - needed_s) * rng.dirichlet(np.ones(len(kinds) + 1))
    events, now_s = [], 0.0
    for kind, count, event_s, period_s, gap_s in zip(kinds, counts, durations_s, periods_s, gaps_s[:-1], strict=True):
        now_s += float(gap_s)
        events.append(Event(str(kind), tuple(now_s + float(period_s) * time for time in range(count)), float(event_s)))
        now_s += count * float(period_s)
    return Scene(entropy, duration_s, background, tuple(events))


def render_scene(scene: Scene) -> Samples:
    """Return the audio of a scene: float32 [scene.duration_s * SAMPLE_RATE_HZ], mono, with a peak of at most 0.9.

    The result depends only on the scene, not on the process or the order of rendering.
    """
    rng = np.random.default_rng([*scene.entropy, 1])  # not the stream that the scene itself was drawn from
    track = np.zeros(round(scene.duration_s * SAMPLE_RATE_HZ))
    levels = 10 ** (rng.uniform(-4, 0, len(scene.events)) / 20)
    for event, level in zip(scene.events, levels, strict=True):
        wave = FOREGROUNDS[event.kind].sound(rng, event.duration_s) * compute_ramps(event.duration_s, 0.001, 0.02)
        wave *= level / np.abs(wave).max()
        for onset_s in event.onsets_s:
            # The same bell, but another stroke: slightly quicker and softer.
            positions = np.arange(0, len(wave) - 1, rng.uniform(1, 1.04))
            mix_into(track, np.interp(positions, np.arange(len(wave)), wave) * rng.uniform(0.85, 1), onset_s)
    if scene.background is not None:
        wave = BACKGROUNDS[scene.background](rng, scene.duration_s)
        track += wave * (levels.min() * 10 ** (rng.uniform(-15, -10) / 20) / np.abs(wave).max())
    track += rng.standard_normal(len(track), dtype=np.float32) * 10 ** (rng.uniform(-70, -55) / 20)
    return np.asarray(track * (rng.uniform(0.4, 0.89) / np.abs(track).max()), np.float32)


def render_blocks(scene: Scene) -> Iterator[Samples]:
    """Yield the audio of a scene as a single block, so that it can be the `load` of a `SourceClip`."""
    yield render_scene(scene)


def _word_kind(rng: Generator, kind: str, counts: tuple[str, ...] = ("",)) -> tuple[str, str]:
    """Return a random wording of a kind of sound in two forms: as a clause ("a dog barks twice") and with a participle
    ("a dog barking twice"). One of `counts`, such as ' twice', is appended to tell how often the sound occurs; ''
    appends nothing.
    """
    wording = _pick(rng, WORDINGS[kind].split("; ")) + _pick(rng, counts)
    return re.sub(r"(\w+)/(\w+)", r"\1", wording), re.sub(r"(\w+)/(\w+)", r"\2", wording)


def _compose_sentence(rng: Generator, scene: Scene) -> str:
    """Return a random sentence that describes a scene. Its number of words isn't checked."""
    clauses, phrases, number = [], {}, len(scene.events)
    for position, event in enumerate(scene.events):
        countable = FOREGROUNDS[event.kind].max_count > 1
        clause, phrases[f"p{position}"] = _word_kind(
            rng, event.kind, COUNTS[len(event.onsets_s)] if countable else ("",)
        )
        clauses.append(clause)
    sequences, frames = (
        (FOLLOWING_PATTERNS, AFTER_PLAIN) if rng.random() < PLAIN_SHARE else (OPENING_PATTERNS, AFTER_ANY)
    )
    if scene.background is not None:
        phrases["b"], phrases["pb"] = _word_kind(rng, scene.background)
        pattern = _pick(rng, frames).replace("{s}", _pick(rng, sequences[number]))
    else:
        pattern = _pick(rng, SINGLE_EVENT_PATTERNS if number == 1 else sequences[number])
    text = pattern.format(*clauses, **phrases)
    return text[0].upper() + text[1:] + "."


def _compose_sentences(rng: Generator, scene: Scene, number: int, excluded: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return `number` different descriptions of a scene with MIN_WORDS to MAX_WORDS words, none in `excluded`."""
    sentences: list[str] = []
    while len(sentences) < number:
        text = _compose_sentence(rng, scene)
        if MIN_WORDS <= len(text.split()) <= MAX_WORDS and text not in sentences and text not in excluded:
            sentences.append(text)
    return tuple(sentences)


def _draw_unique_scene(rng: Generator, entropy: tuple[int, int, int], config: Config, taken: set[object]) -> Scene:
    """Draw random scenes until one has other sounds than all scenes before. `taken` has the identities of these scenes
    (`Scene.identity`); add that of the new scene, and return the scene. `entropy` seeds its rendering. Raises UserError
    after MAX_DRAWS draws.
    """
    for _ in range(MAX_DRAWS):
        scene = _draw_scene(rng, entropy, config)
        if scene is not None and scene.identity() not in taken:
            taken.add(scene.identity())
            return scene
    raise UserError(
        f"only {len(taken)} different scenes fit into clips of at most {config.max_duration_s} s, but "
        f"{sum(config.sizes().values())} clips are required; ask for fewer or longer ones"
    )


def read(source: Path | None, seed: int = 0, config: Config | None = None) -> list[Split]:
    """Return the splits of the corpus that a seed generates: development, validation and evaluation, in this order.
    `source` must be None. The audio of a clip is rendered when the clip is loaded. `config` is the size of the corpus;
    None means the default size.

    Raises UserError if a `source` is given, as nothing is read, if the seed is negative, and if there aren't enough
    different scenes for the clips of `config`.
    """
    if source is not None:
        raise UserError(f"source {source}: the synthetic corpus is generated, not read; leave the source out")
    if seed < 0:
        raise UserError(f"seed={seed}: a seed must be at least 0; give another")
    config, taken, splits = config or Config(), set[object](), []
    for number, (name, size) in enumerate(config.sizes().items()):
        clips: list[SourceClip] = []
        paraphrases: list[Paraphrase] = []
        for index in range(size):
            rng = np.random.default_rng([seed, number, index])
            scene = _draw_unique_scene(rng, (seed, number, index), config, taken)
            captions = _compose_sentences(rng, scene, NUM_CAPTIONS)
            clip = SourceClip(
                clip_id=f"synthetic/{name}/{index:05d}.wav",
                load=partial(render_blocks, scene),
                captions=captions,
                origin=f"synthetic/{name}/{index:05d}.wav, seed {seed}",
                revision=f"{scene!r}, rendering {RENDERING}",
                num_bytes=round(scene.duration_s * SAMPLE_RATE_HZ) * PCM16_BYTES,
                keywords=tuple(filter(None, (*(event.kind for event in scene.events), scene.background))),
                licence="Apache-2.0",
            )
            clips.append(clip)
            for caption in captions:
                variants = _compose_sentences(
                    rng, scene, int(rng.integers(MIN_VARIANTS, MAX_VARIANTS + 1)), excluded=captions
                )
                paraphrases.append(Paraphrase(clip.clip_id, caption, variants, model="grammar"))
        splits.append(Split("synthetic", name, tuple(clips), tuple(paraphrases), num_listed=size))
    return splits


def download(target: Path) -> None:
    """Raise UserError: there is nothing to download."""
    raise UserError("the synthetic corpus is generated, not downloaded; leave --download and --source out")

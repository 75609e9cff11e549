"""The synthetic corpus: what its clips sound like, and whether its sentences are true of them."""

import pickle
import re
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from data.corpora import synthetic
from data.corpora._sounds import BACKGROUNDS, FOREGROUNDS
from data.errors import UserError
from data.schema import SAMPLE_RATE_HZ, Samples, SourceClip, Split

SMALL = synthetic.Config(16, 4, 4, min_duration_s=5.0, max_duration_s=10.0)
COUNT_WORDS = {"once": 1, "twice": 2, "two times": 2, "three times": 3}
BAND_EDGES_HZ = np.geomspace(60, 16_000, 25)
QUIET = 1e-4


@pytest.fixture(scope="module")
def corpus() -> list[Split]:
    return synthetic.read(None)


@pytest.fixture(scope="module")
def rendered() -> list[tuple[SourceClip, Samples]]:
    return [(clip, whole(clip)) for split in synthetic.read(None, config=SMALL) for clip in split.clips]


def whole(clip: SourceClip) -> Samples:
    return np.concatenate(list(clip.load()))


def scene_of(clip: SourceClip) -> synthetic.Scene:
    return clip.load.args[0]


def pairs(corpus: list[Split]) -> list[tuple[synthetic.Scene, str]]:
    """Every sentence, caption or paraphrase, with its scene."""
    clips = {clip.clip_id: clip for split in corpus for clip in split.clips}
    captions = [(scene_of(clip), caption) for clip in clips.values() for caption in clip.captions]
    variants = [
        (scene_of(clips[paraphrase.clip_id]), variant)
        for split in corpus
        for paraphrase in split.paraphrases
        for variant in paraphrase.variants
    ]
    return captions + variants


@pytest.fixture(scope="module")
def kinds_by_wording() -> dict[str, str]:
    """What may be said of each kind, and the kind; longest first, as some begin like others."""
    kinds = {
        re.sub(r"(\w+)/(\w+)", form, wording): kind
        for kind, wordings in synthetic.WORDINGS.items()
        for wording in wordings.split("; ")
        for form in (r"\1", r"\2")
    }
    return {wording: kinds[wording] for wording in sorted(kinds, key=len, reverse=True)}


def understood(sentence: str, kinds_by_wording: dict[str, str]) -> tuple[str | None, list[tuple[str, int]]]:
    """The background, and the events in order of time with their counts: as a reader takes it."""
    text = sentence[0].lower() + sentence[1:].rstrip(".")
    mention = re.compile(rf"\b({'|'.join(kinds_by_wording)})\b(?: ({'|'.join(COUNT_WORDS)}))?")
    mentions = [(kinds_by_wording[wording], COUNT_WORDS.get(count, 1)) for wording, count in mention.findall(text)]
    events = [(kind, count) for kind, count in mentions if kind in FOREGROUNDS]
    backgrounds = [kind for kind, _ in mentions if kind in BACKGROUNDS]
    assert len(backgrounds) <= 1, sentence
    skeleton = mention.sub("X", text)
    if skeleton.startswith("before "):
        events = [*events[1:], events[0]]
    elif "X after X" in skeleton:
        events = [events[1], events[0], *events[2:]]
    return backgrounds[0] if backgrounds else None, events


def band_features(samples: np.ndarray) -> np.ndarray:
    """Log energies in bands, as shares of the whole, and how peaked the sound is in time."""
    power = np.abs(np.fft.rfft(samples)) ** 2
    bands = np.digitize(np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE_HZ), BAND_EDGES_HZ)
    energies = np.bincount(bands, power, minlength=len(BAND_EDGES_HZ) + 1) / power.sum()
    crest = np.log(np.abs(samples).max() / samples.std())
    return np.append(np.log10(energies + 1e-4), crest)


def draw(kind: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, 7])
    if kind in BACKGROUNDS:
        return BACKGROUNDS[kind](rng, 3.0)
    low_s, high_s = FOREGROUNDS[kind].duration_s
    return FOREGROUNDS[kind].sound(rng, rng.uniform(low_s, high_s))


@pytest.fixture(scope="module")
def centroids() -> dict[str, np.ndarray]:
    return {
        kind: np.mean([band_features(draw(kind, seed)) for seed in range(8)], axis=0)
        for kind in (*FOREGROUNDS, *BACKGROUNDS)
    }


def nearest(features: np.ndarray, centroids: dict[str, np.ndarray]) -> str:
    return min(centroids, key=lambda kind: float(np.linalg.norm(centroids[kind] - features)))


def test_splits_and_sizes(corpus: list[Split]) -> None:
    assert [(split.name, len(split.clips)) for split in corpus] == [
        ("development", 300),
        ("validation", 300),
        ("evaluation", 400),
    ]
    assert set(synthetic.ROLES.values()) == {split.name for split in corpus}
    assert corpus[1].clips[7].clip_id == "synthetic/validation/00007.wav"
    assert {split.corpus for split in corpus} == {"synthetic"}
    ids = [clip.clip_id for split in corpus for clip in split.clips]
    assert len(set(ids)) == len(ids)


def test_no_scene_comes_twice_in_the_corpus(corpus: list[Split]) -> None:
    scenes = [scene_of(clip).identity() for split in corpus for clip in split.clips]
    assert len(set(scenes)) == len(scenes)


def test_a_seed_gives_the_same_corpus(corpus: list[Split]) -> None:
    again = synthetic.read(None, seed=0)
    for split, other in zip(corpus, again, strict=True):
        assert split.paraphrases == other.paraphrases
        for clip, twin in zip(split.clips, other.clips, strict=True):
            assert replace(clip, load=twin.load) == twin
            assert scene_of(clip) == scene_of(twin)
    assert synthetic.read(None, seed=1)[0].clips[0].captions != corpus[0].clips[0].captions


def test_other_seeds_sound_different() -> None:
    one, other = (whole(synthetic.read(None, seed, SMALL)[0].clips[0]) for seed in (0, 1))
    assert len(one) != len(other) or not np.array_equal(one, other)


def test_rendering_is_the_same_in_another_process_and_order(rendered: list[tuple[SourceClip, Samples]]) -> None:
    some = rendered[:4]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        elsewhere = list(pool.map(synthetic.render_scene, [scene_of(clip) for clip, _ in reversed(some)]))
    for (_, samples), other in zip(reversed(some), elsewhere, strict=True):
        np.testing.assert_array_equal(samples, other)


def test_load_can_be_pickled(rendered: list[tuple[SourceClip, Samples]]) -> None:
    clip, samples = rendered[0]
    np.testing.assert_array_equal(whole(pickle.loads(pickle.dumps(clip))), samples)


def test_a_revision_changes_with_the_scene_and_bytes_are_those_of_pcm(
    rendered: list[tuple[SourceClip, Samples]],
) -> None:
    assert len({clip.revision for clip, _ in rendered}) == len(rendered)
    assert all(clip.num_bytes == 2 * len(samples) for clip, samples in rendered)


def test_there_is_nothing_to_download(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="generated, not downloaded"):
        synthetic.download(tmp_path)


def test_samples_are_sound(rendered: list[tuple[SourceClip, Samples]]) -> None:
    for clip, samples in rendered:
        assert samples.dtype == np.float32
        assert samples.ndim == 1
        assert len(samples) == round(scene_of(clip).duration_s * SAMPLE_RATE_HZ)
        assert np.isfinite(samples).all()
        assert 0.3 < np.abs(samples).max() <= 0.9


def durations_s(corpus: list[Split]) -> list[float]:
    return [scene_of(clip).duration_s for split in corpus for clip in split.clips]


def test_by_default_a_clip_fits_into_a_segment_of_the_demo(corpus: list[Split]) -> None:
    assert min(durations_s(corpus)) >= 3.0
    assert max(durations_s(corpus)) <= 5.0
    assert 3.5 < np.median(durations_s(corpus)) < 4.5


def test_longer_clips_are_within_bounds_and_mostly_short() -> None:
    longer = synthetic.read(None, config=synthetic.Config(150, 50, 50, 5.0, 30.0))
    assert min(durations_s(longer)) >= 5.0
    assert max(durations_s(longer)) <= 30.0
    assert 8.0 < np.median(durations_s(longer)) < 12.0


def test_events_come_one_after_the_other_within_the_clip(corpus: list[Split]) -> None:
    for scene in (scene_of(clip) for split in corpus for clip in split.clips):
        spans_s = [(onset_s, onset_s + event.duration_s) for event in scene.events for onset_s in event.onsets_s]
        ends_s = [0.0, *(end_s for _, end_s in spans_s)]
        starts_s = [*(start_s for start_s, _ in spans_s), scene.duration_s]
        assert all(start_s > end_s + 0.1 for end_s, start_s in zip(ends_s, starts_s, strict=True))


@pytest.mark.parametrize("kind", [*FOREGROUNDS, *BACKGROUNDS])
def test_each_kind_is_heard_and_no_two_draws_are_alike(kind: str) -> None:
    one, other = draw(kind, 100), draw(kind, 101)
    for wave in (one, other):
        assert np.isfinite(wave).all()
        assert wave.std() > 0.01 * np.abs(wave).max() > 0
    assert np.linalg.norm(band_features(one) - band_features(other)) > 0.02


def test_kinds_are_told_apart_by_their_spectra(centroids: dict[str, np.ndarray]) -> None:
    trials = [
        (kind, nearest(band_features(draw(kind, seed)), centroids)) for kind in centroids for seed in range(50, 54)
    ]
    right = {kind: np.mean([said == kind for true, said in trials if true == kind]) for kind in centroids}
    assert np.mean(list(right.values())) > 0.8, right
    assert min(right.values()) > 0.2, right


def test_the_sounds_are_where_the_scene_says_and_of_its_kinds(centroids: dict[str, np.ndarray]) -> None:
    """With the order that the sentences tell being the scene's, this ties the sentences to what is heard."""
    clips = [clip for split in synthetic.read(None, 3, SMALL) for clip in split.clips]
    scenes = [replace(scene_of(clip), background=None) for clip in clips]
    said = []
    for scene in scenes:
        samples = synthetic.render_scene(scene)
        inside = np.zeros(len(samples), bool)
        for event in scene.events:
            for onset_s in event.onsets_s:
                start, length = round(onset_s * SAMPLE_RATE_HZ), round(event.duration_s * SAMPLE_RATE_HZ)
                inside[start : start + length] = True
                heard = samples[start : start + length]
                assert heard.std() > 3 * samples[: round(0.3 * SAMPLE_RATE_HZ)].std()
                said.append(event.kind == nearest(band_features(heard), centroids))
        assert np.sum(samples[inside] ** 2.0) > 0.98 * np.sum(samples**2.0)
    assert np.mean(said) > 0.7


def test_a_background_is_softer_than_the_events_by_10_to_15_db(rendered: list[tuple[SourceClip, Samples]]) -> None:
    with_background = [(clip, samples) for clip, samples in rendered if scene_of(clip).background]
    assert with_background
    for clip, samples in with_background:
        scene = scene_of(clip)
        before = samples[: round(scene.events[0].onsets_s[0] * SAMPLE_RATE_HZ)]
        assert QUIET < np.abs(before).max() / np.abs(samples).max() < 10 ** (-9 / 20)


def test_sentences_tell_kinds_counts_and_order(corpus: list[Split], kinds_by_wording: dict[str, str]) -> None:
    for scene, sentence in pairs(corpus):
        assert understood(sentence, kinds_by_wording) == (
            scene.background,
            [(event.kind, len(event.onsets_s)) for event in scene.events],
        ), sentence


@pytest.mark.parametrize(
    ("sentence", "events"),
    [
        ("Before a bell rings, a dog barks twice.", [("dog", 2), ("bell", 1)]),
        ("A bell rings after a dog barks twice.", [("dog", 2), ("bell", 1)]),
        ("After a bell rings, a dog barks.", [("bell", 1), ("dog", 1)]),
    ],
)
def test_this_reader_knows_an_inverted_order(
    sentence: str, events: list[tuple[str, int]], kinds_by_wording: dict[str, str]
) -> None:
    assert understood(sentence, kinds_by_wording) == (None, events)


def test_sentences_are_well_formed(corpus: list[Split]) -> None:
    for _, sentence in pairs(corpus):
        assert 6 <= len(sentence.split()) <= 20
        assert re.fullmatch(r"[A-Z][a-z ,]+\.", sentence)
        assert "  " not in sentence


def test_five_different_captions_of_which_no_other_clip_has_one(corpus: list[Split]) -> None:
    clips = [clip for split in corpus for clip in split.clips]
    assert all(len(set(clip.captions)) == len(clip.captions) == 5 for clip in clips)
    captions = [caption for clip in clips for caption in clip.captions]
    assert len(set(captions)) == len(captions)


def test_every_caption_has_different_paraphrases(corpus: list[Split]) -> None:
    for split in corpus:
        captions = [(clip.clip_id, caption) for clip in split.clips for caption in clip.captions]
        assert [(paraphrase.clip_id, paraphrase.caption) for paraphrase in split.paraphrases] == captions
        for paraphrase in split.paraphrases:
            assert 3 <= len(paraphrase.variants) <= 5
            assert len({paraphrase.caption, *paraphrase.variants}) == 1 + len(paraphrase.variants)


def test_keywords_are_the_kinds(corpus: list[Split]) -> None:
    for clip in corpus[0].clips:
        scene = scene_of(clip)
        kinds = {event.kind for event in scene.events} | ({scene.background} if scene.background else set())
        assert set(clip.keywords) == kinds


def test_every_kind_and_count_is_in_the_corpus(corpus: list[Split]) -> None:
    for split in corpus:
        assert {kind for clip in split.clips for kind in clip.keywords} == set(synthetic.WORDINGS)
    counts = {len(event.onsets_s) for clip in corpus[0].clips for event in scene_of(clip).events}
    assert counts == {1, 2, 3}


def test_every_scene_that_can_be_drawn_has_enough_words() -> None:
    """The longest to tell and the shortest: sentences are drawn until there are enough of a fitting length."""
    rng = np.random.default_rng(0)
    longest = tuple(
        synthetic.Event(kind, onsets_s, 1.0)
        for kind, onsets_s in zip(("knock", "insect", "telephone"), ((0.0, 1.0, 2.0), (3.0,), (4.0, 5.0)), strict=True)
    )
    for background in (None, *BACKGROUNDS):
        for events in (longest, *((synthetic.Event(kind, (0.0,), 1.0),) for kind in FOREGROUNDS)):
            scene = synthetic.Scene((0, 0, 0), 10.0, background, events)
            captions = synthetic._compose_sentences(rng, scene, 5)
            assert len(set(captions + synthetic._compose_sentences(rng, scene, 5, excluded=captions))) == 10


def test_a_source_is_refused() -> None:
    with pytest.raises(UserError, match="generated, not read"):
        synthetic.read(Path("somewhere"))


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(UserError, match="seed=-1"):
        synthetic.read(None, -1)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"validation": 0}, "validation=0: a split must have at least one clip"),
        ({"min_duration_s": 0.0}, "min_duration_s=0.0"),
        ({"min_duration_s": 12.0, "max_duration_s": 8.0}, "min_duration_s=12.0, max_duration_s=8.0"),
        ({"min_duration_s": 2.0, "max_duration_s": 4.0}, "give max_duration_s=5 or more"),
    ],
)
def test_bad_settings_are_refused(fields: dict[str, float], said: str) -> None:
    with pytest.raises(UserError, match=said):
        synthetic.Config(**fields)


def test_too_many_clips_for_their_length_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "MAX_DRAWS", 20)
    with pytest.raises(UserError, match="ask for fewer or longer ones"):
        synthetic.read(None, config=synthetic.Config(development=3000, max_duration_s=5.0))

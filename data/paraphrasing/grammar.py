"""A small rule-based paraphraser of captions, for machines without a language model: `--model grammar`.

The paraphraser recognises how the clauses of a caption are related in time, and expresses the same relation in another
order. It changes some active clauses into the passive voice, and replaces words by others of similar meaning. The same
caption always gets the same sentences. The paraphraser has no knowledge of sounds and adds no detail to a caption, so
it does not replace a language model.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from data.paraphrasing import answer_parsing

SYNONYMS = """
    dog, hound; dogs, hounds; barks, woofs; barking, woofing; baby, infant; cries, wails; crying, wailing
    someone, somebody, a person; man, guy; woman, lady; child, kid; children, kids; crowd, group of people
    once, one time, a single time; twice, two times; thrice, three times; repeatedly, again and again, over and over
    steadily, constantly, continuously; loudly, noisily; softly, quietly; quickly, rapidly; slowly, unhurriedly
    rain, rainfall; falls, comes down; falling, coming down; pours, streams; pouring, streaming
    sea, ocean; shore, beach; waves, breakers; crash, break; crashing, breaking; stream, brook; wind, breeze
    helicopter, chopper; airplane, plane, aircraft; overhead, up above; nearby, close by
    car, automobile; cars, automobiles
    fire, blaze; crackles, snaps; crackling, snapping; fireplace, hearth; wood, timber
    clock, timepiece; ticks, clicks; ticking, clicking; regularly, at regular intervals
    rooster, cockerel; chainsaw, motor saw, power saw; engine, motor; buzzes, whirrs; buzzing, whirring
    talks, speaks; talking, speaking; talk, speak; laughs, chuckles; laughing, chuckling
    shouts, yells; shouting, yelling
    walks, steps; walking, stepping; runs, dashes; road, street; big, large; small, little; loud, noisy; quiet, silent
    starts, begins; starting, beginning; stops, ceases; stopping, ceasing; closes, shuts; closing, shutting
    bird, songbird; birds, songbirds; chirp, tweet; chirps, tweets; chirping, tweeting; rings, chimes; ringing, chiming
    hits, strikes; hitting, striking; rubs, scrapes; rubbing, scraping; phone, telephone; outside, outdoors; house, home
    can be heard, is audible; is heard, is audible; are heard, are audible; recorded, captured
    sobs, weeps; sobbing, weeping; noise, sound; gun, firearm; the only, the sole
    honks, beeps; honking, beeping; wails, howls; wailing, howling
"""
"""Groups of words that can replace each other, in each written form."""

PASSIVE = (
    "hits/hit, strikes/struck, opens/opened, closes/closed, shuts/shut, plays/played, rings/rung, taps/tapped, "
    "cuts/cut, saws/sawn, pours/poured, drops/dropped, shakes/shaken, rubs/rubbed, starts/started, revs/revved, "
    "moves/moved, pushes/pushed, pulls/pulled, throws/thrown, breaks/broken, turns/turned, washes/washed, "
    "sweeps/swept, drives/driven, rides/ridden, fires/fired, blows/blown, stirs/stirred, crumples/crumpled"
)
"""Verbs that can take an object: third person singular and participle."""

NAME = "grammar"
"""Name of the model."""

VERSION = "rules2"
"""Version of the rules; change it whenever the rules write other sentences."""

DETERMINER = r"(?:a|an|the|some|several|two|three|their|his|her)"
ADVERB = r"(?:\w+ly|again|once|twice|thrice|one|two|three|over|on|in|at|with|from|into|to|and|outside|away|together)\b"
ARTICLE = re.compile(r"(?:an?|the)\s")
SUBJECT = rf"(?:{DETERMINER}\s(?:\w+\s){{0,2}}?\w+|someone|somebody|people)"

TOGETHER = ("and meanwhile", "whilst", "while", "as")
IN_TURN = ("and afterwards", "and then", "after which", "followed by", "before", "then")
MAX_DRAWS = 200
"""Maximum number of draws per caption; short captions have few other wordings."""


def parse_groups(text: str) -> dict[str, list[str]]:
    """Parse groups of synonyms, separated by ';' or line breaks, with their words separated by commas. Return a
    dictionary from each word to the list of all words in its group.
    """
    lists = [[word.strip() for word in group.split(",") if word.strip()] for group in re.split(r"[;\n]", text)]
    return {word: words for words in reversed(lists) for word in words}


GROUPS = parse_groups(SYNONYMS)
PARTICIPLES = dict(pair.split("/") for pair in PASSIVE.split(", "))

WORDS = re.compile(rf"\b(?:{'|'.join(sorted(map(re.escape, GROUPS), key=len, reverse=True))})\b")
ACTIVE = re.compile(
    rf"^(?P<subject>{SUBJECT}) (?P<verb>{'|'.join(PARTICIPLES)}) "
    rf"(?P<object>{DETERMINER} (?:\w+\s(?!{ADVERB}))?\w+)(?P<rest>(?: .*)?)$"
)
PLURAL = re.compile(r"^(?:some|several|two|three)\b|^(?!an? ).*[^su]s$")
CLAUSE = re.compile(
    rf"""^(?!{DETERMINER}\s)\w+\s\w+                              # rain falls
        |^{DETERMINER}\s(?:people|children|men|women|\w+s)\s\w+   # some people talk, the dogs bark
        |^\w+\s\w+\s(?:.*\s)?\w+(?:s|ing|ed)\b                   # a big dog barks""",
    re.VERBOSE,
)
"""Pattern of a clause that describes an event; a thing such as 'the door' is no clause."""


@dataclass(frozen=True)
class CaptionContent:
    """Content of a caption: the clauses of its events in order of time, and clauses that describe what happens
    meanwhile.
    """

    events: tuple[str, ...]
    meanwhile: tuple[str, ...]


def write_paraphrases(caption: str, number: int) -> list[str]:
    """Return up to `number` other wordings of a caption, long ones last; fewer if the rules find no more."""
    rng = np.random.default_rng(list(hashlib.sha256(caption.encode()).digest()))
    content = parse_caption(caption)
    paraphrases: list[str] = []
    too_long: list[str] = []
    tried: set[str] = set()
    for text in draw_wordings(rng, content):
        if text in tried:
            continue
        tried.add(text)
        (variant,) = answer_parsing.check_sentences(caption, [text], paraphrases + too_long)
        if variant.is_kept:
            (too_long if variant.failed else paraphrases).append(text)
        if len(paraphrases) == number:
            break
    return (paraphrases + too_long)[:number]


def parse_caption(caption: str) -> CaptionContent:
    """Split a caption into clauses at words such as 'then', 'before' and 'while', and return how they are related
    in time. A caption that can't be split is a single event.
    """
    text = caption.strip().rstrip(".!? ")
    if not re.match(r"I\b|[A-Z]{2}", text):
        text = text[:1].lower() + text[1:]
    if match := re.match(rf"(?:{'|'.join(TOGETHER)}) ([^,]+), (.+)", text):
        return CaptionContent(split_sequence(match[2]), (match[1],))
    if match := re.match(r"after ([^,]+), (.+)", text):
        return CaptionContent((match[1], match[2]), ())
    if match := re.match(r"before ([^,]+), (.+)", text):
        return CaptionContent((match[2], match[1]), ())
    parts = re.split(rf",? (?:{'|'.join(TOGETHER)}) (?!well\b|if\b|though\b)", text)
    if not all(CLAUSE.match(part) for part in parts):
        return CaptionContent((text,), ())
    chains = [split_sequence(part) for part in parts]
    longest = max(chains, key=len)
    return CaptionContent(longest, tuple(" and then ".join(chain) for chain in chains if chain is not longest))


def split_sequence(text: str) -> tuple[str, ...]:
    """Split a text into the clauses of events that follow each other in time; return the text as the only clause if
    this isn't possible.
    """
    clauses = re.split(rf",? (?:{'|'.join(IN_TURN)}) ", text)
    if all(CLAUSE.match(clause) for clause in clauses):
        return tuple(clauses)
    return (text,)


def draw_wordings(rng: Generator, content: CaptionContent) -> Iterator[str]:
    """Yield MAX_DRAWS random sentences with the content of a caption; some may be equal."""
    for _ in range(MAX_DRAWS):
        events = [reword_clause(rng, clause) for clause in content.events]
        text = draw_one(rng, list_sequences(events))
        for clause in content.meanwhile:
            reworded = reword_clause(rng, clause)
            frames = [f"{text} while {reworded}", f"{text} as {reworded}", f"{text}, and meanwhile {reworded}"]
            if not re.match(r"(?:while|as|after|first|before)\b", text):
                frames += [f"while {reworded}, {text}", f"as {reworded}, {text}"]
            if len(content.events) == 1:
                frames += [f"{reworded} while {text}", f"{reworded} as {text}"]
            text = draw_one(rng, frames)
        yield text[:1].upper() + text[1:] + "."


def list_sequences(events: Sequence[str]) -> list[str]:
    """Return all available phrasings of events that follow each other, such as 'A, then B' and 'after A, B'.
    `events` are their clauses, in order of time.
    """
    if len(events) == 1:
        return [events[0]]
    if len(events) == 2:
        first, second = events
        ways = [f"{first}, then {second}", f"{first} before {second}", f"{first}, and afterwards {second}"]
        return [*ways, f"after {first}, {second}", f"{second} after {first}", f"first {first}, then {second}"]
    *earlier, last = events
    return [
        ", then ".join(events),
        f"{', then '.join(earlier)}, and finally {last}",
        f"first {', then '.join(earlier)}, and then {last}",
        f"{events[0]} before {', then '.join(events[1:])}",
    ]


def reword_clause(rng: Generator, clause: str) -> str:
    """Return a clause whose words are randomly replaced by synonyms. With probability 0.5 it is first put into the
    passive voice, if possible.
    """
    if rng.random() < 0.5:
        clause = make_passive(clause)
    return WORDS.sub(lambda match: draw_one(rng, find_replacements(match)), clause)


def find_replacements(match: re.Match[str]) -> list[str]:
    """Return the synonyms, including the word itself, that can replace a matched word. After 'a' or 'an', only
    those that fit this article and have no article of their own are returned, or the word itself if there are none.
    """
    before = match.string[: match.start()].rstrip().rpartition(" ")[2]
    words = GROUPS[match[0]]
    if before in ("a", "an"):
        words = [word for word in words if (word[0] in "aeiou") == (before == "an") and not ARTICLE.match(word)]
    return words or [match[0]]


def make_passive(clause: str) -> str:
    """Return a clause in the passive voice: "a man hits a drum" -> "a drum is hit by a man".

    If no rule applies, the clause is unchanged.
    """
    if not (match := ACTIVE.match(clause)):
        return clause
    auxiliary = "are" if PLURAL.search(match["object"]) else "is"
    return f"{match['object']} {auxiliary} {PARTICIPLES[match['verb']]} by {match['subject']}{match['rest']}"


def draw_one(rng: Generator, options: Sequence[str]) -> str:
    """Return one of the options at random, all equally likely."""
    return options[int(rng.integers(len(options)))]

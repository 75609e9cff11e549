"""What a chat model answers to the request for paraphrases: taken apart, and each sentence checked.

The instruction asks for numbered sentences and nothing else; what comes has other numbering, quotes, introductions,
explanations, thoughts, or is a refusal.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from data.captions import normalise
from data.sources.json_text import parse_json

MOST_WORDS = 19
"""In a paraphrase: the instruction asks for less than 20."""

BEFORE_INDEX = r"""^[\s>\#*_-]*                              # Markdown around the index
        (?:(?:audio\s+)?(?:caption|sentence|option|variant|variation|paraphrase|description|index)\s*)?"""
INDEX = re.compile(
    rf"""{BEFORE_INDEX}
        (?:[(\[]?\d{{1,2}}[*_]*(?:[.:)\]]+|/(?=\s)|\s?[-–—](?=\s))[*_]*  # 1. 1) 1: 1/ 1 - (1) [1] **1.** Caption 1:
           (?=\s|["“”„«'‘]|[^\W\d_])
          |(?<=\#)\d{{1,2}}(?=\s)                               # #1
          |(?:\d\ufe0f?\u20e3|\U0001f51f|[①-⑳❶-❿➀-➓])[.:)]?       # keycaps, circled digits
          |[(\[]?(?:[a-j]|[ivx]{{1,4}})(?:\.|[:)\]]+)(?=\s))\s*  # a) (b) c. iv.
    """,
    re.VERBOSE | re.IGNORECASE,
)
HEADING = re.compile(rf"{BEFORE_INDEX}[(\[]?\d{{1,2}}[\s.:)\]*_-]*$", re.VERBOSE | re.IGNORECASE)
"""A line that is an index and nothing else: the sentence is in the next one."""

BARE_INDEX = re.compile(r"^(\d{1,2})\s+(?=[\"“]?[A-Z])")
"""A number and nothing else: an index where the lines count up from 1, else the sentence's own ("2 Dogs bark.")."""

INLINE = re.compile(r"(?<=[.!?\"”])\s+(?=\(?\d{1,2}[.):]\s*\S)|(?<=:)\s+(?=\(?1[.)]\s)")
"""Between two numbered sentences on one line, and between an introduction and the first."""

BULLET = re.compile(r"^[-*•–]\s+")
THOUGHT = re.compile(
    r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)|\A(?:(?!<think(?:ing)?>).)*?</think(?:ing)?>", re.DOTALL
)
"""The tag that opens the first one may be part of what a server puts before the answer."""

EMBEDDED = re.compile(r"[\[{].*[\]}]", re.DOTALL)
"""JSON that other words may surround."""

FENCE = re.compile(r"^```\w*$")
QUOTES = {'"': '"', "“": "”", "”": "”", "„": "“", "«": "»", "'": "'", "‘": "’"}
MARKDOWN = "*_` "
SENTENCE_ENDED = re.compile(r"[.!?][\"”'*]*$")
WORD_COUNT = re.compile(r"\s*[(\[]\d{1,2} words?[)\]]\W*$", re.I)
"""Told behind a sentence: "A dog barks loudly. (4 words)"."""

INTRODUCTION = re.compile(
    r"^(?:sure|certainly|of course|okay|ok|here (?:are|is|you go)|these are|below (?:are|is)|the following)\b|:$", re.I
)
REFUSAL = re.compile(
    r"^(?:\W*(?:i'?m|i am|we're|we are)\s+(?:very\s+)?(?:sorry|unable|afraid|not able)\b|\W*sorry\b|\W*as an ai\b|"
    r"\W*(?:i|we)\s+(?:can(?:no|['’])t|can not|could(?:n['’]t| not)|won['’]t|am unable|do not|don['’]t)\b|"
    r"\W*i apologi[sz]e\b|\W*unfortunately\b)",
    re.I,
)
CLOSING = re.compile(
    r"^\W*(?:(?:i )?hope (?:this|these|that|it)\b|let me know\b|note(?:\s+that\b|\W*:)|please\b|feel free\b|"
    r"(?:these|each|all)(?: of (?:these|the))?(?: \w+)? (?:captions?|sentences?)\b|would you like\b|"
    r"if you (?:need|want|would|have)\b)",
    re.I,
)

SENTENCE_END = re.compile(r"(?<!\b[A-Za-z])(?<!\b(?:Mr|Dr|St|vs))[.!?]+[\"”']?\s+\S")
CLOCK_TIME = re.compile(
    r"\b\d{1,2}[:.]\d{2}\b|\b\d{1,2}\s?(?:a\.?m\b|p\.?m\b)|\bo['’]?\s?clock\b|\b(?:midnight|noon)\b", re.I
)
YEAR = re.compile(
    r"\b(?:1[5-9]|20)\d{2}(?:['’]?s)?\b(?!\s*(?:hz|hertz|rpm|watts?|w|meters?|metres?|m|feet|miles|people)\b)", re.I
)
FORBIDDEN = re.compile(r"\b(?:heard|recorded)\b", re.I)
MARKUP = re.compile(r"[{}\[\]<>|\\]|\"\s*:|://")
NAME = re.compile(r"(?<=[a-z,;] )[A-Z][a-z]+")


def parse(answer: str) -> list[str]:
    """The sentences of an answer, in its order, without their numbering and quotes.

    What stands before the first and after the last number isn't a sentence; where nothing is numbered, each string of
    JSON is one, or each line that isn't an introduction. A refusal holds none.
    """
    lines = [line for line in THOUGHT.sub("", answer).strip().splitlines() if not FENCE.match(line)]
    text = "\n".join(lines)
    parts = counted(headed([part.strip() for line in lines for part in INLINE.split(line)]))
    if (listed := json_strings(text)) is not None:
        found = [tidy(entry) for entry in listed]
    elif any(INDEX.match(part) for part in parts):
        found = numbered(parts)
    elif (embedded := EMBEDDED.search(text)) and (listed := json_strings(embedded[0])) is not None:
        found = [tidy(entry) for entry in listed]
    elif is_refusal(text):
        return []
    else:
        found = [tidy(part) for part in parts if not INTRODUCTION.search(part)]
    return [sentence for sentence in found if sentence and not (CLOSING.match(sentence) or is_refusal(sentence))]


def is_refusal(text: str) -> bool:
    """Whether a text begins as one in which a model won't answer."""
    return bool(REFUSAL.match(text))


def is_refused(answer: str) -> bool:
    """Whether an answer says that the model won't answer, and holds no sentence."""
    return is_refusal(THOUGHT.sub("", answer).strip()) and not parse(answer)


def headed(lines: Sequence[str]) -> list[str]:
    """Lines, where each that is an index and nothing else has gone to the front of the next one that isn't empty."""
    found: list[str] = []
    is_headed = False
    for line in lines:
        if HEADING.match(line):
            is_headed = True
        elif line and is_headed:
            found.append(line if INDEX.match(line) else f"1. {line}")
            is_headed = False
        else:
            found.append(line)
    return found


def counted(lines: Sequence[str]) -> list[str]:
    """Lines whose bare indexes, where they count up from 1, have got a full stop."""
    indexes = [int(match[1]) for line in lines if (match := BARE_INDEX.match(line))]
    if len(indexes) < 2 or indexes != list(range(1, len(indexes) + 1)):
        return list(lines)
    return [BARE_INDEX.sub(r"\1. ", line) for line in lines]


def json_strings(text: str) -> list[str] | None:
    """All strings within a text that is JSON; None if it isn't, or has none."""
    with contextlib.suppress(ValueError):
        value = parse_json(text)
        if isinstance(value, list | dict):
            return list(strings(value)) or None
    return None


def strings(value: Any) -> Iterator[str]:
    """The strings of a JSON value, without the names of its fields, in their order."""
    match value:
        case str():
            yield value
        case list():
            for entry in value:
                yield from strings(entry)
        case dict():
            yield from strings(list(value.values()))


def numbered(lines: Sequence[str]) -> list[str]:
    """The sentences of numbered lines. A sentence goes on in the next line where it hasn't ended."""
    found: list[str] = []
    open_ended = False
    for line in lines:
        if match := INDEX.match(line):
            found.append(line[match.end() :])
        elif line and open_ended and not CLOSING.match(line):
            found[-1] = f"{found[-1]} {line}".lstrip()
        else:
            open_ended = False
            continue
        open_ended = not (SENTENCE_ENDED.search(found[-1]) or WORD_COUNT.search(found[-1]))
    return [tidy(text) for text in found]


def tidy(text: str) -> str:
    """A sentence without numbering, bullet, quotes, a count of words and doubled blanks; '' where no letter is left."""
    before, text = "", " ".join(text.split())
    while text != before:
        before = text
        text = WORD_COUNT.sub("", BULLET.sub("", INDEX.sub("", text))).strip(MARKDOWN)
        while len(text) > 1 and QUOTES.get(text[0]) == text[-1]:
            text = text[1:-1].strip(MARKDOWN)
    return text if any(character.isalpha() for character in text) else ""


@dataclass(frozen=True)
class Variant:
    """A sentence of an answer, and the names of the checks that it fails."""

    text: str
    failed: tuple[str, ...]

    @property
    def is_kept(self) -> bool:
        """Whether it can stand for the caption; what fails a check in MARKED only is kept, and marked."""
        return MARKED.issuperset(self.failed)


ALONE: dict[str, Callable[[str], bool]] = {
    "one sentence": lambda text: len(text.split()) > 1 and not SENTENCE_END.search(text),
    "under 20 words": lambda text: len(text.split()) <= MOST_WORDS,
    "no year or clock time": lambda text: not (CLOCK_TIME.search(text) or YEAR.search(text)),
    "no 'heard' or 'recorded'": lambda text: not FORBIDDEN.search(text),
    "plain text": lambda text: not MARKUP.search(text),
    "no name": lambda text: not NAME.search(text),
}
"""Checks that look at the sentence alone. A capital letter amid a sentence may begin a name."""

NOT_THE_ORIGINAL, NOT_A_DUPLICATE = "not the original", "not a duplicate"
CHECKS = (*ALONE, NOT_THE_ORIGINAL, NOT_A_DUPLICATE)
MARKED = frozenset({"under 20 words", "no name"})
"""What a person should look at; the sentence is kept."""


def check(caption: str, sentences: Sequence[str], earlier: Sequence[str] = ()) -> list[Variant]:
    """Each sentence with the checks that it fails. `earlier` are sentences that are kept already.

    Two sentences are the same where they are the same to the text encoder: in lower case, without punctuation.
    """
    original, seen = normalise(caption), {normalise(text) for text in earlier}
    variants = []
    for text in sentences:
        plain = normalise(text)
        failed = [name for name, holds in ALONE.items() if not holds(text)]
        failed += [NOT_THE_ORIGINAL] * (plain == original) + [NOT_A_DUPLICATE] * (plain in seen)
        seen.add(plain)
        variants.append(Variant(text, tuple(failed)))
    return variants


def kept(caption: str, answers: Sequence[str], number: int) -> list[Variant]:
    """The first `number` sentences of the answers to one caption that can stand for it."""
    return [variant for variant in judged(caption, answers) if variant.is_kept][:number]


def judged(caption: str, answers: Sequence[str]) -> list[Variant]:
    """Every sentence of the answers to one caption, in their order, with the checks that it fails."""
    found: list[Variant] = []
    for answer in answers:
        found += check(caption, parse(answer), [variant.text for variant in found if variant.is_kept])
    return found

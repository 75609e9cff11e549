"""Parsing of a chat model's answers into paraphrases, and checks of each sentence.

The instruction asks for numbered sentences only. In practice, answers have other numbering, quotes, introductions,
explanations or reasoning, or they are refusals.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from data.captions import normalise
from data.paraphrasing.model_markup import strip_markup
from data.sources.json_text import parse_json

MAX_WORDS = 19
"""Maximum number of words in a paraphrase: the instruction asks for fewer than 20."""

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
INDEX_LINE = re.compile(rf"{BEFORE_INDEX}[(\[]?\d{{1,2}}[\s.:)\]*_-]*$", re.VERBOSE | re.IGNORECASE)
"""Pattern of a line that is only an index; the sentence is in the next line."""

BARE_INDEX = re.compile(r"^(\d{1,2})\s+(?=[\"“]?[A-Z])")
"""Pattern of a number without punctuation: an index if the lines count up from 1, otherwise a part of the sentence, as
in "2 Dogs bark.".
"""

INLINE_INDEX = re.compile(r"(?<=[.!?\"”])\s+(?=\(?\d{1,2}[.):]\s*\S)|(?<=:)\s+(?=\(?1[.)]\s)")
"""Pattern between two numbered sentences on one line, and between an introduction and the first sentence."""

BULLET = re.compile(r"^[-*•–]\s+")
EMBEDDED_JSON = re.compile(r"[\[{].*[\]}]", re.DOTALL)
"""Pattern of JSON surrounded by other text."""

FENCE = re.compile(r"^```\w*$")
QUOTES = {'"': '"', "“": "”", "”": "”", "„": "“", "«": "»", "'": "'", "‘": "’"}
MARKDOWN = "*_` "
SENTENCE_ENDED = re.compile(r"[.!?][\"”'*]*$")
WORD_COUNT = re.compile(r"\s*[(\[]\d{1,2} words?[)\]]\W*$", re.I)
"""Pattern of a word count after a sentence: "A dog barks loudly. (4 words)"."""

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


def parse_sentences(answer: str) -> list[str]:
    """Return the sentences of a chat model's answer in order, without numbering and quotes.

    If lines are numbered, text before the first and after the last numbered sentence is ignored. Otherwise, each string
    of JSON is a sentence, or, without JSON, each line that isn't an introduction. A refusal contains no sentence.
    """
    lines = [line for line in strip_markup(answer).splitlines() if not FENCE.match(line)]
    text = "\n".join(lines)
    parts = punctuate_indexes(join_index_lines([part.strip() for line in lines for part in INLINE_INDEX.split(line)]))
    if (json_strings := extract_json_strings(text)) is not None:
        sentences = [clean_sentence(entry) for entry in json_strings]
    elif any(INDEX.match(part) for part in parts):
        sentences = join_numbered_lines(parts)
    elif (embedded := EMBEDDED_JSON.search(text)) and (json_strings := extract_json_strings(embedded[0])) is not None:
        sentences = [clean_sentence(entry) for entry in json_strings]
    elif is_refusal(text):
        return []
    else:
        sentences = [clean_sentence(part) for part in parts if not INTRODUCTION.search(part)]
    return [sentence for sentence in sentences if sentence and not (CLOSING.match(sentence) or is_refusal(sentence))]


def is_refusal(text: str) -> bool:
    """Return whether a text begins like a refusal to answer."""
    return bool(REFUSAL.match(text))


def is_refused(answer: str) -> bool:
    """Return whether an answer refuses the request and contains no sentence."""
    return is_refusal(strip_markup(answer)) and not parse_sentences(answer)


def join_index_lines(lines: Sequence[str]) -> list[str]:
    """Return the lines with each line that holds only an index ('1.') joined to the next non-empty line."""
    joined: list[str] = []
    is_headed = False
    for line in lines:
        if INDEX_LINE.match(line):
            is_headed = True
        elif line and is_headed:
            joined.append(line if INDEX.match(line) else f"1. {line}")
            is_headed = False
        else:
            joined.append(line)
    return joined


def punctuate_indexes(lines: Sequence[str]) -> list[str]:
    """Return the lines with a full stop inserted after each number without punctuation that begins a line, as in '1
    A dog barks.'. If these numbers don't count up from 1, they aren't indexes, and the lines are returned
    unchanged.
    """
    indexes = [int(match[1]) for line in lines if (match := BARE_INDEX.match(line))]
    if len(indexes) < 2 or indexes != list(range(1, len(indexes) + 1)):
        return list(lines)
    return [BARE_INDEX.sub(r"\1. ", line) for line in lines]


def extract_json_strings(text: str) -> list[str] | None:
    """Return all strings in a text that is a JSON list or object, except its keys; None if the text isn't one, or
    has no strings.
    """
    with contextlib.suppress(ValueError):
        value = parse_json(text)
        if isinstance(value, list | dict):
            return list(iter_strings(value)) or None
    return None


def iter_strings(value: Any) -> Iterator[str]:
    """Yield all strings in a JSON value in order, including nested ones, but not the keys of objects."""
    match value:
        case str():
            yield value
        case list():
            for entry in value:
                yield from iter_strings(entry)
        case dict():
            yield from iter_strings(list(value.values()))


def join_numbered_lines(lines: Sequence[str]) -> list[str]:
    """Return the sentences of an answer whose lines are numbered, without the numbers. A line without a number
    continues the sentence before it if that has not ended; otherwise it is ignored.
    """
    sentences: list[str] = []
    open_ended = False
    for line in lines:
        if match := INDEX.match(line):
            sentences.append(line[match.end() :])
        elif line and open_ended and not CLOSING.match(line):
            sentences[-1] = f"{sentences[-1]} {line}".lstrip()
        else:
            open_ended = False
            continue
        open_ended = not (SENTENCE_ENDED.search(sentences[-1]) or WORD_COUNT.search(sentences[-1]))
    return [clean_sentence(text) for text in sentences]


def clean_sentence(text: str) -> str:
    """Return a sentence without numbering, bullet, quotes, word count and double blanks; '' if no letter is left."""
    before, text = "", " ".join(text.split())
    while text != before:
        before = text
        text = WORD_COUNT.sub("", BULLET.sub("", INDEX.sub("", text))).strip(MARKDOWN)
        while len(text) > 1 and QUOTES.get(text[0]) == text[-1]:
            text = text[1:-1].strip(MARKDOWN)
    return text if any(character.isalpha() for character in text) else ""


@dataclass(frozen=True)
class CheckedSentence:
    """Sentence of a chat model's answer, and the names of those CHECKS that it fails."""

    text: str
    failed: tuple[str, ...]

    @property
    def is_kept(self) -> bool:
        """True if the sentence can replace the caption: it fails no check, or only checks in MARKING_CHECKS,
        which mark it for review.
        """
        return MARKING_CHECKS.issuperset(self.failed)


SENTENCE_CHECKS: dict[str, Callable[[str], bool]] = {
    "one sentence": lambda text: len(text.split()) > 1 and not SENTENCE_END.search(text),
    "under 20 words": lambda text: len(text.split()) <= MAX_WORDS,
    "no year or clock time": lambda text: not (CLOCK_TIME.search(text) or YEAR.search(text)),
    "no 'heard' or 'recorded'": lambda text: not FORBIDDEN.search(text),
    "plain text": lambda text: not MARKUP.search(text),
    "no name": lambda text: not NAME.search(text),
}
"""Checks of a sentence without its caption. A capital letter within a sentence may begin a name."""

NOT_THE_ORIGINAL, NOT_A_DUPLICATE = "not the original", "not a duplicate"
CHECKS = (*SENTENCE_CHECKS, NOT_THE_ORIGINAL, NOT_A_DUPLICATE)
MARKING_CHECKS = frozenset({"under 20 words", "no name"})
"""Checks that mark a sentence for review if they fail; the sentence is kept."""


def check_sentences(caption: str, sentences: Sequence[str], earlier: Sequence[str] = ()) -> list[CheckedSentence]:
    """Return all of `sentences`, each written to replace a caption, with the names of the checks that each fails. A
    sentence also fails if it repeats the caption, a sentence before it, or one of `earlier` (sentences that are kept
    already).

    Sentences are compared as a text encoder gets them: in lower case, without punctuation.
    """
    original, seen = normalise(caption), {normalise(text) for text in earlier}
    variants = []
    for text in sentences:
        plain = normalise(text)
        failed = [name for name, holds in SENTENCE_CHECKS.items() if not holds(text)]
        failed += [NOT_THE_ORIGINAL] * (plain == original) + [NOT_A_DUPLICATE] * (plain in seen)
        seen.add(plain)
        variants.append(CheckedSentence(text, tuple(failed)))
    return variants


def choose_paraphrases(caption: str, answers: Sequence[str], number: int) -> list[CheckedSentence]:
    """Return the first `number` sentences in a chat model's answers about a caption that can replace it; fewer if
    there aren't so many.
    """
    return [variant for variant in check_answers(caption, answers) if variant.is_kept][:number]


def check_answers(caption: str, answers: Sequence[str]) -> list[CheckedSentence]:
    """Return every sentence in a chat model's answers about a caption, in order, with the names of the checks that it
    fails.
    """
    checked: list[CheckedSentence] = []
    for answer in answers:
        checked += check_sentences(
            caption, parse_sentences(answer), [variant.text for variant in checked if variant.is_kept]
        )
    return checked

"""A small rule-based paraphraser of captions, for machines without a language model: `--model grammar`.

The paraphraser divides a caption into clauses, and writes the same clauses in other forms and in another order. It
replaces words where a word of the same meaning fits. Precision comes first: a caption that the rules don't understand
gets fewer paraphrases or none, rather than a doubtful one. The same caption always gets the same sentences. The
paraphraser has no knowledge of sounds and adds no detail to a caption, so it does not replace a language model.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.random import Generator

from data.paraphrasing import answer_parsing
from data.paraphrasing.english.clauses import SINGULAR_DETERMINERS, Clause, Form, is_plural_subject
from data.paraphrasing.english.links import AT_ONCE, Link, ParsedCaption, parse_caption
from data.paraphrasing.english.synonyms import draw_one, substitute_words

NAME = "grammar"
"""Name of the model."""

VERSION = "rules3"
"""Version of the rules; change it whenever the rules write other sentences."""

MAX_DRAWS = 150
"""Maximum number of draws per caption; short captions have few other wordings."""

MAX_REPEATS = 40
"""Maximum number of consecutive draws that were all drawn before."""

VERB_SYNONYMS = {
    "talk": "speak", "speak": "talk", "converse": "talk", "shout": "yell", "yell": "shout", "tweet": "chirp",
    "mew": "meow", "mutter": "mumble", "mumble": "mutter",
}  # fmt: skip
"""Verbs that can replace each other as the verb of a clause."""

OBJECT_OF_SPEAK = re.compile(r"\{\}(?: (?!(?:to|with|on|over|into|in|at|near|outside|loudly|quietly|softly|and)\b))")
"""Pattern of a clause in which 'speak' has an object, 'speak Spanish', which 'talk' can't have."""

AUDIBLE = re.compile(r"(.+?) can be heard (in the background|in the distance|nearby|outside|far away|clearly)")
DOUBLE = re.compile(r"\b(\w+) \1\b")
IN_FRONT = ("in the background", "in the distance", "outside", "nearby")
"""Places at the end of a clause that can come first."""

NAMES_A_SOUND = re.compile(r"\b(?:sounds?|noises?|tones?|voices?)\b")


def write_paraphrases(caption: str, number: int) -> list[str]:
    """Return up to `number` other wordings of a caption, long ones last; fewer if the rules find no more."""
    rng = np.random.default_rng(list(hashlib.sha256(caption.encode()).digest()))
    paraphrases: list[str] = []
    too_long: list[str] = []
    tried: set[str] = set()
    repeats = 0
    for text in draw_wordings(rng, caption):
        repeats = repeats + 1 if text in tried else 0
        if repeats > MAX_REPEATS:
            break
        if repeats:
            continue
        tried.add(text)
        (variant,) = answer_parsing.check_sentences(caption, [text], paraphrases + too_long)
        if variant.is_kept and (not DOUBLE.search(text) or DOUBLE.search(caption)):
            (too_long if variant.failed else paraphrases).append(text)
        if len(paraphrases) == number:
            break
    return (paraphrases + too_long)[:number]


def draw_wordings(rng: Generator, caption: str) -> Iterator[str]:
    """Yield MAX_DRAWS random sentences with the meaning of a caption; some may be equal. Yield nothing for a caption
    that consists of several sentences.
    """
    plain = " ".join(caption.strip().rstrip(".!? ").split())
    if not plain or answer_parsing.SENTENCE_END.search(plain):
        return
    if not re.match(r"I\b|[A-Z]{2}", plain):
        plain = plain[:1].lower() + plain[1:]
    parsed = parse_caption(caption)
    bases = [plain, *write_audible(plain)]
    for _ in range(MAX_DRAWS):
        wordings = list_wordings(replace_verbs(rng, parsed)) if parsed else bases
        text = substitute_words(rng, draw_one(rng, wordings or bases))
        yield text[:1].upper() + text[1:] + "."


def write_audible(text: str) -> list[str]:
    """Return 'birds are audible in the background' for 'birds can be heard in the background'; [] for other texts."""
    if not (match := AUDIBLE.fullmatch(text)) or (is_plural := is_plural_subject(match[1].split())) is None:
        return []
    return [f"{match[1]} {'are' if is_plural else 'is'} audible {match[2]}"]


def replace_verbs(rng: Generator, parsed: ParsedCaption) -> ParsedCaption:
    """Return a parsed caption in which verbs, chosen at random, are replaced by others of the same meaning."""
    clauses = []
    for clause in parsed.clauses:
        verbs = tuple(
            VERB_SYNONYMS[verb] if is_replaceable(verb, clause) and rng.random() < 0.5 else verb
            for verb in clause.verbs
        )
        clauses.append(replace(clause, verbs=verbs) if len(set(verbs)) == len(verbs) else clause)
    return replace(parsed, clauses=tuple(clauses))


def is_replaceable(verb: str, clause: Clause) -> bool:
    """Return whether a verb of a clause has a synonym that fits into it."""
    if verb == "talk":
        return " of " not in clause.subject and "crowd" not in clause.subject  # a crowd doesn't speak as one
    return verb in VERB_SYNONYMS and not (verb == "speak" and OBJECT_OF_SPEAK.search(clause.rest))


def list_wordings(parsed: ParsedCaption) -> list[str]:
    """Return all phrasings of a parsed caption that the grammar can write, such as 'A while B' and 'while B, A'."""
    clauses, links = parsed.clauses, parsed.links
    if not links:
        return list_single(clauses[0])
    if len(links) > 1 or clauses[1].form == "gerund":
        return list_in_place(parsed)
    first, second = clauses
    wordings = list_in_place(parsed)
    if links[0] in AT_ONCE:
        if is_at_once(first, links[0], second):
            wordings += list_at_once(first, links[0], second)
    else:
        wordings += list_in_turn(first, second)
    return wordings


def list_single(clause: Clause) -> list[str]:
    """Return the phrasings of one clause as a whole caption, such as 'a dog barks' and 'there is a dog barking'."""
    finite = list_finite(clause)
    wordings = list(finite)
    participle = clause.write("participle")
    if participle and clause.is_indefinite and " and " not in clause.subject and clause.is_plural is not None:
        is_group = clause.subject.split()[0] in SINGULAR_DETERMINERS  # 'a group of people are talking'
        wordings.append(f"there {'are' if clause.is_plural and not is_group else 'is'} {participle}")
    if participle and not NAMES_A_SOUND.search(clause.subject) and clause.is_lasting:
        wordings.append(f"the sound of {participle}")
    if passive := clause.write_passive():
        wordings.append(passive)
    for text in finite:
        for ending in IN_FRONT:
            if text.endswith(f" {ending}") and not PLACE_BELONGS_TO_MORE.search(text.removesuffix(f" {ending}")):
                wordings.append(f"{ending}, {text.removesuffix(f' {ending}')}")
    return wordings


PLACE_BELONGS_TO_MORE = re.compile(r"\b(?:from|right|just|off|far|the|on|of|and)$|\b(?:and|with|of|without)\b")


def list_finite(clause: Clause, can_last: bool = True) -> list[str]:
    """Return a clause as text in the simple form ('a dog barks') and in the progressive form ('a dog is barking'), as
    far as it has them. If `can_last` is False, the progressive form is left out unless the clause has it already.
    """
    forms: list[Form] = ["simple"]
    if can_last or clause.form == "progressive":
        forms.append("progressive")
    return [text for form in forms if (text := clause.write(form))]


def is_at_once(first: Clause, link: Link, second: Clause) -> bool:
    """Return whether the link says for certain that two clauses happen at the same time, so that they can change
    places. 'and' often doesn't: 'a door opens and a man walks in'.
    """
    if not is_order_free(first, second):
        return False
    if link != "and":
        return True
    return first.is_lasting and second.is_lasting and (first.form != "simple" or second.rest.endswith(IN_FRONT))


def is_order_free(first: Clause, second: Clause) -> bool:
    """Return whether two clauses can change places. They can't if a word such as 'it' or 'the train' would then come
    before what it refers to.
    """
    return first.is_movable and second.is_movable and not second.mentions(first)


def list_at_once(first: Clause, link: Link, second: Clause) -> list[str]:
    """Return the phrasings, such as 'while B, A', of two clauses that happen at the same time and that `link` joins in
    the caption.
    """
    wordings = []
    seconds = list_finite(second)
    for text in list_finite(first):
        wordings += [f"while {other}, {text}" for other in seconds] + [f"{text} while {other}" for other in seconds]
        if link == "as":
            wordings += [f"as {other}, {text}" for other in seconds]
        else:
            wordings += [f"{other} while {text}" for other in seconds]
    participles = first.write("participle"), second.write("participle")
    if participles[1] and second.rest.endswith(IN_FRONT):
        wordings += [f"{text} with {participles[1]}" for text in list_finite(first)]
    if first.form == "participle" and all(participles) and link in ("and", "while") and first.is_lasting:
        wordings += [f"{participles[1]} and {participles[0]}"] if link == "and" else []
        if link == "and" and second.is_lasting and not NAMES_A_SOUND.search(f"{first.subject} {second.subject}"):
            wordings.append(f"the sound of {participles[0]} and {participles[1]}")
    if link == "and" and first.form == second.form == "progressive":
        wordings.append(f"{second.write('progressive')} and {first.write('progressive')}")
    return wordings


def list_in_turn(first: Clause, second: Clause) -> list[str]:
    """Return the phrasings, such as 'A, then B' and 'after A, B', of two clauses of which the second happens after the
    first.
    """
    wordings = []
    participle = second.write("participle")
    firsts, seconds = list_finite(first, can_last=False), list_finite(second, can_last=False)
    for text in firsts:
        wordings += [f"{text}, then {other}" for other in seconds] + [f"{text} and then {other}" for other in seconds]
        if participle and first.form != "participle":
            wordings.append(f"{text}, followed by {participle}")
    simple = first.write("simple"), second.write("simple")
    if is_order_free(first, second):
        if simple[1]:
            wordings += [f"{text} before {simple[1]}" for text in firsts]
        if simple[0]:
            wordings += [f"after {simple[0]}, {other}" for other in seconds]
            wordings += [f"{other} after {simple[0]}" for other in seconds]
    if first.form == "participle" and participle:
        wordings += [f"{first.write('participle')}{link}{participle}" for link in (", then ", ", followed by ")]
    return wordings


def list_in_place(parsed: ParsedCaption) -> list[str]:
    """Return the phrasings of a parsed caption in which its clauses keep their order; the form of each clause and the
    words that link them vary.
    """
    in_turn = not AT_ONCE.issuperset(parsed.links)
    wordings = [""]
    for index, clause in enumerate(parsed.clauses):
        link = parsed.links[index - 1] if index else None
        options = list_linked(clause, link, in_turn)
        if "and" in parsed.links[index : index + 1]:  # the clauses beside 'and' keep the same form
            options = [(words, text) for words, text in options if text == clause.write(clause.form)]
        wordings = [before + words + text for before in wordings for words, text in options][:MAX_DRAWS]
    return wordings


def list_linked(clause: Clause, link: Link | None, in_turn: bool) -> list[tuple[str, str]]:
    """Return the ways to write a clause and the link before it, as pairs of the link's words and the clause's text.
    `link` is None for the first clause of a caption; the link's words are '' then. `in_turn` tells whether the
    caption's events follow one another, so that the clause can't become progressive.
    """
    given = clause.write(clause.form)
    assert given
    finite = [given] if clause.form in ("participle", "gerund") else list_finite(clause, not in_turn) or [given]
    match link:
        case None:
            return [("", text) for text in finite]
        case "and":
            return [(" and ", given)]
        case "while" | "as" if clause.form == "participle":
            return [(" while ", text) for text in list_finite(clause, not in_turn) or [given]]
        case "while" if clause.form == "gerund":
            return [(" while ", given)]
        case "while" | "as":
            return [(words, text) for words in (" while ", " as ") for text in finite]
        case "then":
            return [(words, text) for words in (", then ", " and then ") for text in finite]
        case "with":
            return [(" with ", given), *((" while ", text) for text in list_finite(clause, not in_turn))]
        case "before":
            return [(" before ", text) for text in finite]
    return [(f", {link} ", given)]

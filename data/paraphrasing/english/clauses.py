"""Clauses of captions: a small grammar of the English that describes sounds.

Clauses are such as 'a man is speaking', 'birds chirp in the background' or 'a dog barking'. The grammar knows verbs of
sounds and of actions, and is narrow on purpose: a wrong reading of a clause would give a wrong paraphrase.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeGuard

from data.paraphrasing.english.verbs import (
    BY_PARTICIPLE,
    BY_THIRD_PERSON,
    IS_LASTING,
    PARTICIPLES,
    VERBS,
    inflect_participle,
    inflect_third_person,
    parse_words,
)

Form = Literal["progressive", "simple", "participle", "gerund"]
"""Form of a clause: 'a dog is barking', 'a dog barks', 'a dog barking', 'barking' (without a subject)."""


OTHER_VERBS = parse_words(
    """
    make makes sound sounds get gets become becomes go goes come comes start starts stop stops begin begins
    continue continues keep keeps take takes give gives cause causes create creates grow grows fade fades increase
    increases decrease decreases end ends sit sits stand stands try tries use uses put puts leave hear hears seem
    seems work works travel travels ride rides climb climbs lift lifts respond responds answer answers call calls
    change changes say says tell tells ask asks follow follows happen happens occur occurs
    """
)
"""Verbs that the grammar doesn't cover, in the forms that look like nouns."""

SINGULAR_DETERMINERS = {"a", "an", "one", "another"}
PLURAL_DETERMINERS = {"several", "many", "multiple", "various", "numerous", "two", "three", "four", "five", "different"}
DEFINITE = {"the", "his", "her", "their", "its", "this", "that", "these", "those", "both"}
DETERMINERS = SINGULAR_DETERMINERS | PLURAL_DETERMINERS | DEFINITE | {"some", "few", "other"}
UNCOUNTABLE = parse_words(
    """
    water rain wind thunder music traffic static air metal glass wood paper plastic machinery fire liquid snow
    sand food oil steam gas electricity equipment wildlife lightning someone somebody everyone everybody rainwater
    """
)
"""Nouns and pronouns that are singular without an article."""

PLURAL_NOUNS = parse_words(
    """
    people children men women kids geese mice feet cattle police
    """
)
SINGULAR_IN_S = re.compile(
    r"(?:ss|us|is)$|^(?:gas|news|series|chaos|canvas|lens|always|perhaps|outdoors|indoors|upstairs|downstairs|christmas|"
    r"sometimes|towards|besides|afterwards|backwards|forwards|times)$"
)
GROUPS = parse_words(
    """
    group crowd flock pack herd bunch team choir gust stream body series pair set swarm
    """
)
"""Nouns that can be followed by 'of' and the members of the group; the verb is in the singular."""

PREPOSITIONS = parse_words(
    """
    in on at with by to from into onto over through against under around across along near behind beside inside
    outside between among above below past toward towards up down off out of about for like during without within
    upon before after amid
    """
)
PRONOUNS = parse_words(
    """
    it he she they its his her their him them himself herself itself themselves i we you
    """
)
NOT_IN_SUBJECT = PREPOSITIONS | PRONOUNS | parse_words(
    """
    and or but is are was were be been being has have had can could will that which who where when while as then
    there not no it this these those what how if because so until once twice
    """
)  # fmt: skip
NOT_IN_REST = parse_words(
    """
    and or but is are was were be been being has have had can could will that which who where when while as then
    there if because so until than not
    """
)
NOUNS_IN_ING = parse_words(
    """
    building morning evening ceiling clothing string spring king ring thing something nothing anything everything
    wing swing railing lightning crossing siding awning
    """
)
REPEATED_ADVERBS = {
    "back and forth",
    "up and down",
    "on and off",
    "over and over",
    "again and again",
    "round and round",
}
ADVERBS_OF_COUNT = re.compile(
    r"\b(?:once|twice|times?|again|briefly|suddenly|finally|eventually|momentarily|moments?|seconds?|minutes?)\b"
)
"""Pattern of adverbs that don't fit the progressive form."""

REFERENCES = parse_words("another other others also too same first second next last former latter both each")
"""Words, besides pronouns, that refer to something before."""


@dataclass(frozen=True)
class Clause:
    """Clause of a caption, such as 'a dog barks in the distance'. `rest` is everything after the subject and the
    auxiliary verb, with '{}' for each verb of `verbs` (infinitives). `is_plural` tells whether the subject is plural,
    None if that isn't known.
    """

    form: Form
    subject: str
    verbs: tuple[str, ...]
    rest: str
    is_plural: bool | None

    @property
    def is_movable(self) -> bool:
        """True if the clause can stand before the others of its caption, since none of its words, such as 'it' or
        'another', refers to another clause.
        """
        words = f"{self.subject} {self.rest}".split()
        return (PRONOUNS | REFERENCES).isdisjoint(words) and words[-1] != "inside"

    def mentions(self, other: "Clause") -> bool:
        """Return whether this clause refers to something that the clause `other` names: 'the train' after 'a train
        passes'.
        """
        words = set(f"{other.subject} {other.rest}".split())
        definite = re.findall(r"\b(?:the|that|this|these|those) (?:[a-z]+ )?([a-z]+)", f"{self.subject} {self.rest}")
        return not words.isdisjoint({noun for noun in definite if noun not in PREPOSITIONS})

    @property
    def is_lasting(self) -> bool:
        """True if the clause makes sense in the progressive form ('a dog is barking'), which verbs of short events
        don't have.
        """
        return all(verb in IS_LASTING for verb in self.verbs) and not ADVERBS_OF_COUNT.search(self.rest)

    @property
    def is_indefinite(self) -> bool:
        """True if the subject can follow 'there is': it doesn't begin with 'the', 'his' or the like."""
        return self.subject.split()[0] not in DEFINITE

    def write(self, form: Form) -> str | None:
        """Return the clause as text in a form such as 'progressive'; None if it can't be written in that form."""
        if form == self.form:
            return self._format(form)
        if self.form == "gerund" or form == "gerund":
            return None
        if form != "participle" and self.is_plural is None:
            return None
        if self.form == "simple" and not self.is_lasting:
            return None
        return self._format(form)

    def _format(self, form: Form) -> str:
        if form == "simple":
            inflected = [verb if self.is_plural else inflect_third_person(verb) for verb in self.verbs]
        else:
            inflected = [inflect_participle(verb) for verb in self.verbs]
        auxiliary = ("are " if self.is_plural else "is ") if form == "progressive" else ""
        return f"{self.subject} {auxiliary}{self.rest.format(*inflected)}".strip()

    def write_passive(self) -> str | None:
        """Return the clause as text in the passive voice, 'a drum is hit by a man' for 'a man hits a drum'; None if it
        has no passive.
        """
        if len(self.verbs) != 1 or self.verbs[0] not in PARTICIPLES or self.form not in ("simple", "progressive"):
            return None
        if not (match := OBJECT.fullmatch(self.rest)) or match[1] in NOT_OBJECTS:
            return None
        being = "being " if self.form == "progressive" else ""
        thing = self.rest.removeprefix("{} ")
        return f"{thing} is {being}{PARTICIPLES[self.verbs[0]]} by {self.subject}"


OBJECT = re.compile(r"\{\} (?:a|an|the) (?:[a-z]+ )?([a-z]+)(?<!ly)(?<!s)")
"""Pattern of a clause's verb with an object in the singular, and nothing else."""

NOT_OBJECTS = PREPOSITIONS | parse_words(
    """
    again nearby away together back repeatedly indoors outdoors home lot bit while little few second minute time moment
    day night way
    """
)


def parse_clause(text: str) -> Clause | None:
    """Return the clause that a text consists of, such as 'a dog is barking'; None if it isn't one that this grammar
    covers.
    """
    words = text.split()
    if not words or re.search(r"[,;:(){}\"/&]", text):
        return None
    if words[:2] in (["there", "is"], ["there", "are"]):
        clause = parse_clause(" ".join(words[2:]))
        return replace(clause, form="progressive", is_plural=words[1] == "are") if has_participle(clause) else None
    if words[0] in BY_PARTICIPLE:
        return build_clause("gerund", (), words, None)
    for index, word in enumerate(words[1:6], start=1):
        is_plural = is_plural_subject(words[:index])
        if word in ("is", "are", "can"):
            return parse_after_auxiliary(words, index, is_plural)
        if word in BY_PARTICIPLE:
            return None if is_plural is None else build_clause("participle", words[:index], words[index:], is_plural)
        if (word in BY_THIRD_PERSON and is_plural is False) or (word in VERBS and is_plural is True):
            return build_clause("simple", words[:index], words[index:], is_plural)
        if word in NOT_IN_SUBJECT and not is_inside_subject(words, index):
            return None
    return None


def has_participle(clause: Clause | None) -> TypeGuard[Clause]:
    """Return whether `clause` is not None and consists of a subject and a participle, such as 'a dog barking'."""
    return clause is not None and clause.form == "participle"


def parse_after_auxiliary(words: Sequence[str], index: int, is_plural: bool | None) -> Clause | None:
    """Return the progressive clause that the words form, whose 'is', 'are' or 'can' is at `index`; None if they form no
    such clause. `is_plural` says whether the subject is plural; None means that the words before `index` are no
    subject, so that there is no clause. 'birds can be heard chirping' is read as 'birds are chirping'.
    """
    if is_plural is None:
        return None
    following = list(words[index + 1 :])
    if words[index] == "can":
        if following[:2] != ["be", "heard"]:
            return None
        following = following[2:]
    else:
        is_plural = words[index] == "are"
        following = following[1:] if following[:1] == ["heard"] else following
    if not following or following[0] not in BY_PARTICIPLE:
        return None
    return build_clause("progressive", words[:index], following, is_plural)


def is_inside_subject(words: Sequence[str], index: int) -> bool:
    """Return whether the 'of' or 'and' at `index` of the words is part of a subject: 'a group of people', 'a man and a
    woman'.
    """
    if words[index] == "of":
        return words[index - 1] in GROUPS
    return words[index] == "and" and is_plural_subject(words[:index]) is not None


def is_plural_subject(words: Sequence[str]) -> bool | None:
    """Return whether the subject that the words form is plural; None if they don't form a complete subject."""
    if "and" in words:
        index = words.index("and")
        parts = words[:index], words[index + 1 :]
        return None if any(is_plural_subject(part) is None for part in parts) else True
    if "of" in words:
        index = words.index("of")
        group = words[:index]
        if len(group) < 2 or group[-1] not in GROUPS or is_plural_subject(words[index + 1 :]) is None:
            return None
        return is_plural_noun_phrase(group)
    return is_plural_noun_phrase(words)


def is_plural_noun_phrase(words: Sequence[str]) -> bool | None:
    """Return whether the noun phrase that the words form, such as 'a small dog', is plural; None if they don't form a
    complete one.
    """
    if not words or not NOT_IN_SUBJECT.isdisjoint(words) or words[-1] in DETERMINERS | (NOUNS_IN_ING - {"something"}):
        return None
    if any(word in BY_PARTICIPLE or word in OTHER_VERBS or not re.fullmatch(r"[a-z'-]+", word) for word in words):
        return None
    head, first = words[-1], words[0]
    if head.endswith(("ly", "'s", "'")):
        return None
    is_plural = head in PLURAL_NOUNS or (head.endswith("s") and not SINGULAR_IN_S.search(head))
    if first in SINGULAR_DETERMINERS:
        return None if is_plural or len(words) < 2 else False
    if first in DEFINITE:
        return is_plural if len(words) > 1 else None
    if is_plural:
        return True
    return False if head in UNCOUNTABLE and first not in PLURAL_DETERMINERS else None


def build_clause(form: Form, subject: Sequence[str], words: Sequence[str], is_plural: bool | None) -> Clause | None:
    """Return the clause in this form with a subject and the words after it, of which the first is its verb, such as
    'barks', 'outside'. Return None unless these words are verbs in the given form with their objects and places.
    `is_plural` says whether the subject is plural; None if that is unknown.
    """
    lookup = BY_PARTICIPLE if form != "simple" else {verb: verb for verb in VERBS} if is_plural else BY_THIRD_PERSON
    verbs, rest = [lookup[words[0]]], ["{}"]
    position = 1
    while position < len(words):
        word, before = words[position], words[position - 1]
        if " ".join(words[position : position + 3]) in REPEATED_ADVERBS:
            rest += words[position : position + 3]
            position += 3
            continue
        step = 2 if words[position : position + 2] == ["and", "then"] else 1
        following = words[position + step] if position + step < len(words) else ""
        if word == "and" and following in lookup:
            verbs.append(lookup[following])
            rest += [*words[position : position + step], "{}"]
            position += step + 1
            continue
        if not can_be_in_rest(word, before, words[position - 2] if position > 1 else ""):
            return None
        rest.append(word)
        position += 1
    if subject[-1:] in (["footsteps"], ["steps"]) and "walk" in verbs:  # 'footsteps walking' has no other form
        return None
    return Clause(form, " ".join(subject), tuple(verbs), " ".join(rest), is_plural)


def can_be_in_rest(word: str, before: str, second_before: str) -> bool:
    """Return whether a word can be part of a clause's object or place, given the word before it and the one before
    that; verbs can't.
    """
    if word in NOT_IN_REST or not re.fullmatch(r"[a-z'-]+", word):
        return False
    begins = before in PREPOSITIONS - {"to"} or before in DETERMINERS
    if word in BY_PARTICIPLE or (word.endswith("ing") and word not in NOUNS_IN_ING):
        return before in DETERMINERS
    if word.endswith("ed"):
        return begins
    if word in BY_THIRD_PERSON or word in OTHER_VERBS or word in VERBS:
        return begins and before not in ("up", "down", "off", "out", "by", "past", "outside", "inside", "around")
    if word.endswith("s") and not SINGULAR_IN_S.search(word) and word not in PRONOUNS:
        return begins or before in PRONOUNS or second_before in PREPOSITIONS or second_before in DETERMINERS
    return True

"""Words and phrases of the same meaning, each with the context in which it can be replaced.

Every pattern demands what has to be before and after the words, so that no replacement depends on the rest of a text.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from numpy.random import Generator

from data.paraphrasing.english.verbs import BY_PARTICIPLE, BY_THIRD_PERSON, VERBS

END = r"(?=$|,| while | as (?!if|though|well)| and (?:a|an|the|some|someone|then|birds|people)\b| then | before )"
"""Pattern of the end of a clause."""

PLURAL = r"(?=\w+s\b(?!')|people\b|children\b|men\b|women\b|\w+ (?:people|children|men|women)\b)"
START = r"(?<![\w,;] )(?<!\w)|(?<=while )|(?<=\bas )|(?<=then )|(?<=before )|(?<=after )"
"""Pattern of the beginning of a clause."""


NO_OTHER = r"(?!.*\b(?:another|others?|one)\b)"
"""Pattern of a text without a word that stands for a second person, which only 'a person' can precede."""

END_WITHOUT_COMMA = END.replace("|,", "")
RAINING = rf"(?={END_WITHOUT_COMMA}| on\b| heavily| hard\b| lightly| steadily| outside| in the (?:background|distance))"
"""Pattern of what can follow both 'rain falls' and 'it rains'."""

NO_DIRECTION = "".join(
    f"(?<!{word} )"
    for word in (
        *("off", "away", "far", "out", "somewhere", "go", "goes", "going", "step", "steps", "stepping"),
        *("look", "looks", "looking", "come", "comes", "coming", "disappear", "disappears", "vanishes"),
    )
)
"""Pattern of a position that isn't after a word with which a place is a direction."""


@dataclass(frozen=True)
class Substitution:
    """Words and what can replace them. Any of `words` can replace any other one where the pattern `before` precedes it
    and `after` follows it; if there are `targets`, only these replace them.
    """

    words: tuple[str, ...]
    after: str = r"\b"
    before: str = r"\b"
    targets: tuple[str, ...] = ()  # replacements, if they are not `words`

    @property
    def pattern(self) -> re.Pattern[str]:
        """Pattern of each place in a text where one of `words` can be replaced."""
        return re.compile(rf"(?:{self.before})(?:{'|'.join(map(re.escape, self.words))}){self.after}")


SUBSTITUTIONS = tuple(
    (substitution.pattern, substitution.targets or substitution.words)
    for substitution in (
        Substitution(("someone", "somebody")),
        Substitution(("someone", "somebody"), rf"(?!['\u2019]| else| who){NO_OTHER}\b", targets=("a person",)),
        Substitution(("a person",), rf"(?!['\u2019]){NO_OTHER}\b(?! (?:of|or|and|with)\b)", targets=("someone",)),
        Substitution(("repeatedly", "over and over", "again and again"), END),
        Substitution(("continuously", "constantly")),
        Substitution(("quickly", "rapidly")),
        Substitution(("outdoors",), END, targets=("outside",)),
        Substitution(("indoors",), END, targets=("inside",)),
        Substitution(("nearby", "close by"), END),
        Substitution(("in the distance",), END, rf"{NO_DIRECTION}(?<!fades )(?<!fading )\b", targets=("far away",)),
        Substitution(("occasionally", "every now and then", "from time to time"), END),
        Substitution(("intermittently",), END, targets=("on and off",)),
        Substitution(("simultaneously", "at the same time"), END),
        Substitution(("two times", "2 times"), END, targets=("twice",)),
        Substitution(("several", "multiple", "a number of"), rf"(?= {PLURAL})", r"(?<!the )(?<!of )(?<!are )\b"),
        Substitution(("a lot of",), rf"(?= {PLURAL})", targets=("lots of",)),
        Substitution(("a crowd of people",), r"(?= (?:is|\w+ing)\b)", targets=("a crowd",)),
        Substitution(("kids", "children"), r"\b(?!['\u2019])"),
        Substitution(("an airplane",), targets=("a plane",)),
        Substitution(("airplane",), r"\b(?! \w*(?:door|engine)s?\b)", r"(?<!an )(?<!jet )\b", targets=("plane",)),
        Substitution(("airplanes",), targets=("planes",)),
        Substitution(("telephone", "phone"), before=r"(?<!cell )(?<!mobile )(?<!pay )(?<!smart )\b"),
        Substitution(("motorcycle", "motorbike")),
        Substitution(("motorcycles", "motorbikes")),
        Substitution(("refrigerator",), targets=("fridge",)),
        Substitution(("faucet",), targets=("tap",)),
        Substitution(("vacuum cleaner",), targets=("vacuum",)),
        Substitution(
            ("big", "large"),
            r"(?= (?!(?:band|bang|ben|rig|top|bell|number|amount|quantity|variety|range|part|portion|deal)\b))",
            r"(?<=\ba )",
        ),
        Substitution(("lady", "woman"), r"\b(?!['\u2019])", targets=("woman",)),
        Substitution(("passes by", "goes by")),
        Substitution(("passing by", "going by")),
        Substitution(("pass by", "go by")),
        *(
            Substitution((f"{verb} by", f"{verb} past"), END)
            for verb in ("drives", "driving", "drive", "walks", "walking", "flies", "flying", "runs", "running")
        ),
        Substitution(("begins to", "starts to")),
        Substitution(("begin to", "start to")),
        Substitution(("rain is falling", "it is raining"), RAINING, START),
        Substitution(("rain falls", "it rains"), RAINING, START),
        Substitution(("is followed by",), targets=("is then followed by",)),
        Substitution(("are followed by",), targets=("are then followed by",)),
        Substitution(("whilst",), targets=("while",)),
    )
)
"""Patterns of words, and what can replace them there. None depends on the rest of the caption."""

OUTSIDE = re.compile(rf"\b(\w+) outside{END}")
KEEPS = re.compile(r"\b(keep(s?)) (\w+ing)\b")
NEXT = re.compile(r",? and then |, then ")
"""Pattern of the link between events in turn, which has two forms."""

DEPENDENT_START = re.compile(r"(?:when|if|as|after|while|once|before|first|at first)\b")


def substitute_words(rng: Generator, text: str) -> str:
    """Return a text in which words and phrases, chosen at random, are replaced by others of the same meaning."""
    for pattern, targets in SUBSTITUTIONS:
        text = replace_matches(rng, pattern, targets, text)
    if not DEPENDENT_START.match(text):
        text = NEXT.sub(lambda _: draw_one(rng, (" and then ", ", then ")), text)
    if rng.random() < 0.5:
        text = KEEPS.sub(write_continues, text)
    if rng.random() < 0.5:
        text = OUTSIDE.sub(write_outdoors, text)
    return text


def write_outdoors(match: re.Match[str]) -> str:
    """Return 'barks outdoors' for a match of 'barks outside'. If the word before 'outside' isn't a verb, as in 'the
    street outside', the matched text is returned unchanged.
    """
    is_verb = match[1] in BY_PARTICIPLE or match[1] in BY_THIRD_PERSON or match[1] in VERBS
    return f"{match[1]} outdoors" if is_verb else match[0]


def replace_matches(rng: Generator, pattern: re.Pattern[str], targets: Sequence[str], text: str) -> str:
    """Return a text in which each match of the pattern is either kept or replaced by one of the texts `targets`.
    Keeping it and each of the texts are equally likely.
    """
    return pattern.sub(lambda match: draw_one(rng, (match[0], *targets)), text)


def write_continues(match: re.Match[str]) -> str:
    """Return 'continues to bark' for a match of 'keeps barking'. If the verb isn't known, the matched text is returned
    unchanged.
    """
    verb = BY_PARTICIPLE.get(match[3])
    return f"continue{match[2]} to {verb}" if verb else match[0]


def draw_one(rng: Generator, options: Sequence[str]) -> str:
    """Return one of the options at random, all equally likely."""
    return options[int(rng.integers(len(options)))]

"""Verbs of sounds and of actions that make sounds, and their forms."""

import re


def parse_words(text: str) -> frozenset[str]:
    """Return the set of the words in a text."""
    return frozenset(text.split())


LASTING = """
    applaud argue babble bark bellow bleat blare blow boil bounce breathe bubble buzz cackle caw chant chat chatter
    cheer chew chirp chug churn clang clank clap clatter clink cluck coo cook converse cough crackle creak croak
    crow crunch cry crumple crinkle drill drip drive drum eat echo fizz flap flow flush flutter fly fry gallop
    giggle gobble grind groan growl grunt gurgle gush hammer hiss honk hoot hover howl hum idle jingle jog knock lap
    laugh march meow mew moan moo mumble murmur mutter neigh operate pant pass peck play pound pour purr quack
    rattle rev ring roar roll rub rumble run rush rustle saw scrape scratch scream screech scribble shout shuffle
    sing sizzle slosh slurp snarl snore sob spin splatter sputter spray squawk squeak squeal stir stomp stream strum
    swirl sweep swish swoosh talk speak tap thump tick tinkle toll trickle trot trumpet tweet twitter type vibrate
    wail walk warble wash weep whimper whine whinny whir whisper whistle whiz whoop whoosh yap yell yelp zoom
"""
"""Verbs whose simple form can also be progressive: 'a dog barks', 'a dog is barking'."""

MOMENTARY = """
    approach bang beep break burp catch chime clear click close crash cut drop enter explode fall hit kick land move
    open pop pull push shake shut slam slide snap sneeze snort splash squeeze strike tear throw thud turn
"""
"""Verbs that stay in the simple form, since the progressive form would mean a repetition or a longer action."""

DOUBLED = parse_words(
    """
    chat chop chug clap cut drip drop drum flap hit hum jog lap pop rev rub run shut slam snap sob spin stir strum
    tap thud trot whir whiz yap
    """
)
"""Verbs that double their last letter: 'humming'."""

PARTICIPLES = {
    "hit": "hit", "strike": "struck", "open": "opened", "close": "closed", "shut": "shut", "play": "played",
    "ring": "rung", "tap": "tapped", "cut": "cut", "pour": "poured", "drop": "dropped", "shake": "shaken",
    "push": "pushed", "pull": "pulled", "throw": "thrown",
    "stir": "stirred", "crumple": "crumpled", "sweep": "swept", "wash": "washed",
    "drive": "driven", "kick": "kicked", "slam": "slammed", "tear": "torn", "grind": "ground", "squeeze": "squeezed",
    "strum": "strummed", "rev": "revved", "scrape": "scraped", "scratch": "scratched",
}  # fmt: skip
"""Past participles of verbs with an object, for the passive voice."""


def inflect_third_person(verb: str) -> str:
    """Return the third person singular of a verb: 'bark' -> 'barks'."""
    if re.search(r"(?:s|sh|ch|x|z|[^o]o)$", verb):
        return f"{verb}zes" if verb in DOUBLED else f"{verb}es"
    return f"{verb[:-1]}ies" if re.search(r"[^aeiou]y$", verb) else f"{verb}s"


def inflect_participle(verb: str) -> str:
    """Return the present participle of a verb: 'bark' -> 'barking'."""
    if verb in DOUBLED:
        return f"{verb}{verb[-1]}ing"
    return f"{verb[:-1]}ing" if re.search(r"[^e]e$", verb) else f"{verb}ing"


VERBS = (*LASTING.split(), *MOMENTARY.split())
IS_LASTING = parse_words(LASTING)
BY_THIRD_PERSON = {inflect_third_person(verb): verb for verb in VERBS}
BY_PARTICIPLE = {inflect_participle(verb): verb for verb in VERBS}

"""Captions as text: normalising, hashing, and swapping one for a paraphrase."""

import hashlib
import unicodedata

APOSTROPHES = "'\u2019\u02bc"


class Letters(dict[int, str]):
    """What becomes of each character, by its code point: found out once."""

    def __missing__(self, code: int) -> str:
        """Unicode counts punctuation as P* and symbols as S*."""
        character = chr(code)
        if character in APOSTROPHES:
            self[code] = ""
        else:
            self[code] = " " if unicodedata.category(character)[0] in "PS" else character
        return self[code]


LETTERS = Letters()


def normalise(caption: str) -> str:
    """Lower case, no punctuation, single blanks, as the paper feeds its text encoders (section 2.5).

    Apostrophes vanish ("dog's" -> "dogs"); other punctuation becomes a blank, so that words which only a comma or a
    dash separates stay apart. Letters and digits beyond ASCII are kept.
    """
    return " ".join(caption.translate(LETTERS).lower().split())


def caption_hash(caption: str) -> str:
    """The key of a caption in a table of paraphrases: 16 hexadecimal digits of the SHA-256 of its UTF-8 text.

    The text as published counts, so that a corrected caption has none of the old one's paraphrases.
    """
    return hashlib.sha256(caption.encode()).hexdigest()[:16]


def choose(caption: str, variants: list[str], probability: float, swap_draw: float, variant_draw: float) -> str:
    """The caption, or with `probability` one of its paraphrases, all equally likely.

    `swap_draw` and `variant_draw` are uniform on [0, 1). A caption without paraphrases stands for itself.
    """
    if swap_draw >= probability or not variants:
        return caption
    return variants[int(variant_draw * len(variants))]

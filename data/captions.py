"""Captions as text: normalise them, hash them, and choose between a caption and its paraphrases."""

import hashlib
import unicodedata

APOSTROPHES = "'\u2019\u02bc"


class CharacterTable(dict[int, str]):
    """Table for `str.translate` that removes apostrophes and replaces other punctuation and symbols with a space.
    The mapping of a character is computed when it is first looked up.
    """

    def __missing__(self, code: int) -> str:
        """Return the replacement for a Unicode code point, and store it in the table: '' for an apostrophe, a
        space for other punctuation and symbols (Unicode categories P* and S*), and otherwise the character
        itself.
        """
        character = chr(code)
        if character in APOSTROPHES:
            self[code] = ""
        else:
            self[code] = " " if unicodedata.category(character)[0] in "PS" else character
        return self[code]


CHARACTER_TABLE = CharacterTable()


def normalise(caption: str) -> str:
    """Convert a caption to lower case without punctuation, with single spaces between words.

    This is how the paper preprocesses the input of its text encoders (section 2.5). Apostrophes are removed ("dog's" ->
    "dogs"); any other punctuation becomes a space, so that words separated only by a comma or a dash stay separate.
    Letters and digits beyond ASCII are kept.

    Example:
        >>> normalise("A dog's bark, far-away.")
        'a dogs bark far away'
    """
    return " ".join(caption.translate(CHARACTER_TABLE).lower().split())


def has_word(caption: str) -> bool:
    """Return whether a caption has any letter or digit; '...' and '?' have none.

    Example:
        >>> has_word("A dog."), has_word("...")
        (True, False)
    """
    return any(character.isalnum() for character in caption)


def hash_caption(caption: str) -> str:
    """Return the key of a caption in a table of paraphrases: the first 16 hexadecimal digits of the SHA-256 of its
    UTF-8 text.

    The published text is hashed without normalisation, so a corrected caption doesn't match paraphrases of the old one.
    """
    return hashlib.sha256(caption.encode()).hexdigest()[:16]


def choose_wording(caption: str, variants: list[str], probability: float, swap_draw: float, variant_draw: float) -> str:
    """Return a caption or, with the given probability, one of its paraphrases (`variants`), all equally likely. The
    two draws are random numbers, uniform on [0, 1): `swap_draw` decides whether the caption is replaced, and
    `variant_draw` by which paraphrase.

    A caption without paraphrases is returned unchanged.
    """
    if swap_draw >= probability or not variants:
        return caption
    return variants[int(variant_draw * len(variants))]

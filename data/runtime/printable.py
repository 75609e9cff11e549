"""Text in messages and paths: control characters are shown, credentials are hidden, and names are checked before they
become paths.

The names of files and of members of archives, captions, and the answers of servers may contain characters that move a
terminal's cursor, change its title or end a line, so that a message could hide another or forge one.
"""

import argparse
import re
import unicodedata
from typing import Final

from data.errors import UserError

ASCII_TEXT = re.compile(r"[ -~]*")

SHOWN_CATEGORIES: Final = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories of the characters that are shown as numbers: control and format characters, surrogates (bytes of a
file name that aren't UTF-8), and separators of lines and paragraphs.
"""

FIRST_BYTE, LAST_BYTE = 0xDC80, 0xDCFF
"""First and last surrogate that stands for a byte of a name that isn't UTF-8 (PEP 383)."""


CREDENTIALS = re.compile(r"(?<=://)[^\s/@]+@")
"""Pattern of the user and the password in a URI."""

SECRET_SETTING = re.compile(r"([?&][\w-]*(?:key|secret|token|password|signature)[\w-]*=)[^&\s'\"]+", re.IGNORECASE)
"""Pattern of a setting in a URI, such as '?access_key=...', whose value is secret."""


def make_printable(text: str, keep: str = "") -> str:
    r"""Return text for a terminal or a log: credentials in URIs are hidden, and control characters except those in
    `keep` are replaced by their numbers.

    Example:
        >>> print(make_printable("http://me:secret@host/a?api-key=1 \x1b"))
        http://***@host/a?api-key=*** \x1b
    """
    return escape_controls(hide_credentials(text), keep)


def hide_credentials(text: str) -> str:
    """Return text in which users, passwords and keys in URIs are replaced by '***'."""
    return SECRET_SETTING.sub(r"\1***", CREDENTIALS.sub("***@", text)) if "://" in text else text


def escape_controls(text: str, keep: str = "") -> str:
    r"""Return text in which control characters are replaced by their numbers, except those in `keep`.

    Example:
        >>> print(escape_controls("a\x1b[2Kb\n"))
        a\x1b[2Kb\x0a
    """
    if ASCII_TEXT.fullmatch(text):
        return text
    return "".join(
        escape_character(character)
        if unicodedata.category(character) in SHOWN_CATEGORIES and character not in keep
        else character
        for character in text
    )


def escape_character(character: str) -> str:
    """Return a character's number as Python writes it: with two, four or eight hexadecimal digits."""
    number = ord(character)
    if FIRST_BYTE <= number <= LAST_BYTE:
        number -= 0xDC00
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def parse_bare_name(text: str) -> str:
    """Return the text of a command-line option that becomes the name of a folder, for argparse; '' is returned as well,
    and stands for the option's default.

    Raises argparse.ArgumentTypeError for '.', '..' and any text with a separator or a control character.
    """
    try:
        return text and require_bare_name(text, "the name", "give another one")
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def require_bare_name(name: str, where: str, remedy: str) -> str:
    """Return a name that can be the name of a file or folder in a given folder: it must not be empty, '.' or '..', nor
    contain a separator or a control character. Raises UserError for any other name.

    Args:
        name: the name.
        where: where the name is from, for the message, such as '--name'.
        remedy: what to do about it, for the message.
    """
    if name in ("", ".", "..") or "/" in name or "\\" in name or escape_controls(name) != name:
        raise UserError(
            f"{where} {name!r}: it is used as the name of a file or folder, so it must not be empty, '.' or '..', nor "
            f"contain '/', '\\' or control characters; {remedy}"
        )
    return name

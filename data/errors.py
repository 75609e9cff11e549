"""Errors that are the user's to correct: printed as one line, without a traceback."""

import argparse


class UserError(ValueError):
    """Invalid input from the user. The message names the value, its location, the rule and the remedy."""


def unknown_name_error(kind: str, name: str, known: list[str]) -> UserError:
    """Return the UserError for an unknown name; its message lists the known names."""
    return UserError(f"unknown {kind} {name!r}; known: {', '.join(known)}")


def parse_positive_int(text: str) -> int:
    """Parse an integer of at least 1, for argparse.

    Raises argparse.ArgumentTypeError for any other text.
    """
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} isn't an integer of at least 1")
    return int(text)

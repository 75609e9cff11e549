"""Errors that are the user's to correct: printed as one line, without a traceback."""

import argparse


class UserError(ValueError):
    """Error that the user can correct, such as an invalid value. Its message names the value, its location, the
    rule and the remedy; commands print it as one line, without a traceback.
    """


def unknown_name_error(kind: str, name: str, known: list[str]) -> UserError:
    """Return the UserError for a name of a `kind`, such as 'corpus', that isn't among the `known` names, which its
    message lists.
    """
    return UserError(f"unknown {kind} {name!r}; known: {', '.join(known)}")


def parse_positive_int(text: str) -> int:
    """Parse an integer of at least 1, for argparse.

    Raises argparse.ArgumentTypeError for any other text.
    """
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} isn't an integer of at least 1")
    return int(text)

"""A user's mistake, told without a traceback."""

import argparse


class UserError(ValueError):
    """Something the user gave is wrong. The message says what, where, the rule and the remedy."""


def unknown_name(kind: str, name: str, known: list[str]) -> UserError:
    """The error for a name that nothing answers to; it lists the known ones."""
    return UserError(f"unknown {kind} {name!r}; known: {', '.join(known)}")


def positive(text: str) -> int:
    """A whole number from 1 on, for argparse."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} isn't a whole number from 1 on")
    return int(text)

"""Division of captions into clauses, at the words that link them.

A caption that isn't covered completely isn't divided at all, since a wrong division would give a wrong paraphrase.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from data.paraphrasing.english.clauses import Clause, parse_clause

PROPER = re.compile(
    r"^(?:I|[A-Z]{2,}|Christmas|Halloween|Spanish|English|French|German|Italian|Chinese|Japanese|Arabic|Russian|Indian|"
    r"African|American|Asian|Latin|Native|Irish|Scottish|Tibetan|European|Buddhist|Muslim|Christian|Morse|Geiger)\b"
)
"""Pattern of a name or an abbreviation at the beginning of a caption, which is never moved within it."""

Link = Literal["while", "as", "with", "and", "then", "before", "followed by"]

LINKS: dict[str, Link] = {
    ", while ": "while", " while ": "while", " whilst ": "while", ", as ": "as", " as ": "as", ", with ": "with",
    " with ": "with", ", and then ": "then", " and then ": "then", ", then ": "then", ", before ": "before",
    " before ": "before", ", followed by ": "followed by", " followed by ": "followed by",
    ", and ": "and", " and ": "and",
}  # fmt: skip
LINK = re.compile("|".join(LINKS))

AT_ONCE: frozenset[Link] = frozenset({"while", "as", "with", "and"})
"""Links between events at the same time; 'and' only between clauses in the same form."""


@dataclass(frozen=True)
class ParsedCaption:
    """Clauses of a caption, and the links between them."""

    clauses: tuple[Clause, ...]
    links: tuple[Link, ...]


def parse_caption(caption: str) -> ParsedCaption | None:
    """Return the clauses of a caption; None if any part of it isn't covered by the grammar."""
    text = " ".join(caption.strip().rstrip(".!? ").split())
    if PROPER.search(text):
        return None
    text = text[:1].lower() + text[1:]
    if match := re.fullmatch(r"the sounds? of (.+)", text):
        parsed = parse_linked(match[1])
        return parsed if parsed and all(clause.form == "participle" for clause in parsed.clauses) else None
    if match := re.fullmatch(r"(while|as|after) ([^,]+), ([^,]+)", text):
        first, second = parse_clause(match[2]), parse_clause(match[3])
        if not first or not second or "gerund" in (first.form, second.form):
            return None
        return (
            ParsedCaption((first, second), ("then",))
            if match[1] == "after"
            else ParsedCaption((second, first), ("while",) if match[1] == "while" else ("as",))
        )
    return parse_linked(text)


def parse_linked(text: str) -> ParsedCaption | None:
    """Return the clauses of a text in which links separate them; None if the text can't be divided completely."""
    if clause := parse_clause(text):
        return ParsedCaption((clause,), ()) if clause.subject else None
    for left, link, right in iter_divisions(text):
        first = parse_clause(left)
        if not first or not first.subject:
            continue
        if link == "while" and (gerund := parse_clause(right)) and gerund.form == "gerund":
            return ParsedCaption((first, gerund), ("while",))
        if (rest := parse_linked(right)) and is_consistent(first, link, rest.clauses[0]):
            return replace(rest, clauses=(first, *rest.clauses), links=(link, *rest.links))
    return None


def iter_divisions(text: str) -> Iterator[tuple[str, Link, str]]:
    """Yield each division of a text into what is before a link, the link, and what is after it."""
    for match in LINK.finditer(text):
        yield text[: match.start()], LINKS[match[0]], text[match.end() :]


def is_consistent(first: Clause, link: Link, second: Clause) -> bool:
    """Return whether two clauses can be joined by a link: 'with' and 'followed by' precede participles."""
    if link in ("with", "followed by"):
        return second.form == "participle"
    if link in ("as", "before"):
        return second.form in ("simple", "progressive")
    if link == "and":
        return (first.form == "participle") == (second.form == "participle")
    if link == "then":
        return second.form != "participle" or first.form == "participle"
    return True

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
    """Clauses of a caption in order, and the links, such as 'while', between each two of them."""

    clauses: tuple[Clause, ...]
    links: tuple[Link, ...]


def parse_caption(caption: str) -> ParsedCaption | None:
    """Return a caption divided into clauses and the words that link them; None if the grammar doesn't cover all of
    it.
    """
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
    """Return a text divided into clauses and the links, such as 'while', that separate them; None if it can't be
    divided completely.
    """
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
    """Yield each way to divide a text at a link, such as 'while': the text before it, the link, and the text after
    it.
    """
    for match in LINK.finditer(text):
        yield text[: match.start()], LINKS[match[0]], text[match.end() :]


def is_consistent(first: Clause, link: Link, second: Clause) -> bool:
    """Return whether a link can join two clauses, by their forms: after 'with' and 'followed by', for instance, the
    second clause must have a participle, as in 'with birds chirping'.
    """
    if link in ("with", "followed by"):
        return second.form == "participle"
    if link in ("as", "before"):
        return second.form in ("simple", "progressive")
    if link == "and":
        return (first.form == "participle") == (second.form == "participle")
    if link == "then":
        return second.form != "participle" or first.form == "participle"
    return True

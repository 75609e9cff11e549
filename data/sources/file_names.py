"""Match the file names in a corpus' table with the files on disk, although people and programs write names differently.

A table may name files in another Unicode normalisation, with "./", with backslashes, as absolute paths of another
machine, or in another case than on disk. A match must be unambiguous.
"""

import difflib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

Normalise = Callable[[str], str]

MIN_SIMILARITY = 0.6
"""Minimum similarity of a name that is suggested for an absent file, as `difflib` measures it (its default)."""


def normalise_path(name: str) -> str:
    """Return a path in one form: slashes instead of backslashes, no "./" and no repeated slashes, and Unicode in the
    composed form NFC.
    """
    parts = unicodedata.normalize("NFC", name.replace("\\", "/")).split("/")
    kept = [part for part in parts if part not in ("", ".")]
    return ("/" if parts[0] == "" else "") + "/".join(kept)


def fold_case(name: str) -> str:
    """Return a path in one form that ignores the difference of upper and lower case."""
    return unicodedata.normalize("NFC", normalise_path(name).casefold())


def group_by_form(names: Iterable[str], normalise: Normalise) -> dict[str, list[str]]:
    """Return lists of the names that `normalise` converts to the same form, by that form; each list is sorted."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        groups[normalise(name)].append(name)
    return dict(groups)


class FileMatcher:
    """Finder of the files on disk that the file names in a table stand for, even if these are written differently.

    Args:
        names: Paths of the files on disk, relative to the corpus' folder, with slashes.
        root: The corpus' folder, which absolute paths in the table may begin with.
        normalise: Normalisation of names in which a corpus' tables and files agree.
    """

    def __init__(self, names: Iterable[str], root: Path | None = None, normalise: Normalise = normalise_path) -> None:
        self.names, self.root, self.normalise = sorted(names), root, normalise
        self.exact = set(self.names)
        self.by_form = group_by_form(self.names, normalise)

    def match(self, listed: Iterable[str]) -> dict[str, list[str]]:
        """Return, for each file name in a table (`listed`), the paths of the files that it may stand for: none, one, or
        several if the name is ambiguous.

        A name that differs from a file's name only in upper and lower case may stand for that file unless another name
        in the table matches the file without that difference.
        """
        matches = {name: self.find_same_form(name) for name in dict.fromkeys(listed)}
        claimed = {file for files in matches.values() for file in files}
        by_folded_form = group_by_form(self.exact - claimed, self.fold)
        for name, files in matches.items():
            if not files:
                forms = [self.fold(form) for form in self.list_forms(name)]
                matches[name] = next((by_folded_form[form] for form in forms if form in by_folded_form), [])
        return matches

    def find_same_form(self, name: str) -> list[str]:
        """Return the files on disk whose normalised path is that of a name in a table. If a file has exactly this name,
        only that one is returned.
        """
        if name in self.exact:
            return [name]
        forms = [self.normalise(form) for form in self.list_forms(name)]
        return next((self.by_form[form] for form in forms if form in self.by_form), [])

    def fold(self, name: str) -> str:
        """Return the normalised name without distinction of case."""
        return fold_case(self.normalise(name))

    def list_forms(self, name: str) -> list[str]:
        """Return the paths, relative to the corpus' folder, that a name in a table may mean: the name itself or, for an
        absolute path, each of its endings.
        """
        normalised = normalise_path(name)
        without_drive = re.sub(r"^[A-Za-z]:(?=/)", "", normalised)
        if not without_drive.startswith("/"):
            return [name]
        if self.root is not None and Path(normalised).is_relative_to(self.root):
            return [Path(normalised).relative_to(self.root).as_posix()]
        parts = without_drive.strip("/").split("/")
        return ["/".join(parts[start:]) for start in range(len(parts))]

    def suggest(self, name: str) -> str:
        """Return the file on disk whose name, without its folders, is most similar to that of `name`, a name in a table
        for which there is no file; '' if none is similar.
        """
        last = fold_case(name).rpartition("/")[2]
        lasts = {fold_case(other).rpartition("/")[2]: other for other in self.names}
        similar = difflib.get_close_matches(last, lasts, 1, MIN_SIMILARITY)
        return lasts[similar[0]] if similar else ""

    def explain_missing(self, name: str, files: Sequence[str], folder: Path) -> str:
        """Return the reason why a name in a table identifies no file, as text for a message. `files` are the files that
        the name may stand for, if it is ambiguous; `folder` is the corpus' folder.
        """
        if files:
            return f"{name!r} could be any of {', '.join(map(repr, files))}: use the exact name in the table"
        suggestion = self.suggest(name)
        hint = f" (is it {suggestion!r}?)" if suggestion else ""
        return f"{folder / name} is absent{hint}"

"""Published paraphrases: a JSON list of {"path", "caption", "variations"}, matched with a split's captions."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from data.captions import normalise
from data.errors import UserError
from data.paraphrasing import answer_parsing
from data.store import files
from data.store.stored_split import StoredSplit


@dataclass
class ImportResult:
    """Result of matching a file of published paraphrases with a split's captions: the usable paraphrases of each
    caption, the entries of the file about other captions, and the number of sentences that each check has rejected.
    """

    variants: dict[tuple[str, str], tuple[str, ...]]  # by clip and caption
    unknown: list[str]  # descriptions of entries whose caption isn't in the split
    failed: Counter[str]  # failed sentences by check


def match_entries(split: StoredSplit, entries: Sequence[tuple[str, str, Sequence[str]]]) -> ImportResult:
    """Match published paraphrases with a split's captions, by file name and normalised caption, and check each
    sentence. `entries` are triples of the clip's file name, the caption and its paraphrases.
    """
    captions_by_key: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for clip_id, captions in zip(split.clip_ids, split.captions, strict=True):
        name = PurePosixPath(clip_id.removeprefix(f"{split.name}/")).name
        for caption in captions:
            captions_by_key.setdefault((name, normalise(caption)), []).append((clip_id, caption))
    result = ImportResult({}, [], Counter())
    for number, (path, caption, variations) in enumerate(entries, start=1):
        name = PureWindowsPath(path).name  # separated by / or \
        matches = captions_by_key.get((name, normalise(caption)), [])
        if not matches:
            result.unknown.append(f"entry {number}: {split.name} has no clip {name!r} with caption {caption!r}")
            continue
        variants = answer_parsing.check_sentences(
            caption, [text for entry in variations if (text := answer_parsing.clean_sentence(entry))]
        )
        result.failed.update(name for variant in variants for name in variant.failed)
        kept = tuple(variant.text for variant in variants if variant.is_kept)
        result.variants |= dict.fromkeys(matches, kept)
    return result


def read_variations(path: Path) -> list[tuple[str, str, Sequence[str]]]:
    """Read a JSON file of published paraphrases. Return triples of the clip's file name, the caption and its
    paraphrases. Raises UserError if the file is invalid.
    """
    entries = files.read_json(path)
    if not isinstance(entries, list):
        raise UserError(f'{path} isn\'t a list of {{"path", "caption", "variations"}}')
    parsed: list[tuple[str, str, Sequence[str]]] = []
    for number, entry in enumerate(entries, start=1):
        match entry:
            case {"path": str(name), "caption": str(caption), "variations": list(variations)} if all(
                isinstance(text, str) for text in variations
            ):
                parsed.append((name, caption, variations))
            case _:
                raise UserError(
                    f'{path}, entry {number}: "path" and "caption" must be texts, "variations" a list of texts'
                )
    return parsed

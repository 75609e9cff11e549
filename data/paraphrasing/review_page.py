"""Review page: one self-contained HTML file with paraphrases beside their captions."""

from collections.abc import Container, Iterable
from dataclasses import dataclass
from pathlib import Path

import jinja2

from data.paraphrasing.answer_parsing import CheckedSentence
from data.store.files import atomic_write

TEMPLATE = Path(__file__).with_name("review_page.html")
"""Template of the page."""


@dataclass(frozen=True)
class ReviewRow:
    """Row of the review page: a caption of a clip, the sentences written for it, and which of them are used as its
    paraphrases.
    """

    clip_id: str
    caption: str
    tags: tuple[str, ...]
    variants: tuple[CheckedSentence, ...]
    used: Container[int]  # indices in `variants`
    problem: str = ""  # reason for too few paraphrases

    @property
    def has_failed(self) -> bool:
        """True if the caption has too few paraphrases, or any of its sentences fails a check, so that a person
        should review it.
        """
        return bool(self.problem) or any(variant.failed for variant in self.variants)


def write_page(path: Path, name: str, model: str, instruction: str, rows: Iterable[ReviewRow]) -> None:
    """Write the review page of the split `name`, 'corpus/split', as an HTML file with a row for each caption. The page
    names the model and the instruction that wrote the paraphrases. It is never held in memory as a whole.
    """
    environment = jinja2.Environment(autoescape=True)
    stream = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).stream(
        name=name, model=model, instruction=instruction, rows=rows
    )
    stream.enable_buffering(100)
    with atomic_write(path) as temporary:
        stream.dump(str(temporary), encoding="utf-8")

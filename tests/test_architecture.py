"""docs/architecture.md says what the code is."""

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def test_the_page_is_that_of_the_code():
    page = runpy.run_path(str(DOCS / "write_architecture.py"))["page"]()
    assert (DOCS / "architecture.md").read_text(encoding="utf-8") == page, "run python docs/write_architecture.py"

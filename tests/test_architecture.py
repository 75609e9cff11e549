"""docs/architecture.md says what the code is, and files and folders stay small enough to be read."""

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODULES = [path for package in ("data", "trainables", "sweeps", "ensemble") for path in (ROOT / package).rglob("*.py")]
MAX_LINES, MAX_MODULES = 400, 15


def test_the_page_is_that_of_the_code():
    page = runpy.run_path(str(ROOT / "docs" / "write_architecture.py"))["page"]()
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert text == page, "run python docs/write_architecture.py"


def test_no_file_and_no_folder_is_too_long():
    long = {str(path): lines for path in MODULES if (lines := len(path.read_bytes().splitlines())) > MAX_LINES}
    assert not long
    number = {folder: len(list(folder.glob("*.py"))) for folder in {path.parent for path in MODULES}}
    assert {str(folder): modules for folder, modules in number.items() if modules > MAX_MODULES} == {}

"""Take the picture of a report for README.md, with Chromium.

    python docs/draw_report.py runs/reports/SWEEP/report.html

Writes docs/images/report.png: the beginning of the page.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PICTURE = Path(__file__).parent / "images/report.png"
WIDTH, HEIGHT = 1200, 1180
"""Size of the browser's window in pixels."""


def main() -> int:
    """Take the picture."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None or len(sys.argv) != 2:
        sys.stderr.write("usage: python docs/draw_report.py REPORT.html; Chromium must be installed\n")
        return 2
    page = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [
                browser, "--headless", "--no-sandbox", "--hide-scrollbars", f"--user-data-dir={profile}",
                f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={PICTURE}", page.as_uri(),
            ],
            check=True, capture_output=True,
        )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())

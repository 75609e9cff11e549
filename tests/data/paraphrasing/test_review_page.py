"""The review page in a browser."""

import html
import json
import re
import shutil
import subprocess

import pytest

from data.paraphrasing.answer_parsing import check_sentences
from data.paraphrasing.review_page import ReviewRow, write_page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDTHS = (320, 480, 768, 1280)

PROBE = """
<!doctype html><body><script>
const page = %s, widths = %s, results = {};
let left = widths.length;
for (const width of widths) {
  const frame = document.createElement("iframe");
  frame.width = width; frame.height = 600; frame.srcdoc = page;
  frame.onload = () => setTimeout(() => {
    const inner = frame.contentDocument, view = frame.contentWindow;
    view.scrollTo(0, 1500);
    const hits = [...inner.querySelectorAll("input")].map(input => {
      const box = input.getBoundingClientRect();
      const top = inner.elementFromPoint(box.left + box.width / 2, box.top + box.height / 2);
      return top === input;
    });
    const clipped = [...inner.querySelectorAll("section *")].filter(element =>
      element.getBoundingClientRect().right > element.closest("section").getBoundingClientRect().right + 1).length;
    const shown = () => inner.getElementById("shown").textContent;
    const words = inner.getElementById("words"), failed = inner.getElementById("failed");
    const texts = [shown()];
    words.value = "Dog TAG7"; words.dispatchEvent(new Event("input")); texts.push(shown());
    words.value = ""; failed.checked = true; failed.dispatchEvent(new Event("input")); texts.push(shown());
    words.value = "absent"; words.dispatchEvent(new Event("input")); texts.push(shown());
    results[width] = { hits, clipped, texts, wide: inner.documentElement.scrollWidth - width, scrolled: view.scrollY };
    if (!--left) {
      const out = document.createElement("pre"); out.id = "results"; out.textContent = JSON.stringify(results);
      document.body.append(out);
    }
  }, 0);
  document.body.append(frame);
}
</script>
"""


@pytest.mark.skipif(not CHROMIUM, reason="Chromium is absent")
def test_every_control_can_be_reached_and_works(tmp_path):
    """In a browser, since only its layout says what lies on top: after scrolling, at several widths."""
    rows = []
    for number in range(60):
        caption = f"A dog barks {number} times in a {'very' * 30 if number == 7 else 'large'} hall."
        variants = check_sentences(
            caption,
            [f"Take {number}: a hound woofs.", "It is 5 p.m." if number % 10 == 0 else f"A {chr(119) * 120} woofs."],
        )
        rows.append(
            ReviewRow(f"test/train/{'long' * 30}{number}.wav", caption, (f"tag{number}",), tuple(variants), [0])
        )
    write_page(tmp_path / "page.html", "test/train", "model", "dcase2023/5", rows)
    page = json.dumps((tmp_path / "page.html").read_text()).replace("</", "<\\/")
    (tmp_path / "probe.html").write_text(PROBE % (page, json.dumps(WIDTHS)))
    words = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=10000", "--dump-dom"]
    done = subprocess.run(
        [*words, f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "probe.html").as_uri()],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    results = json.loads(html.unescape(re.search(r'<pre id="results">(.*?)</pre>', done.stdout, re.DOTALL)[1]))
    for width in map(str, WIDTHS):
        assert results[width]["hits"] == [True, True], "the controls lie on top of the captions"
        assert results[width]["clipped"] == 0
        assert results[width]["wide"] <= 0
        assert results[width]["texts"] == [
            "60 of 60 captions",
            "1 of 60 captions",
            "6 of 60 captions",
            "0 of 60 captions",
        ]
        assert results[width]["scrolled"] < 1500, "the first result is in view"

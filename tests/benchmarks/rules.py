"""Show the paraphrases of the rules, and the share of captions with at least 1, 3 and 5 of them.

    python tests/benchmarks/rules.py [FILE] [--show]

A file has one caption per line; by default, the captions of the tests, which were judged by hand.
"""

import argparse
from pathlib import Path

from data.paraphrasing.grammar import write_paraphrases

CAPTIONS = Path(__file__).parents[1] / "data/paraphrasing"
FILES = [CAPTIONS / "clotho_style.txt", CAPTIONS / "clotho_style_unseen.txt"]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, default=FILES)
    parser.add_argument("--show", action="store_true")
    options = parser.parse_args()
    for path in options.files:
        paraphrases = {caption: write_paraphrases(caption, 5) for caption in path.read_text().splitlines()}
        counts = [len(texts) for texts in paraphrases.values()]
        shares = ", ".join(f"{sum(n >= k for n in counts) / len(counts):.1%} with {k}" for k in (1, 3, 5))
        print(f"{path.name}: {sum(counts)} paraphrases of {len(counts)} captions; {shares}")  # noqa: T201
        for caption, texts in paraphrases.items() if options.show else ():
            print("\n    ".join([caption, *texts]))  # noqa: T201


if __name__ == "__main__":
    main()

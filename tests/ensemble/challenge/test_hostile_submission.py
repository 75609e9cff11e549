"""Zips and lists of authors that are made to take the memory, the time or the stack of who looks at them."""

import re
import struct
import tracemalloc
import zipfile

import pytest

from data.errors import UserError
from ensemble.challenge import validation
from ensemble.challenge.formats import EvaluationSet
from ensemble.challenge.metadata import read_authors
from ensemble.challenge.yaml_text import parse_yaml

EVALUATION = EvaluationSet("clotho/challenge", ["A dog barks."], [f"{number}.wav" for number in range(12)], {})
SYSTEM = "task6/A_B_task6b_1/A_B_task6b_submission_1"

ALIASES = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 30))
MERGES = "a0: &a0 {k: v}\n" + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 12))
HOSTILE = {
    "aliases of aliases": (ALIASES + "submission: {label: *a29, abbreviation: *a29}", "aliases stand for too much"),
    "a long text, often": (f"a: &a {'x' * 10_000}\nb: [{'*a, ' * 500}]", "aliases stand for too much"),
    "merges of merges": (MERGES, "merging .* isn't supported"),
    "an alias of what contains it": ("submission: &s {label: *s}", "aliases stand for too much"),
    "brackets": ("[" * 100_000, "nested too deeply"),
    "fields": ("{a: " * 5_000, "nested too deeply"),
    "a long number": ("a: " + "9" * 5_000, "4300|digits"),
    "a long hexadecimal number": ("a: 0x" + "f" * 5_000, "a number has 6,021 digits"),
    "a number in base 60": ("a: 1" + ":59" * 20_000, "a number has"),
    "a date that doesn't exist": ("a: 2023-02-30", "day is out of range"),
    "a time that doesn't exist": ("a: 2023-02-03 25:00:00", "hour must be in"),
    "an empty number": ('a: !!int ""', "IndexError|index out of range|can't|invalid"),
    "no truth value": ("a: !!bool maybe", "maybe"),
    "no date": ("a: !!timestamp never", "."),
    "Python": ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
    "an unhashable key": ("{[a]: b}", "unhashable"),
    "too long": ("a: " + "x" * 300_000, "at most 262,144 are read"),
    "no text": ("a: \x00", "special characters are not allowed|unacceptable"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_yaml_is_refused_with_the_reason(name, tmp_path):
    """In a submission, where it is one problem, and as a list of authors."""
    text, reason = HOSTILE[name]
    with pytest.raises(ValueError, match=reason):
        parse_yaml(text.encode())
    (tmp_path / "authors.yaml").write_text(text)
    with pytest.raises(UserError, match=r"authors\.yaml isn't YAML in UTF-8"):
        read_authors(tmp_path / "authors.yaml")
    problems = problems_of(tmp_path, {f"{SYSTEM}_metadata.yaml": text})
    assert any(re.search(f"metadata.yaml: it isn't YAML: .*({reason})", problem) for problem in problems), problems
    assert all(len(problem) < 1_000 for problem in problems)


def test_aliases_that_authors_use_are_read(tmp_path):
    (tmp_path / "authors.yaml").write_text("- {lastname: Doe, affiliation: &a {abbreviation: EX}}\n- {affiliation: *a}")
    assert read_authors(tmp_path / "authors.yaml")[1] == {"affiliation": {"abbreviation": "EX"}}


def problems_of(folder, contents, compression=zipfile.ZIP_DEFLATED):
    """What is wrong with a zip of these files."""
    path = folder / "submission.zip"
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return validation.find_problems(path, "dcase2023", EVALUATION)


@pytest.mark.parametrize("name", [f"{SYSTEM}_output.csv", "report.pdf"])
def test_a_member_that_unpacks_to_more_than_the_limit_is_not_unpacked(name, tmp_path, monkeypatch):
    monkeypatch.setattr(validation, "MAX_MEMBER_BYTES", 2**20)
    tracemalloc.start()
    problems = problems_of(tmp_path, {name: bytes(2**24)})
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert f"{name} has 16,777,216 bytes: at most 1,048,576 are read" in problems[-1]
    assert taken < 2 * 2**24 + 2**22  # the test's own zeros


def test_many_members_that_are_too_large_together_are_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(validation, "MAX_TOTAL_BYTES", 2**20)
    problems = problems_of(tmp_path, {f"{number}.pdf": bytes(2**18) for number in range(8)})
    assert "4.pdf has 262,144 bytes: at most 0 are read" in problems[-1]


def test_a_size_that_is_a_lie_is_not_believed(tmp_path, monkeypatch):
    """The directory says 10 bytes of a member of 16 MB."""
    monkeypatch.setattr(validation, "MAX_MEMBER_BYTES", 2**20)
    problems_of(tmp_path, {f"{SYSTEM}_output.csv": bytes(2**24)})
    path = tmp_path / "submission.zip"
    path.write_bytes(path.read_bytes().replace(struct.pack("<I", 2**24), struct.pack("<I", 10)))
    (problem, *_) = validation.find_problems(path, "dcase2023", EVALUATION)
    assert problem.startswith("its contents can't be read")


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, zipfile.ZIP_DEFLATED])
def test_damaged_members_of_every_compression_are_named(compression, tmp_path):
    problems_of(tmp_path, {f"{SYSTEM}_output.csv": bytes(range(256)) * 40}, compression)
    path = tmp_path / "submission.zip"
    data = path.read_bytes()
    for start in range(30 + len(SYSTEM) + 11, len(data) // 2, 5):
        path.write_bytes(data[:start] + b"\xff" * 8 + data[start + 8 :])
        assert validation.find_problems(path, "dcase2023", EVALUATION)


def test_a_table_of_very_many_columns_is_one_problem(tmp_path):
    problems = problems_of(tmp_path, {f"{SYSTEM}_output.csv": "," * 1_000_000})
    assert (
        f"{SYSTEM}_output.csv: it isn't a table: its header has 1,000,001 columns: at most 20,000 are read" in problems
    )

"""Names, docstrings and messages use the field's terms (docs/concepts.md): a list of words keeps the old ones out."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = [path for package in ("data", "trainables", "sweeps", "ensemble") for path in (ROOT / package).rglob("*.py")]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / ".github").rglob("*.yml")]

NAMES = {"told", "heard", "found", "worth", "wanted", "own", "place", "places", "wish", "heart", "room", "honesty"}
"""Names that don't say what they hold, and metaphors."""

PHRASES = re.compile(
    r"\b(comes? to (?!an? end)|came to|hears? of|go(es)? on (from|where|with)|going on from|is there already|"
    r"are there already|set aside|no word is left|what comes of|is told of|such as comes|for people\b|flatters?|"
    r"the same command goes on)",
    re.IGNORECASE,
)
BEGINNINGS = re.compile(r"(What|Whether|Those|That of|Of|How|Where|Who)\b")
LIMITS = re.compile(r"(MOST|FEWEST|LEAST|LONGEST|SHORTEST|SMALLEST|QUIETEST)_")

PROMPTS_AND_CAPTIONS = {"data/corpora/synthetic.py", "data/paraphrasing/grammar.py", "data/paraphrasing/job.py"}
"""Modules with sentences about sounds."""


def relative(path):
    return path.relative_to(ROOT).as_posix()


@pytest.fixture(scope="module", params=sorted(MODULES), ids=relative)
def module(request):
    """A module's path and its syntax tree."""
    return relative(request.param), ast.parse(request.param.read_text())


def names_of(tree):
    """Every name that the module gives: variables, parameters, functions, classes and attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno


def documented(tree):
    """Every module, class and function, with its docstring."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node, ast.get_docstring(node)


def is_property(node):
    """Whether a function is decorated as a property."""
    return any("property" in ast.unparse(decorator) for decorator in getattr(node, "decorator_list", []))


def test_names_say_what_they_hold(module):
    path, tree = module
    wrong = [f"{path}:{line}: {name}" for name, line in names_of(tree) if name in NAMES or LIMITS.match(name)]
    assert not wrong


def test_texts_use_everyday_terms(module):
    path, tree = module
    if path in PROMPTS_AND_CAPTIONS:
        pytest.skip("it holds sentences about sounds")
    texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    assert not [f"{path}:{node.lineno}: {found[0]}" for node in texts if (found := PHRASES.search(node.value))]


def test_comments_use_everyday_terms(module):
    path, _ = module
    lines = (ROOT / path).read_text().splitlines()
    comments = [(number, line.partition("# ")[2]) for number, line in enumerate(lines, start=1)]
    assert not [f"{path}:{number}: {text}" for number, text in comments if PHRASES.search(text)]


def test_docstrings_begin_with_a_verb_or_a_noun_phrase(module):
    """A property that is true or false may begin with "Whether"."""
    path, tree = module
    texts = [
        text for node, text in documented(tree) if text and not (is_property(node) and text.startswith("Whether "))
    ]
    assert not [f"{path}: {text.splitlines()[0]}" for text in texts if BEGINNINGS.match(text)]


def test_all_but_short_functions_have_a_docstring(module):
    """Functions of more than five statements and methods of more than nine, unless they are private.

    The methods of MlflowLedger are described where Ledger declares them.
    """
    path, tree = module
    functions = [(node, 5) for node in tree.body if isinstance(node, ast.FunctionDef)]
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name != "MlflowLedger"]
    functions += [(node, 9) for each in classes for node in each.body if isinstance(node, ast.FunctionDef)]
    long = [node for node, limit in functions if not node.name.startswith("_") and len(node.body) > limit]
    assert not [f"{path}: {node.name}" for node in long if not ast.get_docstring(node)]


@pytest.mark.parametrize("page", sorted(PAGES), ids=relative)
def test_pages_use_everyday_terms(page):
    lines = enumerate(page.read_text().splitlines(), start=1)
    assert not [f"{page.name}:{number}: {line}" for number, line in lines if PHRASES.search(line)]


def test_a_word_of_the_list_would_be_found():
    assert PHRASES.search("the same command goes on where it was")
    assert [name for name, _ in names_of(ast.parse("def f(told): found = told")) if name in NAMES] == ["told", "found"]
    assert LIMITS.match("MOST_WORDS")
    assert BEGINNINGS.match("What a clip is.")

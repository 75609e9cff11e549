"""Write docs/architecture.md from the code: which package imports which, and a sentence for each module.

    python docs/write_architecture.py

Run it after adding, moving or renaming a module, or changing the first sentence of its docstring.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import grimp
import networkx

ROOT = Path(__file__).parents[1]
PAGE = Path(__file__).with_name("architecture.md")
PACKAGES = ("data", "trainables", "sweeps", "ensemble")

HEAD = """\
# Architecture

This page is written by `python docs/write_architecture.py`; a test compares it with the code.

Data flows one way: `data` → `trainables` → `sweeps` → `ensemble`. A package imports itself and the packages before it.
A file directly in a package is a command or a contract that the whole package shares; everything else is in a
sub-package. import-linter checks the directions (`lint-imports`; the contracts are in `pyproject.toml`).

In the pictures an arrow goes from what imports to what is imported. An arrow is left out where others lead to the same
place.
"""


def import_graph() -> networkx.DiGraph:
    """Return the imports between the modules of the four packages, those inside functions included."""
    found = grimp.build_graph(*PACKAGES, cache_dir=None)
    graph = networkx.DiGraph()
    for module in found.modules:
        if module.rpartition(".")[2].startswith("_"):  # of one module or command only
            continue
        graph.add_node(module)
        graph.add_edges_from((module, imported) for imported in found.find_modules_directly_imported_by(module))
    return graph


def squash(graph: networkx.DiGraph, depth: int) -> networkx.DiGraph:
    """Return the imports between packages of a depth, without arrows that a longer way makes needless."""
    whole = networkx.DiGraph()
    for module in graph:
        whole.add_node(shortened(module, depth))
    for module, imported in graph.edges:
        one, other = shortened(module, depth), shortened(imported, depth)
        if one != other:
            whole.add_edge(one, other)
    return networkx.transitive_reduction(whole)


def shortened(module: str, depth: int) -> str:
    """Return the first names of a module's dotted path."""
    return ".".join(module.split(".")[:depth])


def flowchart(graph: networkx.DiGraph, package: str = "") -> Iterator[str]:
    """Yield the lines of a Mermaid flowchart; names inside a package are without its name."""
    yield "```mermaid"
    yield "flowchart TD"
    for node in sorted(graph):
        label = node.removeprefix(f"{package}.")
        is_folder = (ROOT / node.replace(".", "/")).is_dir()
        yield f"    {node.replace('.', '_')}" + (f"[[{label}]]" if is_folder else f"({label})")
    for one, other in sorted(graph.edges):
        yield f"    {one.replace('.', '_')} --> {other.replace('.', '_')}"
    yield "```"


def first_sentence(path: Path) -> str:
    """Return the first sentence of a module's docstring."""
    text = " ".join((ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n\n")[0].split())
    end = re.search(r"\.(?= [A-Z`]|$)", text)
    return text[: end.start()] if end else text


def modules_of(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the names of a folder's modules and their first sentences."""
    for path in sorted(folder.glob("*.py")):
        if path.name != "__init__.py":
            yield path.name, first_sentence(path)


def section(folder: Path, level: int, graph: networkx.DiGraph) -> Iterator[str]:
    """Yield the lines about a package: what it is for, its modules, and its sub-packages."""
    name = folder.relative_to(ROOT).as_posix()
    yield f"{'#' * level} {name}/"
    yield ""
    yield f"{first_sentence(folder / '__init__.py')}."
    yield ""
    if level == 2:
        package = folder.name
        inside = graph.subgraph(module for module in graph if module.startswith(f"{package}."))
        yield from flowchart(squash(inside, 2), package)
        yield ""
    rows = list(modules_of(folder))
    if rows:
        yield "| module | what it is for |"
        yield "|---|---|"
        yield from (f"| `{name}` | {sentence} |" for name, sentence in rows)
        yield ""
    for sub in sorted(path.parent for path in folder.glob("*/__init__.py")):
        yield from section(sub, level + 1, graph)


def page() -> str:
    """Return the text of the page."""
    graph = import_graph()
    lines = [HEAD, *flowchart(squash(graph, 1)), ""]
    for package in PACKAGES:
        lines += section(ROOT / package, 2, graph)
    return "\n".join(lines).rstrip("\n") + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

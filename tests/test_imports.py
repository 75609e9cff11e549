"""Commands and most modules import nothing heavy; import-linter checks the directions of imports (pyproject.toml)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ["data", "trainables", "sweeps", "ensemble"]

MODULES = [path.relative_to(ROOT).as_posix() for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]

COMMANDS = [module for module in MODULES if "sys.exit(main())" in (ROOT / module).read_text()]

HEAVY = ("torch", "ray", "mlflow", "transformers", "timm", "matplotlib", "numba", "pandas", "faiss", "fastapi")
"""What takes from half a second to some seconds to import: nothing that only reads a config or a file needs it."""

NEEDS = {
    "data/loading/batch.py",
    "data/loading/clips.py",
    "data/loading/loader.py",
    "data/loading/pairs.py",
    "data/loading/passages.py",
    "data/loading/sampler.py",
    "data/loading/shared_buffers.py",
    "ensemble/selection/kernels.py",
    "ensemble/selection/subset_kernels.py",
    "ensemble/serving/mlflow_model.py",
    "sweeps/scheduling/tune_searcher.py",
    "sweeps/scheduling/ray_tune.py",
    "sweeps/scheduling/rounds.py",
    "trainables/records/checkpoint.py",
    "trainables/execution/nodes.py",
    "trainables/training/embedding.py",
    "trainables/training/features.py",
    "trainables/training/gradient_cache.py",
    "trainables/training/learning_rates.py",
    "trainables/training/loss.py",
    "trainables/training/query_bank.py",
    "trainables/execution/artifacts.py",
    "trainables/training/averaging.py",
    "trainables/execution/ray_adapter.py",
    "trainables/execution/snapshots.py",
    "trainables/training/distillation.py",
    "trainables/training/train.py",
}
NEEDING = ("trainables/networks/", "ensemble/web/")
"""The modules, and the packages, that may import what is heavy.

All others, among them configs, records, the ledger, leases, the selector and every command, import what they need of it
inside the function that needs it.
"""


def test_only_select_is_named_after_a_standard_module():
    names = {Path(module).stem for module in MODULES} - {"__init__"}
    assert names & sys.stdlib_module_names == {"select"}


LOAD = """
import importlib, json, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(json.dumps(sorted(sys.modules)))
"""


def loaded_by(*modules):
    """What is heavy and in memory after some modules were imported in a process of their own."""
    names = [module.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for module in modules]
    done = subprocess.run([sys.executable, "-c", LOAD, *names], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(HEAVY) & set(json.loads(done.stdout.splitlines()[-1]))


def test_all_but_a_few_modules_import_nothing_heavy():
    """In one process: what one of them imports would be in memory for all."""
    light = [module for module in MODULES if module not in NEEDS and not module.startswith(NEEDING)]
    assert len(light) > 90
    if heavy := loaded_by(*light):
        guilty = {module: found for module in light if (found := loaded_by(module))}
        pytest.fail(f"{', '.join(sorted(heavy))} in memory after importing {guilty}")


WRONG = {
    "data/prepare.py": ["nonsense", "--store", "s"],
    "data/paraphrase.py": ["nonsense", "--batch-size", "0"],
    "sweeps/grid.py": ["--space", "nonsense"],
    "trainables/pretrain.py": ["--audio", "nonsense:small"],
    "trainables/embed.py": ["--checkpoint", "m", "--out", "o"],
    "ensemble/select.py": ["--metric", "nonsense"],
    "ensemble/report.py": ["--nonsense"],
    "ensemble/search.py": ["absent"],
    "ensemble/export.py": ["--ensemble", "absent.json", "--out", "o"],
    "ensemble/submission.py": ["--evaluation", "s"],
}
"""A mistake of each command that its arguments alone reveal."""

RUN = """
import json, os, runpy, sys
sys.argv = sys.argv[1:]
sys.path[0] = os.path.dirname(sys.argv[0])  # as where a script is run
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    status = end.code
print(json.dumps([status, sorted(sys.modules)]))
"""


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", ["help", "mistake"])
def test_a_command_says_how_it_is_used_and_what_is_wrong_without_anything_heavy(command, kind, tmp_path):
    """As a process: what its module and its arguments make it import is the question."""
    words = ["--help"] if kind == "help" else WRONG[command]
    done = subprocess.run(
        [sys.executable, "-c", RUN, ROOT / command, *words], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    status, modules = json.loads(done.stdout.splitlines()[-1])
    assert status == (0 if kind == "help" else 2), done.stderr
    assert done.stdout.count("\n") > 5 if kind == "help" else done.stderr.strip()
    assert not set(HEAVY) & set(modules)
    assert not list(tmp_path.iterdir()), "a mistake leaves nothing behind"


def test_every_command_is_tried_with_a_mistake():
    assert set(COMMANDS) == set(WRONG)

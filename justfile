# Short names for what one does every day: https://just.systems

# Everything that takes seconds: lint, types, quick tests
check:
    ruff format --check . && ruff check . && mypy && lint-imports --no-cache
    python -m pytest -m "not cluster and not slow"

# What CI runs
ci:
    bash .ci/run

# The documentation, in docs/_build
docs:
    python docs/write_architecture.py
    python docs/write_results.py
    python -m sphinx -W -q docs docs/_build

# Known weaknesses of the pinned dependencies (needs the network)
audit:
    uv tool run pip-audit -r constraints.txt --no-deps --disable-pip

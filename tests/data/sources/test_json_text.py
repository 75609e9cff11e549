import gc
import json

import pytest

from data.sources.json_text import parse_json


class Finalized:
    """An object whose finalizer runs only in a garbage collection, and needs some of the stack."""

    def __init__(self, errors):
        self.itself, self.errors = self, errors

    def __del__(self):
        try:
            json.dumps({"a": [1, {"b": [None] * 3}]}, indent=2)
        except RecursionError as error:
            self.errors.append(error)


@pytest.mark.parametrize(
    "text", ["[" * 200_000, '{"a":' * 200_000, b"[" * 2_000 + b"]" * 2_000, "", "{", "nul", b"\xff"]
)
def test_whatever_cannot_be_read_is_a_value_error(text):
    with pytest.raises(ValueError):
        parse_json(text)
    assert gc.isenabled()


def test_no_finalizer_runs_while_the_stack_is_used_up():
    errors, threshold = [], gc.get_threshold()
    gc.freeze()  # so that a collection looks at the objects of this test alone
    try:
        for allocations in range(500, 1000, 10):  # until the next collection: one of them falls on the deepest list
            gc.collect()
            gc.set_threshold(allocations)
            Finalized(errors)
            with pytest.raises(ValueError):
                parse_json("[" * 200_000)
    finally:
        gc.set_threshold(*threshold)
        gc.unfreeze()
    assert not errors


@pytest.mark.parametrize("text", ['{"a": [1, 2.5, "\\ud800", null]}', b'"caf\xc3\xa9"', "NaN"])
def test_values_are_those_of_the_standard_library(text):
    assert repr(parse_json(text)) == repr(json.loads(text))

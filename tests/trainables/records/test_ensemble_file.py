"""The record of an ensemble, read from files as they are written, as people edit them, and of format 2."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import UserError
from trainables.records.ensemble_file import (
    Ensemble,
    Estimate,
    Member,
    Method,
    NestedMetrics,
    ParetoPoint,
    SelectionStep,
    SplitMetrics,
    read_ensemble,
    write_ensemble,
)

numbers = st.floats(allow_nan=False, allow_infinity=False, width=32)
weights = st.floats(0.001, 1000)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
estimates = st.builds(Estimate, numbers, st.tuples(numbers, numbers))
by_metric = st.dictionaries(texts, estimates, max_size=2)
signatures = st.just("") | st.text("0123456789abcdef", min_size=16, max_size=16)
trials = st.none() | st.dictionaries(texts, st.none() | numbers | st.lists(numbers), max_size=2)
members = st.builds(
    Member,
    texts,
    weights,
    signatures,
    texts,
    texts,
    st.none(),
    numbers,
    numbers,
    numbers,
    trials,
    st.none() | st.integers(),
)
splits = st.builds(SplitMetrics, texts, texts, st.dictionaries(texts, by_metric, max_size=2))
nested = st.builds(NestedMetrics, st.integers(2, 9), estimates, estimates, numbers, st.booleans())


def several(values, least=0):
    return st.lists(values, min_size=least, max_size=2).map(tuple)


methods = st.builds(Method, texts, several(members), by_metric, st.none() | estimates, st.none() | by_metric)
ensembles = st.builds(
    Ensemble,
    members=several(members, least=1),
    metric=texts,
    metrics=several(texts),
    fusion=st.sampled_from(["mean", "zscore", "rank"]),
    direction=st.sampled_from(["t2a", "a2t"]),
    best_single=st.none() | members,
    validation=st.none() | splits,
    test=st.none() | splits,
    nested=st.none() | nested,
    methods=several(
        st.builds(Method, texts, several(members), by_metric, st.none() | estimates, st.none() | by_metric)
    ),
    trajectory=several(st.builds(SelectionStep, numbers, st.none() | texts, st.none() | texts)),
    sizes=st.dictionaries(texts, several(estimates), max_size=2),
    share_kept=st.none() | numbers,
    likeness=several(several(numbers)),
    cost=st.none() | texts,
    front=several(st.builds(ParetoPoint, numbers, numbers, several(texts))),
)


@given(ensembles, st.none() | ensembles)
def test_what_is_written_is_read_back(tmp_path_factory, ensemble, before):
    path = tmp_path_factory.getbasetemp() / "written.json"
    written = Ensemble(**{**vars(ensemble), "before_retraining": before})
    write_ensemble(path, written)
    assert read_ensemble(path) == written


def member(**changes):
    return {"name": "a", "weight": 0.5} | changes


@pytest.mark.parametrize(
    ("content", "where"),
    [
        ([], "not an ensemble.json: it must contain a JSON object"),
        ({}, "members: Field required"),
        ({"members": 3}, "members: .*array, not 3"),
        ({"members": []}, "members: there are none"),
        ({"members": [3]}, r"members\[0\]: .*not 3"),
        ({"members": [member(), {"weight": 1}]}, r"members\[1\].name: Field required$"),
        ({"members": [member(weight=-1)]}, r"members\[0\].weight: .*, not -1"),
        ({"members": [member(weight=True)]}, r"members\[0\].weight: .*, not True"),
        ({"members": [member(weight="1")]}, r"members\[0\].weight: .*, not '1'"),
        ({"members": [member(weight=math.nan)]}, r"members\[0\].weight: .*, not nan"),
        ({"members": [member(weight=0)]}, "members: all weights are 0"),
        ({"members": [member(count=1.5)]}, r"members\[0\].count: .*, not 1.5"),
        ({"members": [member(count=1), member()]}, "members: give a count"),
        ({"members": [member(count=0)]}, "members: give a count"),
        ({"members": [member(count=1), member(count=3)]}, r"members\[0\].count: 1 of 4 contradicts its weight, 0.5"),
        ({"members": [member()], "fusion": "median"}, "fusion: .*'mean', 'zscore', 'rank', .*, not 'median'"),
        ({"members": [member()], "direction": "up"}, "direction: .*not 'up'"),
        ({"members": [member()], "validation": {"split": "s"}}, "validation.fingerprint: Field required"),
        ({"members": [member()], "sizes": {"test": [{"value": 1}]}}, r"sizes.test\[0\].interval: Field required"),
        ({"members": [member()], "before_retraining": {}}, "before_retraining.members: Field required"),
        ({"members": [member()], "format_version": 4}, "format_version is 4, .*: update Chorale"),
        ({"members": [member()], "format_version": "3"}, "format_version is '3'"),
    ],
)
def test_a_wrong_field_is_named_with_its_file(content, where, tmp_path):
    path = tmp_path / "ensemble.json"
    path.write_text(json.dumps({"format_version": 3, **content} if isinstance(content, dict) else content))
    with pytest.raises(UserError, match=where) as caught:
        read_ensemble(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    "signature", ["../x", "/etc", "a/b", "a'b", "", "..", "0123456789abcde", "0123456789ABCDEF", "0123456789abcdef\n"]
)
@pytest.mark.parametrize("version", [2, 3])
def test_a_signature_that_is_no_signature_is_refused_wherever_a_member_is(signature, version, tmp_path):
    """It becomes a part of paths, and of queries to MLflow."""
    other = member(signature=signature)
    nested = {"members": [other], "metric": "map10"}
    methods = {"methods": [{"name": "all", "members": [other], "validation": {}}]}
    for change in ({"members": [member(), other | {"weight": 0}]}, {"best_single": other}, methods,
                   {"before_retraining": nested}):  # fmt: skip
        path = tmp_path / "ensemble.json"
        path.write_text(json.dumps({"format_version": version, "members": [member()], **change}))
        with pytest.raises(UserError, match=r"signature: a signature consists of 16 lowercase hexadecimal digits"):
            read_ensemble(path)


FIGURES = {"map10": 0.5, "map10_interval": [0.4, 0.6]}
FORMAT_2 = {
    "format_version": 2,
    "metric": "map10",
    "fusion": "weighted mean of the ranks of each query's scores",
    "fusion_name": "rank",
    "members": [member()],
    "validation": {"split": "s", "fingerprint": "f", "ensemble": FIGURES},
    "methods": [
        {"name": "all", "members": [], "validation": FIGURES, "nested": {"value": 0.3, "value_interval": [0.2, 0.4]}}
    ],
    "trajectory": [{"added": "a", "removed": None, "map10": 0.5}],
    "before_retraining": {"test": {"split": "s", "fingerprint": "f", "ensemble": FIGURES}},
}


def test_format_2_is_migrated(tmp_path):
    path = tmp_path / "ensemble.json"
    path.write_text(json.dumps(FORMAT_2))
    estimate = Estimate(0.5, (0.4, 0.6))
    figures = SplitMetrics("s", "f", {"ensemble": {"map10": estimate}})
    assert read_ensemble(path) == Ensemble(
        (Member("a", 0.5),),
        fusion="rank",
        validation=figures,
        methods=(Method("all", (), {"map10": estimate}, nested=Estimate(0.3, (0.2, 0.4))),),
        trajectory=(SelectionStep(0.5, "a"),),
        before_retraining=Ensemble((), test=figures),
    )


@pytest.mark.parametrize("field", ["validation", "methods", "trajectory", "before_retraining"])
@pytest.mark.parametrize("value", [3, [3], {"validation": 3}, {"validation": {"ensemble": {"map10": 1}}}])
def test_a_wrong_field_of_format_2_is_named(field, value, tmp_path):
    path = tmp_path / "ensemble.json"
    path.write_text(json.dumps(FORMAT_2 | {field: value}))
    with pytest.raises(UserError, match=rf"ensemble.json: {field}\W"):
        read_ensemble(path)


def test_members_that_are_models_of_one_training_are_listed_together_by_epoch():
    own = Member("own", 1.0, "a" * 16, epoch=5)
    late, early = (Member("m", 1.0, key * 16, epoch=epoch, snapshot_of="a" * 16) for key, epoch in (("b", 6), ("c", 3)))
    others = [Member("file", 1.0, folder="x"), Member("file 2", 1.0, folder="x"), Member("other", 1.0, "d" * 16)]
    assert Ensemble((own, *others, late, early)).list_snapshots() == [[early, own, late]]
    assert Ensemble((late, *others, early)).list_snapshots() == [[early, late]]
    assert Ensemble((own, *others)).list_snapshots() == []

"""cluster.yaml against Ray's own schema, without a cloud."""

from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

CLUSTER = yaml.safe_load((Path(__file__).parents[1] / "cluster.yaml").read_text())


def test_ray_accepts_it():
    validate_config(prepare_config(CLUSTER))


def test_a_misspelt_key_would_be_refused():
    with pytest.raises(Exception, match="max_wrokers"):
        validate_config(prepare_config({**CLUSTER, "max_wrokers": 4}))


def test_setup_installs_the_tested_versions():
    assert any("-c constraints.txt" in command for command in CLUSTER["setup_commands"])

"""cluster.yaml and cluster-local.yaml against Ray's own schema, Ray's autoscaler and EC2's API, without a cloud."""

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import botocore.session
import pytest
import yaml
from botocore.validate import ParamValidator
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.autoscaler_pb2 import ResourceRequestByCount

ROOT = Path(__file__).parents[1]
AWS_TEXT = (ROOT / "cluster.yaml").read_text()
AWS = yaml.safe_load(AWS_TEXT)
LOCAL = yaml.safe_load((ROOT / "cluster-local.yaml").read_text())
EC2 = botocore.session.get_session().get_service_model("ec2")
both = pytest.mark.parametrize("config", [AWS, LOCAL], ids=["aws", "local"])


@both
def test_ray_accepts_it(config):
    validate_config(prepare_config(config))


@both
def test_a_misspelt_key_is_refused(config):
    with pytest.raises(Exception, match="setup_comands"):
        validate_config(prepare_config({**config, "setup_comands": []}))


@both
def test_every_node_has_the_token_of_the_user_and_ray_asks_for_it(config):
    """The variable, because without it Ray's answer depends on what a node has run before."""
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert config["setup_commands"][0] == "chmod 600 ~/.ray/auth_token"
    assert any(re.search(r" RAY_AUTH_MODE=token .*' > ~/.chorale$", command) for command in config["setup_commands"])


@both
def test_logs_of_earlier_weeks_are_removed_and_those_of_today_kept(config, tmp_path):
    """The command itself, with another folder; where no Ray has run, it succeeds, too."""
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        (command,) = [command for command in commands if command.startswith("find /tmp/ray")]
        assert command.count("/tmp/ray") == 1
        folder = tmp_path / "ray"
        assert subprocess.run(command.replace("/tmp/ray", str(folder)), shell=True).returncode == 0
        for name, days in (("session_2026-01-01_00-00-00_1_1", 8), ("session_2026-01-08_00-00-00_1_1", 6)):
            (folder / name / "logs").mkdir(parents=True, exist_ok=True)
            modified_s = time.time() - days * 24 * 3600
            os.utime(folder / name, (modified_s, modified_s))
        (folder / "session_latest").symlink_to(folder / "session_2026-01-08_00-00-00_1_1")
        assert subprocess.run(command.replace("/tmp/ray", str(folder)), shell=True).returncode == 0
        assert sorted(path.name for path in folder.iterdir()) == ["session_2026-01-08_00-00-00_1_1", "session_latest"]
        shutil.rmtree(folder)


@pytest.mark.parametrize("kind", AWS["available_node_types"])
def test_disks_are_encrypted_and_metadata_need_a_token(kind):
    settings = AWS["available_node_types"][kind]["node_config"]
    assert settings["MetadataOptions"]["HttpTokens"] == "required"
    assert all(device["Ebs"]["Encrypted"] for device in settings["BlockDeviceMappings"])


def test_a_misspelt_key_or_an_unknown_head_among_the_node_types_is_refused():
    types = AWS["available_node_types"]
    with pytest.raises(Exception, match="min_wrokers"):
        misspelt = {**types, "gpu_spot": {**types["gpu_spot"], "min_wrokers": 1}}
        validate_config(prepare_config({**AWS, "available_node_types": misspelt}))
    with pytest.raises(Exception, match="head"):
        validate_config(prepare_config({**AWS, "available_node_types": {"gpu_spot": types["gpu_spot"]}}))


@pytest.mark.parametrize("kind", AWS["available_node_types"])
def test_ec2_knows_every_setting_of_a_node(kind):
    settings = AWS["available_node_types"][kind]["node_config"]
    report = ParamValidator().validate(
        {**settings, "MinCount": 1, "MaxCount": 1}, EC2.operation_model("RunInstances").input_shape
    )
    assert not report.has_errors(), report.generate_report()


@pytest.mark.parametrize(
    ("availability", "expected"),
    [({}, "gpu_spot"), ({"gpu_spot": 0.9}, "gpu_on_demand"), ({"gpu_spot": 0.9, "gpu_on_demand": 0.1}, "gpu_spot")],
    ids=["at first", "after spot was refused", "after on-demand was refused later"],
)
def test_rays_autoscaler_asks_for_spot_and_falls_back_to_on_demand(availability, expected):
    launched = launches(gpus=3, recoverable_resource_availabilities=availability)
    assert launched == {expected: 3}


def test_without_work_there_is_no_gpu_worker_and_with_much_of_it_no_more_than_max_workers():
    assert launches(gpus=0) == {}
    assert sum(launches(gpus=100).values()) == AWS["max_workers"]


def launches(gpus, **availability):
    """The nodes of each type that Ray's autoscaler would start for tasks that want a GPU each."""
    config = json.loads(json.dumps(AWS))
    for name, kind in config["available_node_types"].items():
        kind["resources"] = {"CPU": 8} | ({"GPU": 1} if name.startswith("gpu") else {})  # what EC2 would answer
    reader = AutoscalingConfig(config, skip_content_hash=True)
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=reader.get_node_type_configs(),
        max_num_nodes=reader.get_max_num_worker_nodes(),  # here, there is no head among the nodes
        resource_requests=[ResourceRequestByCount(request=ResourceRequestUtil.make({"GPU": 1}), count=gpus)],
        **availability,
    )
    reply = ResourceDemandScheduler(None).schedule(request)
    return {launch.instance_type: launch.count for launch in reply.to_launch}


@both
def test_setup_installs_the_tested_versions(config):
    assert any("-c constraints.txt" in command for command in config["setup_commands"])


@both
def test_the_dashboard_is_bound_to_the_heads_loopback(config):
    (start,) = [command for command in config["head_start_ray_commands"] if "ray start --head" in command]
    assert "--dashboard-host=127.0.0.1" in start


def test_both_serve_mlflow_alike_so_what_is_run_for_the_one_holds_for_the_other():
    end, serve, check = mlflow_commands(LOCAL)
    assert serve.count("--artifacts-destination /mnt/chorale/mlflow") == 1
    serve = serve.replace("/mnt/chorale/mlflow", "s3://BUCKET/mlflow")
    assert mlflow_commands(AWS) == [end, serve, check]


def mlflow_commands(config):
    return [command for command in config["head_start_ray_commands"] if "~/mlflow" in command]


def test_permissions_are_json_and_name_actions_that_ec2_has():
    policies = [json.loads(text) for text in re.findall(r"^\{.*?\]\}$", uncommented(), re.DOTALL | re.MULTILINE)]
    assert len(policies) == 2
    actions = {action for policy in policies for statement in policy["Statement"] for action in listed(statement)}
    assert {action.partition(":")[0] for action in actions} == {"ec2", "iam", "s3", "ssm"}
    assert {action.removeprefix("ec2:") for action in actions if action.startswith("ec2:")} <= set(EC2.operation_names)


def uncommented():
    return re.sub(r"^# ?", "", AWS_TEXT, flags=re.MULTILINE)


def listed(statement):
    action = statement["Action"]
    return [action] if isinstance(action, str) else action

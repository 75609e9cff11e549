"""Nodes of the Ray cluster, and the precision in which they compute fastest."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import ray
import yaml

from trainables.execution.resources import Bundle
from trainables.precision import fastest_cpu_precision, fastest_precision
from trainables.trial import Precision

TRAIN_ENVIRONMENT = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
}
"""Environment of commands that use Ray Train: Ray Train doesn't print log lines on the console, and collects reports
within 0.5 s instead of 2 s.
"""

TRAINING_MODULES = (
    "mlflow.store.tracking.sqlalchemy_store",
    "ray.tune.trainable.function_trainable",
    "trainables.execution.artifacts",
    "trainables.execution.session",
    "trainables.training.train",
)
"""Modules that a training process imports in advance, while the command prepares its work, so that no trial waits for
imports.
"""

GPU_ANSWERS_WITHIN_S = 60.0

AUTOSCALING_CONFIG = Path.home() / "ray_bootstrap_config.yaml"
"""File on a head started by `ray up` that lists the nodes its autoscaler may start; Ray has no API for it."""


def fastest_precision_on(gpus_per_worker: float | None, nodes: Sequence[Bundle]) -> Precision:
    """Return the precision, 'bfloat16' or 'float32', in which the GPUs of the cluster's nodes multiply matrices
    fastest. If `gpus_per_worker` is 0 or there are no GPUs, it is the fastest precision of this machine's processor;
    None means that the workers use GPUs if there are any.

    GPUs that cannot be queried, because they have not started yet or are all in use, are assumed to support bfloat16.
    """
    if gpus_per_worker == 0 or not any(node.gpus for node in nodes):
        return fastest_cpu_precision()
    query = ray.remote(num_cpus=0, num_gpus=0.01)(fastest_precision)
    try:
        return cast(Precision, ray.get(query.remote(), timeout=GPU_ANSWERS_WITHIN_S))
    except ray.exceptions.GetTimeoutError:
        return "bfloat16"


def list_nodes() -> list[Bundle]:
    """Return the CPUs and GPUs of each running node of the Ray cluster or, with an autoscaler, of each node that it may
    start.
    """
    alive = sorted((node for node in ray.nodes() if node["Alive"]), key=lambda node: str(node["NodeID"]))
    current_nodes = [Bundle(node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0)) for node in alive]
    has_autoscaler = "RAY_ADDRESS" in os.environ and AUTOSCALING_CONFIG.exists()
    possible_nodes = (
        nodes_of_autoscaler(yaml.safe_load(AUTOSCALING_CONFIG.read_text(encoding="utf-8"))) if has_autoscaler else []
    )
    return max(
        current_nodes,
        possible_nodes,
        key=lambda nodes: (sum(node.gpus for node in nodes), sum(node.cpus for node in nodes)),
    )


def nodes_of_autoscaler(config: Mapping[str, Any]) -> list[Bundle]:
    """Return the CPUs and GPUs of each node that a cluster has once its autoscaler has started all workers that
    `config` allows: the workers, sorted by descending number of GPUs, then the head. Nodes without CPUs are omitted.
    """
    types, head = config["available_node_types"], config["head_node_type"]
    bundles = {
        name: Bundle(kind["resources"].get("CPU", 0), kind["resources"].get("GPU", 0)) for name, kind in types.items()
    }
    workers = [bundles[name] for name, kind in types.items() for _ in range(kind.get("max_workers", 0)) if name != head]
    workers.sort(key=lambda node: (-node.gpus, -node.cpus))
    return [node for node in [*workers[: config["max_workers"]], bundles[head]] if node.cpus]

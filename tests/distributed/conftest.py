"""A real local cluster of two nodes with a CPU each."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from rimjax.distributed.cluster import import_ray


@pytest.fixture(scope="module")
def started_cluster() -> Iterator[Any]:
    ray = import_ray()
    make = importlib.import_module("ray.cluster_utils").Cluster
    cluster: Any = make(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.second = None
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def cluster(started_cluster: Any) -> Any:
    """The cluster, whose second node a test may remove."""
    if started_cluster.second is None:
        started_cluster.second = started_cluster.add_node(num_cpus=1)
    return started_cluster

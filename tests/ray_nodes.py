"""A Ray cluster of two nodes in this machine, with one core each."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def two_nodes():
    """The address of a cluster of two nodes, whose workers can import what tests can.

    It is for `ray=`; nothing else in the process is connected to it.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_DEDUP_LOGS_SKIP_REGEX"] = "."  # as the package sets it before it imports Ray
    pytest.importorskip("ray", reason="Ray is not installed")
    cluster = started_nodes()
    yield cluster.address
    cluster.shutdown()


def started_nodes(nodes: int = 2):
    """Start a cluster; `shutdown` ends it, `kill_node` one node of it."""
    from ray.cluster_utils import Cluster

    places = [str(Path(__file__).parent), *(path for path in sys.path if path)]
    before, answer = os.environ.get("PYTHONPATH"), signal.getsignal(signal.SIGTERM)
    os.environ["PYTHONPATH"] = os.pathsep.join(places)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cluster = Cluster(True, head_node_args={"num_cpus": 1, "include_dashboard": False})
            for _ in range(nodes - 1):
                cluster.add_node(num_cpus=1)
            cluster.wait_for_nodes()
    finally:
        signal.signal(signal.SIGTERM, answer)
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    return cluster

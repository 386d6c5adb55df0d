"""A Ray cluster of two nodes on this machine, in a process of its own.

python ray_cluster.py CPUS_OF_THE_HEAD CPUS_OF_THE_OTHER

It prints the cluster's address, and ends with its input.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ray_cluster(*cpus: int) -> Iterator[str]:
    """Start one with a node for each of these numbers of CPUs; its address."""
    started = subprocess.Popen(
        [sys.executable, __file__, *map(str, cpus)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0"},
    )
    assert started.stdout is not None
    try:
        yield next(line.split()[1] for line in started.stdout if line.startswith("ADDRESS "))
    finally:
        started.communicate()


def main() -> None:
    """Start the cluster and wait."""
    from ray.cluster_utils import Cluster

    first, *others = map(int, sys.argv[1:])
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": first, "include_dashboard": False})
    for cpus in others:
        cluster.add_node(num_cpus=cpus)
    print("ADDRESS", cluster.address, flush=True)  # noqa: T201
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    main()

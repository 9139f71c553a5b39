"""A Slurm cluster for the tests of this folder, if Slurm is installed."""

from collections.abc import Iterator

import pytest

from tests.faults.slurm.cluster import Cluster, find_missing


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two idle nodes. A test that cuts off a node has to return it."""
    if reason := find_missing():
        pytest.skip(reason)
    with Cluster(tmp_path_factory.mktemp("slurm")) as running:
        yield running

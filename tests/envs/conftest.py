"""The real domains: retail with upstream's data where it is at hand, else, like the others, with the packaged one."""

from pathlib import Path

import pytest

from envs.data import DataSource, open_source
from envs.domain import Domain, load_domain
from envs.retail.sampler import sample_tasks, task_users
from envs.types import Task

UPSTREAM = Path(__file__).parents[3] / "shared" / "tau2"


@pytest.fixture(scope="session")
def packaged() -> DataSource:
    return open_source("packaged")


@pytest.fixture(scope="session")
def retail(packaged: DataSource) -> Domain:
    return load_domain("retail", open_source("path", UPSTREAM) if UPSTREAM.is_dir() else packaged)


@pytest.fixture(scope="session")
def mock(packaged: DataSource) -> Domain:
    return load_domain("mock", packaged)


@pytest.fixture(scope="session")
def airline(packaged: DataSource) -> Domain:
    return load_domain("airline", packaged)


@pytest.fixture(scope="session")
def telecom(packaged: DataSource) -> Domain:
    return load_domain("telecom", packaged)


@pytest.fixture(scope="session")
def official_users(retail: Domain) -> set[str]:
    return task_users(retail, retail.tasks("test"))


@pytest.fixture(scope="session")
def sampled(retail: Domain, official_users: set[str]) -> list[Task]:
    return sample_tasks(retail, 400, seed=0, exclude_users=official_users)

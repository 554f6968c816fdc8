"""τ²-bench's smallest domain: one user and their to-do list, with an inbox on the customer's side. Made for trying things."""

from envs.data import DataSource
from envs.domain import DomainParts, read_database, read_text
from envs.mock.models import MockDB, MockUserDB
from envs.mock.tools import MockTools
from envs.mock.user_tools import MockUserTools

__all__ = ["MockDB", "MockTools", "MockUserDB", "MockUserTools", "load"]


def load(source: DataSource) -> DomainParts:
    """The domain as the data source has it. Without a `user_db.json` (the packaged data has none) the inbox begins empty."""
    inbox = source.root / "domains" / "mock" / "user_db.json"
    return DomainParts(
        database=read_database(source, "mock", MockDB),
        toolkit=MockTools,
        user_database=read_database(source, "mock", MockUserDB, inbox.name) if inbox.is_file() else MockUserDB.load({}),
        user_toolkit=MockUserTools,
        policy=read_text(source, "mock", "policy.md"),
        solo_policy=read_text(source, "mock", "policy_solo.md"),
    )

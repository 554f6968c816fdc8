"""τ²-bench's retail store: 500 customers, 1,000 orders, 50 products."""

from envs.data import DataSource
from envs.domain import DomainParts, read_database, read_text
from envs.retail.models import RetailDatabase
from envs.retail.tools import RetailTools

__all__ = ["RetailDatabase", "RetailTools", "load"]


def load(source: DataSource) -> DomainParts:
    """The store as the data source has it."""
    database = read_database(source, "retail", RetailDatabase)
    return DomainParts(database, RetailTools, policy=read_text(source, "retail", "policy.md"))

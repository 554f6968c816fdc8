"""τ²-bench's airline: 500 customers, 2,000 reservations, 300 flights over a month."""

from envs.airline.models import FlightDB
from envs.airline.tools import AirlineTools
from envs.data import DataSource
from envs.domain import DomainParts, read_database, read_text

__all__ = ["AirlineTools", "FlightDB", "load"]


def load(source: DataSource) -> DomainParts:
    """The airline as the data source has it."""
    database = read_database(source, "airline", FlightDB)
    return DomainParts(database, AirlineTools, policy=read_text(source, "airline", "policy.md"))

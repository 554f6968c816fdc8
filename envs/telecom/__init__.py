"""τ²-bench's phone company, where agent and customer both act: 4 customers, 9 lines, and the phone in the customer's hand."""

from envs.data import DataSource
from envs.domain import DomainParts, read_database, read_text
from envs.telecom.models import TelecomDatabase
from envs.telecom.phone import PhoneDatabase
from envs.telecom.tools import TelecomTools
from envs.telecom.user_tools import TelecomUserTools

__all__ = ["PhoneDatabase", "TelecomDatabase", "TelecomTools", "TelecomUserTools", "load"]


def load(source: DataSource) -> DomainParts:
    """The company and a new phone as the data source has them."""
    return DomainParts(
        read_database(source, "telecom", TelecomDatabase, "db.toml"),
        TelecomTools,
        policy=_policy(source, "main_policy.md"),
        user_database=read_database(source, "telecom", PhoneDatabase, "user_db.toml"),
        user_toolkit=TelecomUserTools,
        solo_policy=_policy(source, "main_policy_solo.md"),
    )


def _policy(source: DataSource, main: str) -> str:
    """The main policy and the manual for technical support, in the tags that upstream puts around them."""
    # The packaged files end with a line break that upstream's do not have.
    policy, manual = (read_text(source, "telecom", file).removesuffix("\n") for file in (main, "tech_support_manual.md"))
    return f"<main_policy>\n{policy}\n</main_policy>\n<tech_support_policy>\n{manual}\n</tech_support_policy>"

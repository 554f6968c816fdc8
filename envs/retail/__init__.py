"""τ²-bench's retail store: 500 customers, 1,000 orders, 50 products."""

from envs.retail.models import RetailDatabase
from envs.retail.tools import RetailTools

__all__ = ["RetailDatabase", "RetailTools"]

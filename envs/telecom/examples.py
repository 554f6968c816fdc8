"""Calls for `env.examples`. The values are invented: they stand in no task and in no database."""

from __future__ import annotations

from envs.protocols import Example
from envs.types import Action

EXAMPLES: tuple[Example, ...] = (
    ("My phone number is 555-000-0417.", Action("get_customer_by_phone", {"phone_number": "555-000-0417"})),
    (
        "I do not know my number. I am Ottilie Quandt, born on 3 February 1901.",
        Action("get_customer_by_name", {"full_name": "Ottilie Quandt", "dob": "1901-02-03"}),
    ),
    (
        "Yes, add 1.5 GB to that line.",
        Action("refuel_data", {"customer_id": "C90417", "line_id": "L90417", "gb_amount": 1.5}),
    ),
)

"""Calls for `env.examples`. The values are invented: they stand in no task and in no database."""

from __future__ import annotations

from envs.protocols import Example
from envs.types import Action

EXAMPLES: tuple[Example, ...] = (
    (
        "I am Ottilie Quandt, zip 00417.",
        Action("find_user_id_by_name_zip", {"first_name": "Ottilie", "last_name": "Quandt", "zip": "00417"}),
    ),
    ("What is in my order #W0000417?", Action("get_order_details", {"order_id": "#W0000417"})),
    (
        "Yes, return both to my gift card.",
        Action(
            "return_delivered_order_items",
            {"order_id": "#W0000417", "item_ids": ["0000000418", "0000000419"], "payment_method_id": "gift_card_0000417"},
        ),
    ),
)

"""Calls for `env.examples`. The values are invented: they stand in no task and in no database."""

from __future__ import annotations

from envs.protocols import Example
from envs.types import Action

EXAMPLES: tuple[Example, ...] = (
    ("My user id is ottilie_quandt_0417.", Action("get_user_details", {"user_id": "ottilie_quandt_0417"})),
    (
        "Is there a direct flight from Oslo to Helsinki on 3 February 2031?",
        Action("search_direct_flight", {"origin": "OSL", "destination": "HEL", "date": "2031-02-03"}),
    ),
    (
        "Yes, make it two bags, one of them paid with my gift card.",
        Action(
            "update_reservation_baggages",
            {"reservation_id": "ZQX417", "total_baggages": 2, "nonfree_baggages": 1, "payment_id": "gift_card_0000417"},
        ),
    ),
)

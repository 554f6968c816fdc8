"""When two calls are equal, and who is whose partner."""

from dataclasses import replace
from typing import Any

import pytest

from envs.types import Action
from rewards.matching import Call, GoldAction, lcs_length, match


def equal(gold: Action, call: Action, *, refused: bool = False, domain: str = "retail", compare_args=None) -> bool:
    return bool(match([GoldAction(gold, compare_args)], [Call(call, refused)], domain).exact)


def order(order_id: object) -> Action:
    return Action("get_order_details", {"order_id": order_id})


def exchange(old: list, new: list) -> Action:
    return Action("exchange_delivered_order_items", {"order_id": "#W1", "item_ids": old, "new_item_ids": new})


def test_an_order_id_may_lack_its_prefix_where_the_tool_accepted_it():
    assert equal(order("#W123"), order("W123")) and equal(order("#W123"), order("123"))
    assert not equal(order("#W123"), order("#W124"))


def test_a_call_that_the_tool_refused_must_be_literally_equal():
    assert not equal(order("#W123"), order("W123"), refused=True)
    assert equal(order("#W123"), order("#W123"), refused=True)


def test_case_is_ignored_where_the_tool_ignores_it():
    assert equal(Action("find_user_id_by_email", {"email": "a@b.com"}), Action("find_user_id_by_email", {"email": "A@B.com"}))
    gold = Action("cancel_pending_order", {"order_id": "#W1", "reason": "no longer needed"})
    assert not equal(gold, Action("cancel_pending_order", {"order_id": "#W1", "reason": "No longer needed"}))


def test_what_other_domains_tools_ignore_is_ignored():
    permission = Action("grant_app_permission", {"app_name": "messaging", "permission": "sms"}, "user")
    assert equal(permission, replace(permission, arguments={"app_name": "messaging", "permission": "SMS"}), domain="telecom")
    assert not equal(permission, replace(permission, arguments={"app_name": "Messaging", "permission": "sms"}), domain="telecom")
    by_name = Action("get_customer_by_name", {"full_name": "John Smith", "dob": "1985-06-15"})
    assert equal(by_name, replace(by_name, arguments={**by_name.arguments, "full_name": "john smith"}), domain="telecom")
    sum_of = Action("calculate", {"expression": "1 + 2"})
    assert equal(sum_of, Action("calculate", {"expression": "1+2"}), domain="airline")


def test_flights_and_passengers_keep_their_order():
    flights = [{"flight_number": "HAT001", "date": "2024-05-20"}, {"date": "2024-05-21", "flight_number": "HAT002"}]
    turned = [dict(reversed(flight.items())) for flight in flights]
    book = Action("book_reservation", {"user_id": "a", "flights": flights})
    assert equal(book, replace(book, arguments={"user_id": "a", "flights": turned}), domain="airline")
    assert not equal(book, replace(book, arguments={"user_id": "a", "flights": flights[::-1]}), domain="airline")


def test_white_space_is_ignored_in_calculations_only():
    assert equal(Action("calculate", {"expression": "1 + 2"}), Action("calculate", {"expression": "1+2"}))
    assert not equal(Action("modify_user_address", {"city": "New York"}), Action("modify_user_address", {"city": "NewYork"}))


@pytest.mark.parametrize(
    ("a", "b", "same"), [(3, 3.0, True), (3, "3", True), (3.5, 3, False), (1, True, False), (0, None, False)]
)
def test_numbers_are_compared_by_value(a, b, same):
    assert equal(Action("refund", {"amount": a}), Action("refund", {"amount": b})) is same


def test_paired_lists_are_a_multiset_of_pairs():
    assert equal(exchange(["1", "2"], ["3", "4"]), exchange(["2", "1"], ["4", "3"]))
    assert not equal(exchange(["1", "2"], ["3", "4"]), exchange(["2", "1"], ["3", "4"]))
    assert not equal(exchange(["1", "1"], ["3", "4"]), exchange(["1"], ["3"]))


def test_a_single_list_of_ids_is_a_multiset_and_another_list_is_not():
    back = lambda ids: Action("return_delivered_order_items", {"item_ids": ids})  # noqa: E731
    assert equal(back(["1", "2"]), back(["2", "1"])) and not equal(back(["1", "1", "2"]), back(["1", "2", "2"]))
    assert not equal(Action("t", {"path": [1, 2]}), Action("t", {"path": [2, 1]}))


def test_arguments_must_be_the_same_set():
    assert not equal(order("#W1"), Action("get_order_details", {}))
    assert not equal(order("#W1"), Action("get_order_details", {"order_id": "#W1", "extra": None}))


def test_compare_args_limits_the_comparison():
    gold = Action("transfer_to_human_agents", {"summary": "The customer insists."})
    assert equal(gold, Action("transfer_to_human_agents", {"summary": "Bye."}), compare_args=())
    assert not equal(gold, Action("transfer_to_human_agents", {"summary": "Bye."}), compare_args=("summary",))


def test_a_user_action_is_no_partner_of_an_agent_action():
    assert not equal(Action("reboot"), Action("reboot", requestor="user"))


def test_partners_are_found_where_taking_the_first_would_block_another():
    picky, anyone = GoldAction(order("#W1")), GoldAction(order("#W2"), ())
    result = match([anyone, picky], [Call(order("#W1")), Call(order("#W9"))], "retail")
    assert result.exact == ((0, 1), (1, 0))


def test_names_are_matched_after_equal_calls_and_each_call_serves_once():
    result = match([GoldAction(order("#W1")), GoldAction(order("#W2"))], [Call(order("#W9")), Call(order("#W1"))], "retail")
    assert result.exact == ((0, 1),) and result.named == ((0, 1), (1, 0))
    assert result.ordered == 2 and not result.in_order


def test_in_order_allows_calls_between():
    calls = [Call(order(i)) for i in ("#W5", "#W1", "#W5", "#W2")]
    assert match([GoldAction(order("#W1")), GoldAction(order("#W2"))], calls, "retail").in_order
    assert not match([GoldAction(order("#W2")), GoldAction(order("#W1"))], calls, "retail").in_order


def test_longest_common_subsequence():
    assert lcs_length("abcde", "axcxe") == 3
    assert lcs_length("", "abc") == 0 and lcs_length("ab", "ba") == 1


def test_numbers_beyond_any_float_and_arguments_beyond_any_depth_compare():
    deep: Any = 1
    for _ in range(5000):
        deep = [deep]
    gold = [GoldAction(Action("add", {"n": 10**400}))]
    calls = [Call(Action("add", {"n": deep})), Call(Action("add", {"n": float("nan")})), Call(Action("add", {"n": 10**400}))]
    assert match(gold, calls, "mock").exact == ((0, 2),)

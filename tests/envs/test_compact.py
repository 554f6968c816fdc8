"""The short prompts name every tool; short results keep every id and fact."""

import json
import re

import pytest

from envs import compact as general_form
from envs.data import open_source
from envs.domain import Domain, load_domain
from envs.types import Action, ToolResult

#: Most words, digits and marks that a domain's short prompt may have.
LENGTH = {"mock": 700, "retail": 430, "airline": 900, "telecom": 640}


def rendered(domain: Domain, name: str, **arguments: object) -> tuple[str, object]:
    action = Action(name, arguments)
    result = domain.new_toolkit().use(action)
    assert not result.error, result
    return domain.compact.render_result(action, result), json.loads(result.content)


def facts(value: object) -> list[str]:
    """Every string and number in it, but not whether something is so."""
    if isinstance(value, dict):
        return [fact for member in value.values() for fact in facts(member)]
    if isinstance(value, list):
        return [fact for member in value for fact in facts(member)]
    return [] if value is None or isinstance(value, bool) else [str(value)]


@pytest.mark.parametrize("name", LENGTH)
def test_a_short_policy_names_every_tool_and_argument(name):
    domain = load_domain(name, open_source("packaged"))
    policy = domain.compact.compact_policy(domain)
    for schema in domain.tool_schemas:
        function = schema["function"]
        signature = policy[policy.index(f"{function['name']}(") :].split(")")[0]
        assert all(name in signature for name in function["parameters"]["properties"])
    assert len(re.findall(r"[A-Za-z]+|\d|[^\sA-Za-z\d]", policy)) < LENGTH[name]
    assert len(policy) < 4000


@pytest.mark.parametrize("name", ["retail", "telecom"])
def test_a_signature_of_plain_arguments_is_their_names(name):
    domain = load_domain(name, open_source("packaged"))
    policy = domain.compact.compact_policy(domain)
    for schema in domain.tool_schemas:
        function = schema["function"]
        assert f"{function['name']}({', '.join(function['parameters']['properties'])})" in policy


@pytest.mark.parametrize(
    ("name", "result"),
    [
        ("retail", ToolResult("Error: Order not found", error=True)),
        ("retail", ToolResult("sara_doe_496")),
        ("retail", ToolResult("12.5")),
        ("retail", ToolResult("[1]")),
        ("telecom", ToolResult("Error: Line with ID L9 not found", error=True)),
        ("telecom", ToolResult("Roaming enabled successfully")),
        ("telecom", ToolResult("[]")),
        ("telecom", ToolResult("Status Bar: 📶³ Good | 5G | 📱 Data Enabled | 🔋 80%")),
    ],
)
def test_errors_and_plain_answers_pass_unchanged(name, result):
    assert load_domain(name, open_source("packaged")).compact.render_result(Action("any"), result) == result.content


# -- the general form


def test_signatures_say_what_lists_hold_and_which_values_there_are(airline, mock):
    policy = airline.compact.compact_policy(airline)
    assert "flights[{flight_number, date}], passengers[{first_name, last_name, dob}]" in policy
    assert "cabin=business|economy|basic_economy" in policy and "insurance=yes|no" in policy
    assert mock.policy.strip() in mock.compact.compact_policy(mock)
    assert "update_task_status(task_id, status=pending|completed)" in mock.compact.compact_policy(mock)


def test_short_results_of_the_airline_keep_every_fact(airline):
    toolkit, render = airline.new_toolkit(), airline.compact.render_result
    database = airline.database
    calls = [Action("get_user_details", {"user_id": key}) for key in list(database.table("users"))[:60]]
    calls += [Action("get_reservation_details", {"reservation_id": key}) for key in list(database.table("reservations"))[:60]]
    calls += [Action("search_direct_flight", {"origin": "ORD", "destination": "PHL", "date": "2024-05-26"})]
    calls += [Action("search_onestop_flight", {"origin": "JFK", "destination": "SEA", "date": "2024-05-20"})]
    calls += [Action("list_all_airports")]
    for call in calls:
        result = toolkit.use(call)
        text = render(call, result)
        assert all(fact in text for fact in facts(json.loads(result.content))), text
        assert len(text) < len(result.content) and not set('{}[]"') & set(text)


def test_results_become_lines_of_names_and_values():
    row = {"id": "a", "n": 2, "open": True, "none": None, "tags": ["x", "y"], "who": {"name": "Ann"}, "empty": []}
    result = ToolResult(json.dumps(row))
    assert general_form.render_result(Action("get"), result) == "id a, n 2, open yes\ntags: x y\nwho: name Ann"
    rows = ToolResult(json.dumps([{"id": "a", "of": {"b": 1, "c": 2}}, {"id": "b", "of": {}}]))
    assert general_form.render_result(Action("list"), rows) == "id a; of b 1, c 2\nid b"
    nested = ToolResult(json.dumps({"cards": {"c1": {"left": 1}, "c2": {"left": 2}}}))
    assert general_form.render_result(Action("get"), nested) == "cards: c1 left 1; c2 left 2"


@pytest.mark.parametrize(
    "content", ["Error: no such row", "available", "12.5", "[]", "{}", '["a", "b"]', "null", '[{"a": null}]']
)
def test_errors_plain_answers_and_what_would_be_nothing_pass_unchanged(content):
    assert general_form.render_result(Action("any"), ToolResult(content, content.startswith("Error"))) == content


# -- retail


def test_an_order_keeps_every_id_option_price_and_payment(retail):
    for order_id in list(retail.database.orders)[:100]:
        text, order = rendered(retail, "get_order_details", order_id=order_id)
        facts = [order["order_id"], order["user_id"], order["status"], *order["address"].values()]
        for item in order["items"]:
            facts += [item["name"], item["product_id"], item["item_id"], str(item["price"]), *item["options"].values()]
        for paid in order["payment_history"]:
            facts += [str(paid["amount"]), paid["payment_method_id"]]
        facts += [tracking for f in order["fulfillments"] for tracking in f["tracking_id"]]
        assert all(fact in text for fact in facts)


def test_a_user_keeps_name_address_payments_and_orders(retail):
    for user_id in list(retail.database.users)[:100]:
        text, user = rendered(retail, "get_user_details", user_id=user_id)
        facts = [user_id, *user["name"].values(), *user["address"].values(), user["email"], *user["orders"]]
        facts += [str(v) for m in user["payment_methods"].values() for k, v in m.items() if k != "source"]
        assert all(fact in text for fact in facts)


def test_a_product_lists_its_available_items_only(retail):
    for product_id in retail.database.products:
        text, product = rendered(retail, "get_product_details", product_id=product_id)
        for item_id, variant in product["variants"].items():
            assert (item_id in text) is variant["available"]


def test_a_write_in_retail_tells_what_is_new(retail, sampled):
    for task in sampled:
        write = task.gold_actions[-1]
        if write.name not in retail.write_tools:
            continue
        text = retail.compact.render_result(write, retail.new_toolkit().use(write))
        if write.name == "modify_user_address":
            assert write.arguments["address1"] in text
        else:
            assert write.arguments["order_id"] in text
            words = {"cancel": "cancelled", "return": "return requested", "exchange": "exchange requested"}
            assert words.get(task.kind, "pending") in text
            changed = [
                write.arguments.get("payment_method_id"),
                *write.arguments.get("new_item_ids", ()),
                write.arguments.get("zip"),
            ]
            assert all(value in text for value in changed if value)


# -- telecom


def test_every_row_of_telecom_keeps_all_its_facts(telecom):
    database = telecom.database
    for table in ("customers", "lines", "bills", "plans", "devices"):
        for key in database.table(table):
            text, row = rendered(telecom, "get_details_by_id", id=key)
            assert all(fact in text for fact in facts(row)), text


def test_flags_of_telecom_are_told_in_words(telecom):
    assert "roaming on" in rendered(telecom, "get_details_by_id", id="L1002")[0]
    assert "roaming off" in rendered(telecom, "get_details_by_id", id="L1001")[0]
    assert "eSIM no, activated" in rendered(telecom, "get_details_by_id", id="D1003")[0]


def test_lists_writes_and_usage_of_telecom_are_lines(telecom):
    text, bills = rendered(telecom, "get_bills_for_customer", customer_id="C1001")
    assert len(text.splitlines()) == len(bills) and all(fact in text for fact in facts(bills))
    line = {"customer_id": "C1001", "line_id": "L1002"}
    text, answer = rendered(telecom, "suspend_line", **line, reason="lost")
    assert all(fact in text for fact in facts(answer)) and "line L1002 555-123-2002: Suspended" in text
    assert rendered(telecom, "get_data_usage", **line)[0] == (
        "line L1002: used 8.7 of 15.0 GB, refueled 0.0 GB, cycle ends 2025-02-28"
    )
    assert rendered(telecom, "refuel_data", **line, gb_amount=2.0)[0] == (
        "Successfully added 2.0 GB of data for line L1002 for $4.00"
    )
